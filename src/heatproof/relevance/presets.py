"""Presets: which rule each operation gets."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from heatproof.errors import InputError
from heatproof.relevance import elementwise, layers, norms, rescale, rules
from heatproof.relevance.linear import AlphaBeta, AnyRule, Epsilon, FirstRule, Gamma, LinearRule, ZBox, Zero, z_plus
from heatproof.relevance.mode import Preset, Rule, Start, unsupported

_PLAIN = Epsilon(1e-6)

_CONSTANTS = (
    "rsqrt", "sqrt", "reciprocal", "norm", "vector_norm", "linalg_norm", "linalg_vector_norm", "std", "var",
    "sign", "sgn", "floor", "ceil", "round", "trunc", "floor_divide", "floordiv",
)  # fmt: skip
_NORMS = {"layer_norm": norms.layer_norm, "group_norm": norms.group_norm, "rms_norm": norms.rms_norm}

_CONVOLUTIONS = ("conv", "conv_transpose")
_PRODUCTS = ("matmul", "einsum", "tensordot", "inner")
_WEIGHTED = (*_CONVOLUTIONS, *_PRODUCTS, "linear", "addmm")
_SUMMING = (
    "sum", "mean", "sum_to_size", "trace", "cumsum", "fold",
    *(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)),
)  # fmt: skip
_RESAMPLING = ("interpolate", "grid_sample")
_ACCUMULATING = ("index_add", "scatter_add", "index_put")

_COMMON: dict[str, Rule] = {
    **dict.fromkeys(rules.ACTIVATIONS_AT_ZERO, rules.divide_by_input),
    **dict.fromkeys(_CONSTANTS, rules.constant),
    **dict.fromkeys(("sigmoid", "hardsigmoid"), rules.gate),
    **dict.fromkeys(("tanh", "erf"), rules.odd_sigmoid),
    **dict.fromkeys(("pow", "square"), elementwise.power),
    **dict.fromkeys(("clamp", "hardtanh", "relu6"), elementwise.clamp),
    **dict.fromkeys(_RESAMPLING, rules.resampling(None)),
    **dict.fromkeys(_WEIGHTED, rules.split_evenly),
    "mul": rules.product,
    "div": rules.divisor_is_constant,
    "softmax": rules.gradient,
    "glu": elementwise.glu,
    **_NORMS,
    "batch_norm": rules.fixed_batch_norm,
    "instance_norm": rules.instance_norm(rules.fixed_batch_norm),
}

NOTHING = Preset("gradient")
"""No rule at all: the ordinary gradient of everything."""


GUIDED_BACKPROP = Preset("guided_backprop", {"relu": rules.guided})
"""Guided backpropagation [springenberg2015striving], for the gradient phase: all but ReLU has its ordinary gradient."""

DECONVNET = Preset("deconvnet", {"relu": rules.deconvolved})
"""Deconvnet [zeiler2014visualizing], likewise; max pooling sends back to its winners, as with the authors' switches."""

_CURVES = (
    *rules.ACTIVATIONS_AT_ZERO, "relu", "leaky_relu", "relu6", "hardtanh", "clamp", "threshold", "abs", "sigmoid",
    "hardsigmoid", "softplus", "logsigmoid", "exp", "log", "sqrt", "rsqrt", "square",
)  # fmt: skip
_CHOICES = (
    "max", "min", "maximum", "minimum", "fmax", "fmin", "amax", "amin", "aminmax", "topk", "sort", "median", "kthvalue",
    "where", "prelu", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
)  # fmt: skip

DEEP_LIFT = Preset(
    "deep_lift",
    {
        **dict.fromkeys(_CURVES, rescale.rescale),
        **dict.fromkeys(("max_pool1d", "max_pool2d", "max_pool3d"), rescale.max_pool),
        **dict.fromkeys((*_WEIGHTED, "mul"), rescale.linear),
        **dict.fromkeys(_CHOICES, unsupported),
        **dict.fromkeys(_RESAMPLING, rules.resampling(None)),
        "div": rescale.quotient,
        "batch_norm": rules.fixed_batch_norm,
    },
)
"""DeepLIFT by the Rescale rule [shrikumar2017learning], for a batch of images and, after them, a baseline for each."""


