"""Does the map point at the region that an expert marked?"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.checks import check_choice, check_number
from heatproof.errors import InputError
from heatproof.metrics.registry import METRICS, Case, metric

Empty = Literal["nan", "zero"]


@metric(
    "pointing_game",
    category="localization",
    higher_is_better=True,
    bounds=(0, 1),
    needs={"roi"},
    paper="zhang2018topdown",
)
def pointing_game(
    case: Case,
    *,
    tolerance: float = 0,
    ties: Literal["fraction", "any"] = "fraction",
    empty: Empty = "nan",
    absolute: bool = False,
) -> Tensor:
    """Whether the highest point of the map lies in the region.

    Args:
        case: N samples with regions.
        tolerance: a point this many pixels (Euclidean) from the region still hits.
        ties: where several pixels share the maximum: the `fraction` of them that hits, or 1 if `any` does.
        empty: the score of an empty region.
        absolute: use |a| instead of a.

    Returns:
        `[N]`, 1 for a hit; NaN for an undefined map, or an empty region under `empty="nan"`.
    """
    check_choice("ties", ties, ("fraction", "any"))
    values, undefined = case.values(absolute)
    highest = values == values.amax((1, 2), keepdim=True)
    hits = highest & _grow(case.regions, check_number("tolerance", tolerance))
    share = hits.sum((1, 2)).double() / highest.sum((1, 2))
    found = share if ties == "fraction" else (share > 0).double()
    return _settle(found, case.regions, undefined, empty)


@metric(
    "iou", category="localization", higher_is_better=True, bounds=(0, 1), needs={"roi"}, paper="chung2024evaluating"
)
def iou(
    case: Case,
    *,
    top: float = 20,
    shape: Literal["mask", "rectangle"] = "mask",
    threshold: Literal["otsu"] | float | None = None,
    empty: Empty = "nan",
    absolute: bool = False,
) -> Tensor:
    """Intersection over union of the region and the highest part of the map.

    Args:
        case: N samples with regions.
        top: keep the values at or above the percentile `100 − top`.
        shape: compare the kept pixels themselves (`mask`), or the bounding `rectangle` of all of them.
        threshold: in place of `top`, a number that the map, scaled to [0, 1] by its extremes, must reach; or `otsu`, Otsu's
            threshold of that map in 256 levels.
        empty: the score of an empty region.
        absolute: use |a| instead of a.

    Returns:
        `[N]`; NaN for an undefined map, or an empty region under `empty="nan"`.
    """
    check_choice("shape", shape, ("mask", "rectangle"))
    check_number("top", top, high=100)
    if threshold is not None and top != 20:
        raise InputError(f"threshold={threshold!r} replaces top: leave top={top!r} out.")
    values, undefined = case.values(absolute)
    kept = _top(values, top) if threshold is None else _at_least(_scaled(values), threshold)
    if shape == "rectangle":
        kept = _bounding_rectangle(kept)
    both, either = (kept & case.regions).sum((1, 2)), (kept | case.regions).sum((1, 2))
    return _settle(both.double() / either, case.regions, undefined, empty)


@metric("relevance_mass_accuracy", category="localization", higher_is_better=True, bounds=(0, 1), needs={"roi"},
        paper="arras2022clevr")  # fmt: skip
def relevance_mass_accuracy(case: Case, *, absolute: bool = False) -> Tensor:
    """Share of the map's positive mass that lies in the region: `Σ_ROI a⁺ / Σ a⁺`. Also the energy pointing game.

    Args:
        case: N samples with regions.
        absolute: use |a| instead of a.

    Returns:
        `[N]`; NaN for an undefined map, a map without positive values or an empty region.
    """
    values, undefined = case.values(absolute)
    mass = values.clamp(min=0).double()
    found = mass.where(case.regions, 0.0).sum((1, 2)) / mass.sum((1, 2))
    return _settle(found, case.regions, undefined, "nan")


METRICS.add_alias("energy_pointing_game", "relevance_mass_accuracy")


def _settle(found: Tensor, regions: Tensor, undefined: Tensor, empty: Empty) -> Tensor:
    """The score, or what stands in its place where the region is empty or the map undefined."""
    check_choice("empty", empty, ("nan", "zero"))
    found = found.masked_fill(~regions.any(2).any(1), torch.nan if empty == "nan" else 0.0)
    return found.masked_fill(undefined, torch.nan)


def _grow(regions: Tensor, reach: float) -> Tensor:
    """The pixels within `reach` of the region."""
    side = math.floor(reach)
    if side == 0:
        return regions
    offsets = torch.arange(-side, side + 1, device=regions.device)
    disk = (offsets[:, None] ** 2 + offsets**2 <= reach**2).float()
    return F.conv2d(regions[:, None].float(), disk[None, None], padding=side)[:, 0] > 0.5


def _top(values: Tensor, top: float) -> Tensor:
    """Where the values reach the percentile `100 − top`, whose kept set is that of one whole order statistic."""
    flat = values.flatten(1)
    count = 1 + math.floor((flat.shape[1] - 1) * top / 100 + 1e-9)
    lowest = flat.kthvalue(flat.shape[1] - count + 1, dim=1).values
    return values >= lowest[:, None, None]


def _scaled(values: Tensor) -> Tensor:
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    return (values - low) / (high - low)


def _at_least(scaled: Tensor, threshold: str | float) -> Tensor:
    if threshold != "otsu":
        if isinstance(threshold, str):
            raise InputError(f"threshold must be 'otsu', a number from 0 to 1 or None, got {threshold!r}.")
        return scaled >= check_number("threshold", threshold, high=1)
    levels = (scaled.nan_to_num() * 255).floor().long()
    return levels > _otsu_level(levels.flatten(1))[:, None, None]


def _otsu_level(levels: Tensor) -> Tensor:
    """The level `[N]` of 0..255 `[N, P]` above which the foreground lies, with the largest variance between the two."""
    counts = torch.zeros(len(levels), 256, dtype=torch.float64, device=levels.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.float64))
    below, total = counts.cumsum(1), levels.shape[1]
    mass = (counts * torch.arange(256, device=levels.device)).cumsum(1)
    above = total - below
    difference = mass / below - (mass[:, -1:] - mass) / above
    return (below * above * difference.square()).nan_to_num(-1.0).argmax(1)


def _bounding_rectangle(kept: Tensor) -> Tensor:
    """The smallest rectangle that holds all kept pixels."""
    rows, columns = (_filled(kept.any(axis)) for axis in (2, 1))
    return rows[:, :, None] & columns[:, None, :]


def _filled(line: Tensor) -> Tensor:
    """True from the first to the last True of each line `[N, L]`."""
    count = line.long().cumsum(1)
    return (count > 0) & ((count < count[:, -1:]) | line)
