"""Layer-wise relevance propagation to the pixels, for any model."""

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from heatproof.checks import check_choice, check_number
from heatproof.errors import InputError
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.relevance import Preset, presets, run
from heatproof.relevance.mode import Start


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
        epsilon = 0.25 if relative else 1e-6
    return _to_pixels(model, images, targets, presets.lrp_epsilon(epsilon, relative, start), strict)


@explainer("lrp_alpha_beta", family="relevance", signed=True, paper="bach2015pixelwise")
def lrp_alpha_beta(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    alpha: float = 2.0,
    beta: float = 1.0,
    start: Start = "one",
) -> Tensor:
    """LRP with the αβ rule: what speaks for a neuron shares α of its relevance, what speaks against it −β.

    `R_i = Σ_j [α (x_i w_ji)⁺ / P_j − β (x_i w_ji)⁻ / N_j] R_j` with the sums P and N of the positive and the negative
    contributions, biases among them, in everything that is linear. α − β must be 1. Relevance starts as 1, because from a
    negative logit every sign would be turned; `start="logit"` starts with the target's logit.

    Returns:
        Maps `[B, T, H, W]`, summed over channels; NaN where a start of 1 belongs to a logit of exactly 0.
    """
    check_number("alpha", alpha, low=1.0)
    check_number("beta", beta)
    if not math.isclose(alpha - beta, 1, abs_tol=1e-6):
        raise InputError(
            f"alpha - beta must be 1, got alpha={alpha}, beta={beta}: choose alpha=2, beta=1, or alpha=1, beta=0. "
            "Where a text writes alpha + beta = 1, its beta is negative: drop the sign."
        )
    return _to_pixels(model, images, targets, presets.lrp_alpha_beta(alpha, beta, start), strict)


@explainer("lrp_zplus", family="relevance", signed=True, paper="montavon2017explaining")
def lrp_zplus(model: Classifier, images: Tensor, targets: Targets, *, strict: bool, start: Start = "one") -> Tensor:
    """LRP with the z⁺ rule: relevance follows the positive contributions only (αβ with α = 1, β = 0).

    On a CNN the maps are not negative; the norms and attention of a transformer make relevance of both signs. Relevance
    starts as 1, or as the target's logit with `start="logit"`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels; NaN where a start of 1 belongs to a logit of exactly 0.
    """
    return _to_pixels(model, images, targets, presets.lrp_zplus(start), strict)


@explainer("deep_taylor", family="relevance", signed=True, paper="montavon2017explaining")
def deep_taylor(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    low: float | Sequence[float] | None = None,
    high: float | Sequence[float] | None = None,
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
    least, most = _limit("low", low, model, images), _limit("high", high, model, images)
    if (least >= most).any():
        raise InputError(f"low must lie below high in every channel, got {_listed(least)} and {_listed(most)}.")
    return _to_pixels(model, images, targets, presets.deep_taylor(least, most, start), strict)


def _limit(name: str, value: float | Sequence[float] | None, model: Classifier, images: Tensor) -> Tensor:
    """An end of the box, `[C, 1, 1]`."""
    channels = images.shape[1]
    if value is None:
        if model.preprocessing.mean is None:
            raise InputError(
                f"deep_taylor needs the least and the largest value of a pixel, and this model's normalisation is unknown: "
                f"give low= and high= in model-input units ({name} is missing), or Classifier(module, mean=..., std=...)."
            )
        return model.intensity_range[0 if name == "low" else 1].to(images)
    values = images.new_tensor(value).flatten()
    if len(values) not in (1, channels):
        raise InputError(f"{name} must be one number or one for each of the {channels} channels, got {value!r}.")
    return values.expand(channels).view(-1, 1, 1)


def _listed(limit: Tensor) -> list[float]:
    return [round(value, 4) for value in limit.flatten().tolist()]


def _to_pixels(model: Classifier, images: Tensor, targets: Targets, preset: Preset, strict: bool) -> Tensor:
    check_choice("start", preset.start, get_args(Start))
    passed = run(model, images, preset, strict=strict)
    scores = targets.score(passed.logits).unbind(1)
    return torch.stack([passed.relevance(score).sum(1) for score in scores], 1)