def lrp_z(start: Start = "logit") -> Preset:
    """LRP-z [bach2015pixelwise]: linear layers are their own gradient."""
    return Preset("lrp_z", _COMMON, start)


def lrp_epsilon(epsilon: float = 1e-6, relative: bool = False, start: Start = "logit") -> Preset:
    """LRP-ε [bach2015pixelwise, montavon2019overview]; with `relative`, ε is a share of each layer's mean |z|.

    What is linear without weights (sums, means, a batch norm apart from a layer) is its own gradient.
    """
    rule = Epsilon(epsilon, relative)
    return composite("lrp_epsilon", dense=rule, conv=rule, norm=Zero(), start=start)


def lrp_gamma(gamma: float = 0.25, start: Start = "logit") -> Preset:
    """LRP-γ [montavon2019overview]: what speaks with a neuron weighs 1 + γ, in everything that is linear."""
    return _everywhere("lrp_gamma", Gamma(gamma), start)


def lrp_alpha_beta(alpha: float = 2.0, beta: float = 1.0, start: Start = "one", *, bias: bool = True) -> Preset:
    """LRP-αβ [bach2015pixelwise]: positive contributions share α R, negative ones −β R, with α − β = 1."""
    return _everywhere("lrp_alpha_beta", AlphaBeta(alpha, beta, bias), start)


def lrp_zplus(start: Start = "one", *, bias: bool = True) -> Preset:
    """LRP-z⁺ [montavon2017explaining]: LRP-αβ with α = 1, β = 0."""
    return _everywhere("lrp_zplus", z_plus(bias=bias), start)


def excitation_backprop(start: Start = "one") -> Preset:
    """Excitation backprop [zhang2018topdown]: LRP-z⁺ in which biases take no part."""
    return _everywhere("excitation_backprop", z_plus(bias=False), start)


def deep_taylor(low: Tensor, high: Tensor, start: Start = "one") -> Preset:
    """Deep Taylor decomposition [montavon2017explaining]: z⁺, and the z-box rule in first layers.

    `low` and `high`, broadcast to `[B, C, H, W]`, are the least and largest values that the image can have.
    """
    return _everywhere("deep_taylor", z_plus(), start, first=ZBox(low, high))


def lrp_composite(first: AnyRule | None, gamma: float = 0.25, epsilon: float = 1e-6, start: Start = "logit") -> Preset:
    """The composite of Montavon and others [montavon2019overview, kohlbrenner2020towards]: γ below, ε above.

    γ in convolutions, ε in dense layers, and `first` where the image comes in, which is the z-box rule as a rule.
    """
    return composite("lrp_composite", dense=Epsilon(epsilon), conv=Gamma(gamma), first=first, start=start)


def attn_lrp(gamma_conv: float = 0.25, gamma_linear: float = 0.05, start: Start = "logit") -> Preset:
    """AttnLRP [achtibat2024attnlrp]: softmax by its Taylor expansion, products halved, norms with constant deviation.

    γ in convolutions and dense layers; 0 is the plain rule.
    """
    return composite(
        "attn_lrp", dense=_gamma_or_plain(gamma_linear), conv=_gamma_or_plain(gamma_conv), start=start,
        operations=dict.fromkeys(_PRODUCTS, rules.dense_or_product(_gamma_or_plain(gamma_linear))),
    )  # fmt: skip


def cp_lrp(gamma_conv: float = 0.25, gamma_linear: float = 0.05, start: Start = "logit") -> Preset:
    """CP-LRP [ali2022xai]: as AttnLRP, but the attention is a constant and the values take all."""
    plain = attn_lrp(gamma_conv, gamma_linear, start)
    return replace(plain, name="cp_lrp", rules={**plain.rules, "softmax": rules.constant})


