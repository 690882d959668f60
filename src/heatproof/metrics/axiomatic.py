"""Does the explanation keep what it must by definition?"""

import math
from collections.abc import Hashable, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.checks import check_count, check_number
from heatproof.errors import InputError, UnsupportedModelError
from heatproof.metrics.randomization import with_module
from heatproof.metrics.registry import Case, metric
from heatproof.metrics.robustness import norms
from heatproof.models import Classifier
from heatproof.probing import Baseline, RankMasks, rank_pixels


def _empty_image(options: Mapping[str, Any], _: int) -> dict[Hashable, int]:
    return {("empty", str(options["baseline"])): 1}


@metric("completeness", category="axiomatic", higher_is_better=False, bounds=(0, None), needs={"model"},
        paper="sundararajan2017axiomatic", passes=_empty_image)  # fmt: skip
def completeness(case: Case, *, baseline: Baseline = "black", output: str = "logit") -> Tensor:
    """How far the sum of the map is from what the output gains over the baseline, as a share of that.

    Formula:
        |Σa − (f(x) − f(baseline))| / |f(x) − f(baseline)|

    Args:
        case: N samples.
        baseline: the image without evidence, see `make_baseline`; integrated gradients are complete for their own.
        output: `probability` or `logit`, which is what explainers explain.

    Returns:
        `[N]`; NaN for an undefined map, or where the output is that of the baseline.

    Quantus:
        Differs: `Completeness` compares two floats for equality, so that a map which misses a ten-thousandth is not
        complete.
    """
    everything = RankMasks.leading(torch.zeros_like(case.maps, dtype=torch.int32), [1])
    empty = case.probe(everything, baseline=baseline, output=output)[:, 0]
    gain = case.probe.unmasked(output=output).double() - empty
    found = (case.maps.double().sum((1, 2)) - gain).abs() / gain.abs()
    return found.masked_fill(case.undefined | (gain == 0), torch.nan)


def _each_pixel(options: Mapping[str, Any], pixels: int) -> dict[Hashable, int]:
    return {("ascending", options["step"], str(options["baseline"])): -(-pixels // options["step"])}


@metric("non_sensitivity", category="axiomatic", higher_is_better=False, bounds=(0, 1), needs={"model"},
        paper="nguyen2020quantitative", passes=_each_pixel)  # fmt: skip
def non_sensitivity(
    case: Case,
    *,
    step: int = 1,
    tolerance: float = 1e-5,
    baseline: Baseline = "black",
    output: str = "probability",
) -> Tensor:
    """The share of the pixels of which map and model disagree whether they matter.

    A pixel matters to the map if |a| is above a small share of the largest, and to the model if the output changes when it
    is replaced.

    Formula:
        #({i : |a_i| > tolerance · max |a|} △ {i : |f(x) − f(x∖i)| > tolerance}) / P

    Args:
        case: N samples.
        step: pixels replaced together, successive ones in the ascending order of |a|; 1, the definition, runs the model once
            for every pixel.
        tolerance: the share of the largest |a|, and the change of the output, that must be exceeded.
        baseline: what replaces a pixel, see `make_baseline`.
        output: `probability` or `logit`.

    Returns:
        `[N]`; NaN for an undefined map.

    Quantus:
        Follows `NonSensitivity` under `abs=True` for maps whose largest |a| is 1, divided by the number of pixels, but for
        a pixel just at the limit. Differs in that negative values count as none there without `abs=True`.
    """
    sizes = case.maps.abs()
    check_number("tolerance", tolerance)
    ranking = rank_pixels(-sizes, case.random)
    masks = RankMasks.successive(ranking.ranks, check_count("step", step, high=ranking.pixels))
    changed = case.probe(masks, baseline=baseline, output=output)
    effects = (changed.double() - case.probe.unmasked(output=output)[:, None]).abs()
    to_model = (effects > tolerance).repeat_interleave(step, 1)[:, : ranking.pixels]
    to_map = (sizes > tolerance * sizes.amax((1, 2), keepdim=True)).flatten(1).gather(1, ranking.order)
    return (to_model != to_map).double().mean(1).masked_fill(case.undefined, torch.nan)


@metric("input_invariance", category="axiomatic", higher_is_better=False, bounds=(0, None), needs={"model", "explain"},
        paper="kindermans2019unreliability")  # fmt: skip
def input_invariance(case: Case, *, shift: float = -1.0) -> Tensor:
    """Relative change of the map when image and model are shifted so that nothing else changes.

    A constant m is added to the image, and the first layer of a copy of the model takes it out again by its bias, so that Φ′
    explains the same function. Where the first layer has no bias, that of the copy has one; where it pads the image with
    zeros, the copy pads with m.

    Formula:
        ‖Φ′(x+m) − Φ(x)‖ / ‖Φ(x)‖

    Args:
        case: N samples.
        shift: m, in model-input units, other than 0.

    Returns:
        `[N]`; NaN for an undefined map.

    Raises:
        UnsupportedModelError: the first layer is no convolution or dense layer that is given the image itself.

    Quantus:
        Differs: `InputInvariance` leaves the first pixel where it is, so that even a gradient is not invariant, and
        answers yes or no.
    """
    if check_number("shift", shift, low=-math.inf) == 0:
        raise InputError("shift must be another number than 0, which changes nothing.")
    moved, images = shifted(case.model, case.images, shift), case.images + shift
    change = norms(case.explain(images, model=moved).double() - case.maps)
    return (change / norms(case.maps)).masked_fill(case.undefined, torch.nan)


def shifted(model: Classifier, images: Tensor, shift: float) -> Classifier:
    """A copy of the model that gives for `images + shift` what the model gives for `images` `[B, C, H, W]`.

    Raises:
        UnsupportedModelError: the first layer cannot take the shift out again.
    """
    twin = with_module(model, deepcopy(model.module))
    path, layer = _first_layer(twin, images[:1])
    if layer.bias is None:
        layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))
    with torch.no_grad():
        layer.bias -= shift * layer.weight.flatten(1).sum(1)
        if isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and layer.padding != (0, 0):
            _pad_with(shift, twin, path, layer)
        before, after = model(images[:1]).double(), twin(images[:1] + shift).double()
    if not torch.allclose(before, after, rtol=0, atol=1e-3 * float(before.abs().max())):
        raise UnsupportedModelError(
            f"The bias of the first layer, {path!r}, cannot take a shift of the image out again: the layer is given "
            "something else than the image, or the image goes elsewhere too."
        )
    return twin


def _first_layer(model: Classifier, image: Tensor) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Path and module of the convolution or dense layer that runs first; `model` is a copy of the user's."""
    ran: list[str] = []
    layers = {path: part for path, part in model.module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    hooks = [part.register_forward_pre_hook(lambda *_, path=path: ran.append(path)) for path, part in layers.items()]
    with torch.no_grad():
        model(image)
    for hook in hooks:
        hook.remove()
    if not ran:
        raise UnsupportedModelError(
            "input_invariance shifts the bias of the model's first layer, and this model runs no nn.Conv2d or nn.Linear."
        )
    return ran[0], layers[ran[0]]


def _pad_with(value: float, model: Classifier, path: str, layer: nn.Conv2d) -> None:
    """Let a copy's convolution pad its input with `value` instead of zeros."""
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    padded = nn.Sequential(nn.ConstantPad2d((left, right, top, bottom), value), layer).eval()
    layer.padding = (0, 0)
    if path:
        model.module.set_submodule(path, padded)
    else:
        model.module = padded
