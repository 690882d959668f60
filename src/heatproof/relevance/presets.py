"""Presets: which rule each operation gets."""

from torch import Tensor

from heatproof.relevance import layers, rules
from heatproof.relevance.mode import Preset, Rule, Start, unsupported

_CONSTANTS = ("rsqrt", "sqrt", "norm", "vector_norm", "linalg_norm", "linalg_vector_norm", "std", "var")

_WEIGHTED = ("linear", "conv", "conv_transpose", "addmm", "matmul", "einsum")
_SUMMING = ("sum", "mean", *(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)))

_COMMON: dict[str, Rule] = {
    **dict.fromkeys(rules.ACTIVATIONS_AT_ZERO, rules.divide_by_input),
    **dict.fromkeys(_CONSTANTS, rules.constant),
    **dict.fromkeys(("sigmoid", "hardsigmoid"), rules.gate),
    **dict.fromkeys(_WEIGHTED, rules.split_evenly),
    "mul": rules.product,
    "div": rules.divisor_is_constant,
    "softmax": rules.gradient,
    "layer_norm": rules.layer_norm,
    "batch_norm": rules.fixed_batch_norm,
    "instance_norm": unsupported,
}

NOTHING = Preset("gradient")
"""No rule at all: the ordinary gradient of everything."""


def lrp_z(start: Start = "logit") -> Preset:
    """LRP-z [bach2015pixelwise]: linear layers are their own gradient."""
    return Preset("lrp_z", _COMMON, start)


def lrp_epsilon(epsilon: float = 1e-6, relative: bool = False, start: Start = "logit") -> Preset:
    """LRP-ε [bach2015pixelwise, montavon2019overview]; with `relative`, ε is a share of each layer's mean |z|.

    What is linear without weights (sums, means, a batch norm apart from a layer) is its own gradient.
    """
    rule = rules.epsilon(epsilon, relative)
    own = {**dict.fromkeys(_WEIGHTED, rules.weighted(rule)), "batch_norm": rules.batch_norm(rule, rules.z)}
    return Preset("lrp_epsilon", {**_COMMON, **own}, start)


def lrp_alpha_beta(alpha: float = 2.0, beta: float = 1.0, start: Start = "one") -> Preset:
    """LRP-αβ [bach2015pixelwise]: positive contributions share α R, negative ones −β R, with α − β = 1."""
    return Preset("lrp_alpha_beta", _signed(alpha, beta), start)


def lrp_zplus(start: Start = "one") -> Preset:
    """LRP-z⁺ [montavon2017explaining]: LRP-αβ with α = 1, β = 0."""
    return Preset("lrp_zplus", _signed(1.0, 0.0), start)


def deep_taylor(low: Tensor, high: Tensor, start: Start = "one") -> Preset:
    """Deep Taylor decomposition [montavon2017explaining]: z⁺, and the z-box rule in first layers.

    `low` and `high`, broadcast to `[B, C, H, W]`, are the least and largest values that the image can have.
    """
    return Preset("deep_taylor", _signed(1.0, 0.0), start, rules.z_box((low, high)))


def transformer_attention(start: Start = "one") -> Preset:
    """The rules of Chefer, Gur and Wolf above the first attention [chefer2021transformer]."""
    passed_on = (*rules.ACTIVATIONS_AT_ZERO, "relu", "layer_norm", "softmax")
    own = {
        **dict.fromkeys(passed_on, rules.unchanged),
        "linear": rules.weighted(rules.signed(1.0, 0.0, bias=False)),
        **dict.fromkeys(("conv", "conv_transpose", "addmm"), unsupported),
        "batch_norm": unsupported,
        "add": rules.residual_by_ratio,
    }
    return Preset("transformer_lrp", {**_COMMON, **own}, start)


def _signed(alpha: float, beta: float) -> dict[str, Rule]:
    """LRP-αβ for everything that is linear. A constant factor alone is no sum: it passes relevance as it is."""
    rule = rules.signed(alpha, beta)
    return {
        **_COMMON,
        **dict.fromkeys(_WEIGHTED, rules.weighted(rule)),
        **dict.fromkeys(_SUMMING, rules.in_full(layers.summing, rule)),
        **dict.fromkeys(("add", "sub"), rules.in_full(layers.additive, rule)),
        "batch_norm": rules.batch_norm(rule, rule),
    }