def composite(
    name: str = "composite",
    *,
    dense: LinearRule = _PLAIN,
    conv: LinearRule = _PLAIN,
    sums: LinearRule | None = None,
    norm: LinearRule | None = None,
    first: AnyRule | None = None,
    last: LinearRule | None = None,
    modules: Mapping[str, AnyRule] | None = None,
    operations: Mapping[str, Rule] | None = None,
    start: Start = "logit",
) -> Preset:
    """A preset of your own: rules by the kind of operation, by depth and by module.

    Args:
        name: how messages call it.
        dense: of dense layers and products with constants.
        conv: of convolutions.
        sums: of sums, means and average pooling, which by default are their own gradient.
        norm: of batch norms that follow no weighted layer; by default that of convolutions. One that follows a layer is
            merged into it.
        first: of the layers that see the image itself, `ZBox(low, high)`, `WSquare()`, `Flat()` or any other.
        last: of the layers that no other weighted layer follows, unless they see the image.
        modules: of the weighted layers whose module's path matches a pattern, such as `"blocks.*.mlp.*"`; the first match
            wins, over `first` and `last` too.
        operations: of other operations by their name, in place of the usual ones.
        start: relevance at the target, its `logit` or `one`.

    Raises:
        InputError: a rule of first layers stands where other layers are meant.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from heatproof.relevance import Gamma, WSquare, run
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
        >>> preset = composite(first=WSquare(), modules={"3": Gamma(0.1)})
        >>> passed = run(net, torch.rand(1, 1, 2, 2), preset)
        >>> torch.allclose(passed.relevance(passed.logits[:, 0]).sum(), passed.logits[0, 0])
        True
    """
    for place, rule in {"dense": dense, "conv": conv, "sums": sums, "norm": norm, "last": last}.items():
        if isinstance(rule, FirstRule):
            raise InputError(
                f"{type(rule).__name__} is a rule of first layers, which see the image itself, and cannot be that of "
                f"{place!r}: give it as first=..., or in modules=... to a first layer."
            )
    convolution = rules.weighted(conv)
    batch_norm = rules.batch_norm(lambda layer: conv if layer.kind in _CONVOLUTIONS else dense, norm or conv)
    own: dict[str, Rule] = {
        **dict.fromkeys(_WEIGHTED, rules.weighted(dense)),
        **dict.fromkeys(_CONVOLUTIONS, convolution),
        "batch_norm": batch_norm,
        "instance_norm": rules.instance_norm(batch_norm),
    }
    if sums is not None:
        own |= dict.fromkeys(_SUMMING, rules.in_full(layers.summing, sums))
        own |= dict.fromkeys(_ACCUMULATING, rules.accumulating(sums))
        own |= dict.fromkeys(_RESAMPLING, rules.resampling(sums))
        own |= dict.fromkeys(("add", "sub"), rules.in_full(layers.additive, sums))
    return Preset(name, {**_COMMON, **own, **(operations or {})}, start, first, last, dict(modules or {}))


def transformer_attention(start: Start = "one") -> Preset:
    """The rules of Chefer, Gur and Wolf above the first attention [chefer2021transformer]."""
    passed_on = (*rules.ACTIVATIONS_AT_ZERO, "relu", "relu6", "hardtanh", *_NORMS, "softmax")
    own = {
        **dict.fromkeys(passed_on, rules.unchanged),
        "linear": rules.weighted(z_plus(bias=False)),
        **dict.fromkeys(("conv", "conv_transpose", "addmm"), unsupported),
        "batch_norm": unsupported,
        "add": rules.residual_by_ratio,
    }
    return Preset("transformer_lrp", {**_COMMON, **own}, start)


def chefer(low: Tensor, high: Tensor, start: Start = "one") -> Preset:
    """Chefer, Gur and Wolf's full propagation to the pixels [chefer2021transformer].

    The patch convolution has the z-box rule for images between `low` and `high`, broadcast to `[B, C, H, W]`; the authors
    take each image's own least and largest value.
    """
    above = transformer_attention(start)
    convolutions = dict.fromkeys(_CONVOLUTIONS, above.rules["linear"])
    return replace(above, name="chefer", rules={**above.rules, **convolutions}, first=ZBox(low, high))


def _everywhere(name: str, rule: LinearRule, start: Start, first: AnyRule | None = None) -> Preset:
    """One rule for everything that is linear. A constant factor alone is no sum: it passes relevance as it is."""
    return composite(name, dense=rule, conv=rule, sums=rule, first=first, start=start)


def _gamma_or_plain(gamma: float) -> LinearRule:
    return Gamma(gamma) if gamma else _PLAIN
