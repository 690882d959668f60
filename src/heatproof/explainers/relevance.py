"""Layer-wise relevance propagation to the pixels, for any model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from heatproof.checks import check_choice
from heatproof.errors import InputError
from heatproof.explainers.composites import composite_of, default_epsilon, rule_of, takes_bias
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.relevance import ForwardPass, Preset, presets, run
from heatproof.relevance.mode import Start
from heatproof.relevance.tokens import self_attention

Bias = Literal["absorb", "ignore"]
First = Literal["z_box", "w_square", "flat", "none"]
Limit = float | Sequence[float] | None


@explainer("lrp_z", family="relevance", signed=True, paper="bach2015pixelwise")
def lrp_z(model: Classifier, images: Tensor, targets: Targets, *, strict: bool, start: Start = "logit") -> Tensor:
    """LRP with the plain z rule; on a ReLU network this is input times gradient.

    Relevance starts as the target's logit, or as 1 with `start="one"`; what biases absorb does not arrive.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.
    """
    return _to_pixels(model, images, targets, presets.lrp_z(start), strict)


@explainer("lrp_epsilon", family="relevance", signed=True, paper="bach2015pixelwise")
def lrp_epsilon(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    epsilon: float | None = None,
    relative: bool = False,
    start: Start = "logit",
) -> Tensor:
    """LRP with the ε rule: neurons near zero pass less on.

    `epsilon` is absolute, 1e-6 by default, or with `relative` a share of each sample's mean |z| in the layer, 0.25 by
    default.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.
    """
    if epsilon is None:
        epsilon = default_epsilon(relative=relative)
    return _to_pixels(model, images, targets, presets.lrp_epsilon(epsilon, relative, start), strict)


@explainer("lrp_gamma", family="relevance", signed=True, paper="montavon2019overview")
def lrp_gamma(
    model: Classifier, images: Tensor, targets: Targets, *, strict: bool, gamma: float = 0.25, start: Start = "logit"
) -> Tensor:
    """LRP with the γ rule: contributions of a neuron's own sign weigh 1 + γ, in everything that is linear.

    γ = 0 is the z rule; the larger γ, the more a positive neuron's relevance follows what speaks for it.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.
    """
    return _to_pixels(model, images, targets, presets.lrp_gamma(gamma, start), strict)


@explainer("lrp_alpha_beta", family="relevance", signed=True, paper="bach2015pixelwise")
def lrp_alpha_beta(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    alpha: float = 2.0,
    beta: float = 1.0,
    bias: Bias = "absorb",
    start: Start = "one",
) -> Tensor:
    """LRP with the αβ rule: what speaks for a neuron shares α of its relevance, what speaks against it −β.

    `R_i = Σ_j [α (x_i w_ji)⁺ / P_j − β (x_i w_ji)⁻ / N_j] R_j` with the sums P and N of the positive and the negative
    contributions, biases among them unless `bias="ignore"`, in everything that is linear. α − β must be 1. Relevance starts
    as 1, because from a negative logit every sign would be turned; `start="logit"` starts with the target's logit.

    Returns:
        Maps `[B, T, H, W]`, summed over channels; NaN where a start of 1 belongs to a logit of exactly 0.
    """
    return _to_pixels(model, images, targets, presets.lrp_alpha_beta(alpha, beta, start, bias=takes_bias(bias)), strict)


@explainer("lrp_zplus", family="relevance", signed=True, paper="montavon2017explaining")
def lrp_zplus(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    bias: Bias = "absorb",
    start: Start = "one",
) -> Tensor:
    """LRP with the z⁺ rule: relevance follows the positive contributions only (αβ with α = 1, β = 0).

    Positive biases absorb their share, or take no part with `bias="ignore"`. On a CNN the maps are not negative; the norms
    and attention of a transformer make relevance of both signs. Relevance starts as 1, or as the target's logit with
    `start="logit"`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels; NaN where a start of 1 belongs to a logit of exactly 0.
    """
    return _to_pixels(model, images, targets, presets.lrp_zplus(start, bias=takes_bias(bias)), strict)


@explainer("excitation_backprop", family="relevance", signed=True, paper="zhang2018topdown")
def excitation_backprop(
    model: Classifier, images: Tensor, targets: Targets, *, strict: bool, start: Start = "one"
) -> Tensor:
    """Excitation backprop: relevance follows the positive contributions, and biases take no part.

    On a ReLU network, the probability that a walk from the target ends at a pixel. The maps have the signs of
    `lrp_zplus`, whose `bias="ignore"` this is.

    Returns:
        Maps `[B, T, H, W]`, summed over channels; NaN where a start of 1 belongs to a logit of exactly 0.
    """
    return _to_pixels(model, images, targets, presets.excitation_backprop(start), strict)


@explainer("deep_taylor", family="relevance", signed=True, paper="montavon2017explaining")
def deep_taylor(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    low: Limit = None,
    high: Limit = None,
    start: Start = "one",
) -> Tensor:
    """Deep Taylor decomposition: z⁺, and in the first layers the z-box rule, for images between `low` and `high`.

    In a first layer (its input is the image, moved or rescaled channel by channel at most) pixel i shares in neuron j by
    `x_i w_ji − l_i w_ji⁺ − h_i w_ji⁻`: how far it is from the values that would silence the neuron.

    Args:
        model: any model; on a CNN the maps are not negative.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        low: the least value that a pixel can have, in model-input units, one number or one a channel; black by default.
        high: the largest one; white by default.
        start: relevance at the target, `one` or its `logit`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels; NaN where a start of 1 belongs to a logit of exactly 0.
    """
    return _to_pixels(model, images, targets, presets.deep_taylor(*_box(model, images, low, high), start), strict)


@explainer("lrp_composite", family="relevance", signed=True, paper="montavon2019overview")
def lrp_composite(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    gamma: float = 0.25,
    epsilon: float = 1e-6,
    first: First = "z_box",
    low: Limit = None,
    high: Limit = None,
    start: Start = "logit",
) -> Tensor:
    """LRP with a rule for each depth: ε in dense layers, γ in convolutions, z-box where the image comes in.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        gamma: of the γ rule in convolutions.
        epsilon: of the ε rule in dense layers.
        first: the rule of the first layers: `z_box`, `w_square`, `flat`, or `none` for that of other layers.
        low: with `z_box` the least value of a pixel, as in `deep_taylor`.
        high: the largest one.
        start: relevance at the target, its `logit` or `one`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.
    """
    check_choice("first", first, get_args(First))
    if first != "z_box" and (low is not None or high is not None):
        raise InputError(f"low and high are the limits of first='z_box', got first={first!r}: leave them out.")
    box: dict[str, Any] = {"low": low, "high": high} if first == "z_box" else {}
    at_image = None if first == "none" else rule_of("first", {"rule": first, **box}, partial(_box, model, images))
    return _to_pixels(model, images, targets, presets.lrp_composite(at_image, gamma, epsilon, start), strict)


@explainer("attn_lrp", family="relevance", signed=True, paper="achtibat2024attnlrp")
def attn_lrp(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    gamma_conv: float = 0.25,
    gamma_linear: float = 0.05,
    start: Start = "logit",
) -> Tensor:
    """AttnLRP: LRP for transformers, with softmax by its Taylor expansion and halved products of activations.

    Convolutions have the γ rule with `gamma_conv`, dense layers that with `gamma_linear`; 0 is the plain rule.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.
    """
    return _to_pixels(model, images, targets, presets.attn_lrp(gamma_conv, gamma_linear, start), strict)


@explainer("cp_lrp", family="relevance", signed=True, paper="ali2022xai")
def cp_lrp(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    gamma_conv: float = 0.25,
    gamma_linear: float = 0.05,
    start: Start = "logit",
) -> Tensor:
    """CP-LRP: LRP for transformers in which attention is a constant, so that the values take all relevance.

    Convolutions have the γ rule with `gamma_conv`, dense layers that with `gamma_linear`; 0 is the plain rule.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.
    """
    return _to_pixels(model, images, targets, presets.cp_lrp(gamma_conv, gamma_linear, start), strict)


@explainer("chefer", family="relevance", signed=True, needs={"attention"}, paper="chefer2021transformer")
def chefer(model: Classifier, images: Tensor, targets: Targets, *, strict: bool, start: Start = "one") -> Tensor:
    """Chefer, Gur and Wolf's relevance carried on to the pixels, without the attention maps of `transformer_lrp`.

    z⁺ without biases, products halved, sums by the ratio rule, and in the patch convolution the z-box rule between each
    image's own least and largest value.

    Returns:
        Maps `[B, T, H, W]`, summed over channels; NaN where a start of 1 belongs to a logit of exactly 0.

    Raises:
        UnsupportedModelError: the model has no self-attention: z⁺ of a CNN is `lrp_zplus`.
    """
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    passed = _run(model, images, presets.chefer(low, high, start), strict)
    self_attention(passed)
    return _summed(passed, targets)


@explainer("lrp", family="relevance", signed=True, paper="montavon2019overview")
def lrp(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    rules: Mapping[str, Any] | None = None,
    preset: Preset | None = None,
    start: Start | None = None,
) -> Tensor:
    """LRP with rules of your own, by kind of layer, by depth and by module; ε in all layers that `rules` leaves out.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        rules: a place -> its rule. Places are the kinds `dense`, `conv`, `sums` (also means and average pooling) and `norm`
            (batch norm that follows no layer), the depths `first` (layers that see the image) and `last`, and patterns of
            module paths such as `blocks.*.mlp.*`, of which the first match wins, over the depths too. A rule is a name
            (`z`, `epsilon`, `gamma`, `alpha_beta`, `z_plus`, and for layers that see the image `z_box`, `w_square`, `flat`)
            or a mapping of that name under `rule` and its options, `{"rule": "gamma", "gamma": 0.1}`.
        preset: in place of `rules`, a preset made with `heatproof.relevance.composite`.
        start: relevance at the target, its `logit` or `one`; by default the logit, or what the preset says.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Raises:
        InputError: a rule or option is unknown, or a pattern matches no module with a dense layer or convolution.
        UnsupportedOperationError: a rule of first layers stands at a layer that does not see the image.

    Example:
        >>> import heatproof as hp
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(16, 2))
        >>> rules = {"conv": {"rule": "gamma", "gamma": 0.1}, "first": "flat", "last": "z"}
        >>> hp.explain(net.eval(), torch.rand(1, 3, 4, 4), method="lrp", rules=rules).shape
        torch.Size([1, 4, 4])
    """
    if preset is None:
        preset = composite_of({} if rules is None else rules, start or "logit", partial(_box, model, images))
    elif not isinstance(preset, Preset):
        raise InputError(
            f"preset must be a heatproof.relevance.Preset, got {preset!r}: write names of rules into rules=."
        )
    elif rules is not None:
        raise InputError("lrp takes rules or a preset, got both: leave one out.")
    return _to_pixels(model, images, targets, preset if start is None else replace(preset, start=start), strict)


def _box(model: Classifier, images: Tensor, low: Limit, high: Limit) -> tuple[Tensor, Tensor]:
    """The least and the largest values of a pixel, `[C, 1, 1]` each; those of the raw intensities by default."""
    least, most = _limit("low", low, model, images), _limit("high", high, model, images)
    if (least >= most).any():
        raise InputError(f"low must lie below high in every channel, got {_listed(least)} and {_listed(most)}.")
    return least, most


def _limit(name: str, value: Limit, model: Classifier, images: Tensor) -> Tensor:
    channels = images.shape[1]
    if value is None:
        if model.preprocessing.mean is None:
            raise InputError(
                f"The z-box rule needs the least and the largest value of a pixel, and this model's normalisation is "
                f"unknown: give low= and high= in model-input units ({name} is missing), or Classifier(module, mean=..., "
                "std=...)."
            )
        return model.intensity_range[0 if name == "low" else 1].to(images)
    values = images.new_tensor(value).flatten()
    if len(values) not in (1, channels):
        raise InputError(f"{name} must be one number or one for each of the {channels} channels, got {value!r}.")
    return values.expand(channels).view(-1, 1, 1)


def _listed(limit: Tensor) -> list[float]:
    return [round(value, 4) for value in limit.flatten().tolist()]


def _to_pixels(model: Classifier, images: Tensor, targets: Targets, preset: Preset, strict: bool) -> Tensor:
    return _summed(_run(model, images, preset, strict), targets)


def _run(model: Classifier, images: Tensor, preset: Preset, strict: bool) -> ForwardPass:
    check_choice("start", preset.start, get_args(Start))
    return run(model, images, preset, strict=strict)


def _summed(passed: ForwardPass, targets: Targets) -> Tensor:
    """The relevance of each pixel, summed over channels, for each target `[B, T, H, W]`."""
    scores = targets.in_turn(passed.logits)
    return torch.stack([passed.relevance(score, last=last).sum(1) for score, last in scores], 1)
