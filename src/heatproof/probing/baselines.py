"""What a pixel is replaced with."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.checks import check_number
from heatproof.errors import InputError, near_names
from heatproof.probing.inpainting import NOISE, inpaint
from heatproof.probing.randomness import SampleRandom

Baseline: TypeAlias = str | float | Tensor

Black: TypeAlias = Callable[[], Tensor]

Filling: TypeAlias = Callable[[Tensor], Tensor]
"""Masks `[B, k, H, W]` to masked images `[B, k, C, H, W]`."""


def make_filling(baseline: Baseline, images: Tensor, *, black: Black, random: SampleRandom) -> Filling:
    """How masks are applied to `images` `[B, C, H, W]`: bool masks, or the replaced share of each pixel as a float.

    Args:
        baseline: `inpaint`, whose values depend on the mask (noisy linear imputation, for bool masks), or any of
            `make_baseline`.
        images: float `[B, C, H, W]`.
        black: see `make_baseline`.
        random: the samples' random streams, for `noise` and `inpaint`.

    Raises:
        InputError: as `make_baseline`; masks of shares under `inpaint`.
    """
    if isinstance(baseline, str) and baseline == "inpaint":
        noise = (NOISE * random.normal(*images.shape[1:], purpose="inpaint noise")).to(images)
        return lambda masks: inpaint(images, _whole(masks), noise)
    replacement = make_baseline(baseline, images, black=black, random=random)

    def fill(masks: Tensor) -> Tensor:
        if masks.dtype == torch.bool:
            return torch.where(masks[:, :, None], replacement[:, None], images[:, None])
        return torch.lerp(images[:, None], replacement[:, None], masks[:, :, None].to(images))

    return fill


def _whole(masks: Tensor) -> Tensor:
    if masks.dtype != torch.bool:
        raise InputError(
            "baseline='inpaint' replaces whole pixels, and these masks replace shares of them: choose another."
        )
    return masks


def make_baseline(baseline: Baseline, images: Tensor, *, black: Black, random: SampleRandom) -> Tensor:
    """The replacement of every pixel of `images` `[B, C, H, W]`, of the same shape, in model-input units.

    Args:
        baseline: `black` (intensity 0 of the raw image), `mean` (of each channel of the image), `min` (the smallest value of
            the image, over all channels), `noise` (uniform between each channel's extremes, drawn once an image), `blur`
            (Gaussian, σ a twentieth of the shorter side), a number, or a tensor that broadcasts to the images
            (`[C, H, W]` for all, or one `[C, H, W]` for each of them).
        images: float `[B, C, H, W]`.
        black: gives black in model-input units, `[C, 1, 1]`; may raise where the normalisation is unknown.
        random: the samples' random streams, for `noise`.

    Raises:
        InputError: an unknown name, a tensor that does not fit, or `black` under an unknown normalisation.
    """
    if isinstance(baseline, Tensor):
        return _broadcast(baseline, images)
    if isinstance(baseline, str):
        if baseline not in BASELINES:
            raise InputError(
                f"Unknown baseline {baseline!r}: give a number, a tensor or a name. {near_names(baseline, NAMES)}"
            )
        return BASELINES[baseline](images, black, random).expand_as(images)
    return torch.full_like(images, check_number("baseline", baseline, low=-float("inf")))


def options_of_rows(options: Mapping[str, Any], images: int, rows: slice, repeats: int = 1) -> Mapping[str, Any]:
    """The options for some of the `images`: a `baseline` that holds an image for each of them is cut as they are.

    `repeats` is how often each image stands there, for as many targets.

    >>> options = options_of_rows({"baseline": torch.arange(3.0).view(3, 1, 1, 1)}, 3, slice(1, 3), repeats=2)
    >>> options["baseline"].flatten().tolist()
    [1.0, 1.0, 2.0, 2.0]
    """
    baseline = options.get("baseline")
    if isinstance(baseline, Tensor) and baseline.ndim == 4 and len(baseline) == images > 1:
        return {**options, "baseline": baseline[rows].repeat_interleave(repeats, 0)}
    return options


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of `[B, C, H, W]`, cut off at 3σ, the border repeated outwards."""
    reach = math.ceil(3 * sigma)
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    planes = F.pad(images.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    blurred = F.conv2d(F.conv2d(planes, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))
    return blurred.view_as(images)


def _broadcast(baseline: Tensor, images: Tensor) -> Tensor:
    try:
        return baseline.to(images).expand_as(images)
    except RuntimeError:
        raise InputError(
            f"A baseline tensor must broadcast to the images {list(images.shape)}, got {list(baseline.shape)}."
        ) from None


def _noise(images: Tensor, _: Black, random: SampleRandom) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return low + (high - low) * random.uniform(*images.shape[1:], purpose="noise baseline").to(images)


BASELINES: dict[str, Callable[[Tensor, Black, SampleRandom], Tensor]] = {
    "black": lambda images, black, _: black().to(images),
    "mean": lambda images, *_: images.mean((2, 3), keepdim=True),
    "min": lambda images, *_: images.amin((1, 2, 3), keepdim=True),
    "noise": _noise,
    "blur": lambda images, *_: blur(images, min(images.shape[-2:]) / 20),
}

NAMES = (*BASELINES, "inpaint", "drop")  # the last two depend on the mask: see `make_filling` and `BoundProbe`
