"""Presets: which rule each operation gets."""

from heatproof.relevance import rules
from heatproof.relevance.mode import Preset, Rule, Start, unsupported

_CONSTANTS = ("rsqrt", "sqrt", "norm", "vector_norm", "linalg_norm", "linalg_vector_norm", "std", "var")

_COMMON: dict[str, Rule] = {
    **dict.fromkeys(rules.ACTIVATIONS_AT_ZERO, rules.divide_by_input),
    **dict.fromkeys(_CONSTANTS, rules.constant),
    **dict.fromkeys(("sigmoid", "hardsigmoid"), rules.gate),
    **dict.fromkeys(("matmul", "einsum"), rules.split_evenly),
    **dict.fromkeys(("linear", "conv", "conv_transpose", "addmm"), rules.linear_layer),
    "mul": rules.product,
    "div": rules.divisor_is_constant,
    "softmax": rules.gradient,
    "layer_norm": rules.layer_norm,
}

NOTHING = Preset("gradient")
"""No rule at all: the ordinary gradient of everything."""


def lrp_z(start: Start = "logit") -> Preset:
    """LRP-z [bach2015pixelwise]: linear layers are their own gradient."""
    return Preset("lrp_z", _COMMON, start)


def lrp_epsilon(epsilon: float = 1e-6, relative: bool = False, start: Start = "logit") -> Preset:
    """LRP-ε [bach2015pixelwise, montavon2019overview]; with `relative`, ε is a share of each layer's mean |z|."""
    rule = rules.epsilon(epsilon, relative)
    return Preset(
        "lrp_epsilon", {**_COMMON, **dict.fromkeys(("linear", "conv", "conv_transpose", "addmm"), rule)}, start
    )


def transformer_attention(start: Start = "one") -> Preset:
    """The rules of Chefer, Gur and Wolf above the first attention [chefer2021transformer]."""
    passed_on = (*rules.ACTIVATIONS_AT_ZERO, "relu", "layer_norm", "softmax")
    own = {
        **dict.fromkeys(passed_on, rules.unchanged),
        "linear": rules.zplus_without_bias,
        **dict.fromkeys(("conv", "conv_transpose", "addmm"), unsupported),
        "batch_norm": unsupported,
        "add": rules.residual_by_ratio,
    }
    return Preset("transformer_lrp", {**_COMMON, **own}, start)
