"""Does the map point at the region that an expert marked?

Every metric here takes `tokens`: False compares pixels; True or (rows, columns) compares the cells of a grid, on which the
map is averaged (unless it comes on that grid) and the region is the share of each cell that it covers. A cell then counts
for its area, which is what its pixels would give if they all had its value. True is the grid of the maps where they have
one of their own, and else that of the model's patches. With `coverage` a cell counts whole if the region covers at least
that share of it, and else not at all: small regions vanish.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.checks import check_choice, check_count, check_number
from heatproof.errors import InputError
from heatproof.metrics import thresholds
from heatproof.metrics.registry import METRICS, Case, is_undefined, metric
from heatproof.metrics.thresholds import Shape, Threshold
from heatproof.metrics.tokens import Tokens, area_average, resolve_grid

Empty = Literal["nan", "zero"]

_ROUNDING = 1e-9


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
    tokens: Tokens = False,
    coverage: float | None = None,
) -> Tensor:
    """Whether the highest point of the map lies in the region.

    Formula:
        1 if argmax a ∈ ROI, else 0

    Args:
        case: N samples with regions.
        tolerance: a point this many pixels (Euclidean) from the region still hits.
        ties: where several pixels share the maximum: the `fraction` of them that hits, or the best of them (`any`).
        empty: the score of an empty region.
        absolute: use |a| instead of a.
        tokens: compare cells: a cell hits by its share in the region.
        coverage: the share from which on a cell is in the region.

    Returns:
        `[N]`, 1 for a hit; NaN for an undefined map, or an empty region under `empty="nan"`.

    Quantus:
        Follows `PointingGame` under `ties="any"`. Differs for an empty region, which is a hit there.
    """
    check_choice("ties", ties, ("fraction", "any"))
    region = _grow(case.regions, check_number("tolerance", tolerance))
    view = _view(case, region, absolute, tokens, coverage)
    highest = view.values == view.values.amax((1, 2), keepdim=True)
    if ties == "fraction":
        found = view.inside(highest) / highest.sum((1, 2))
    else:
        found = view.region.where(highest, 0.0).amax((1, 2)).double()
    return view.settle(found, empty)


@metric(
    "iou", category="localization", higher_is_better=True, bounds=(0, 1), needs={"roi"}, paper="chung2024evaluating"
)
def iou(
    case: Case,
    *,
    top: float = 20,
    shape: Shape = "mask",
    threshold: Threshold | None = None,
    fill: bool = False,
    empty: Empty = "nan",
    absolute: bool = False,
    tokens: Tokens = False,
    coverage: float | None = None,
) -> Tensor:
    """Intersection over union of the region and the highest part of the map.

    Formula:
        |K ∩ ROI| / |K ∪ ROI|,  K the kept pixels

    Args:
        case: N samples with regions.
        top: keep the values at or above the percentile `100 − top`.
        shape: compare the kept pixels themselves (`mask`), or the bounding `rectangle` of all of them.
        threshold: in place of `top`, a number that the map, scaled to [0, 1] by its extremes, must reach; or `otsu`, Otsu's
            threshold of that map in 256 levels.
        fill: fill the holes of the kept part.
        empty: the score of an empty region. (The evaluation of `saporta2022benchmarking` has `nan` on true positives only,
            `zero` else.)
        absolute: use |a| instead of a.
        tokens: compare the areas of cells.
        coverage: the share from which on a cell is in the region.

    Returns:
        `[N]`; NaN for an undefined map, or an empty region under `empty="nan"`.

    Quantus:
        Not in Quantus.
    """
    view = _view(case, case.regions, absolute, tokens, coverage)
    kept = thresholds.kept(view.values, top, shape, threshold, fill)
    both = view.inside(kept)
    return view.settle(both / (kept.sum((1, 2)) + view.size - both), empty)


@metric("dice", category="localization", higher_is_better=True, bounds=(0, 1), needs={"roi"}, paper="dice1945measures")
def dice(
    case: Case,
    *,
    top: float = 20,
    shape: Shape = "mask",
    threshold: Threshold | None = None,
    fill: bool = False,
    empty: Empty = "nan",
    absolute: bool = False,
    tokens: Tokens = False,
    coverage: float | None = None,
) -> Tensor:
    """Dice coefficient of the region and the highest part of the map: twice the intersection over the sum of the two.

    Arguments and undefined cases are those of `iou`; `dice = 2 iou / (1 + iou)` for each sample.

    Formula:
        2 |K ∩ ROI| / (|K| + |ROI|),  K the kept pixels

    Returns:
        `[N]`.

    Quantus:
        Not in Quantus.
    """
    view = _view(case, case.regions, absolute, tokens, coverage)
    kept = thresholds.kept(view.values, top, shape, threshold, fill)
    return view.settle(2 * view.inside(kept) / (kept.sum((1, 2)) + view.size), empty)


@metric("relevance_mass_accuracy", category="localization", higher_is_better=True, bounds=(0, 1), needs={"roi"},
        paper="arras2022clevr")  # fmt: skip
def relevance_mass_accuracy(
    case: Case, *, absolute: bool = False, tokens: Tokens = False, coverage: float | None = None
) -> Tensor:
    """Share of the map's positive mass that lies in the region.

    Formula:
        Σ_ROI a⁺ / Σ a⁺

    Args:
        case: N samples with regions.
        absolute: use |a| instead of a.
        tokens: sum over cells, each by its share in the region.
        coverage: the share from which on a cell is in the region.

    Returns:
        `[N]`; NaN for an undefined map, a map without positive values or an empty region.

    Quantus:
        Follows `RelevanceMassAccuracy` for positive maps. Differs for signed ones, where Quantus divides signed sums,
        which is no share: it can leave [0, 1].
    """
    view = _view(case, case.regions, absolute, tokens, coverage)
    return view.settle(_mass_share(view))


METRICS.add_alias("energy_pointing_game", "relevance_mass_accuracy")


@metric("attribution_localization", category="localization", higher_is_better=True, bounds=(0, None), needs={"roi"},
        paper="kohlbrenner2020towards")  # fmt: skip
def attribution_localization(
    case: Case,
    *,
    weighted: bool = False,
    absolute: bool = False,
    tokens: Tokens = False,
    coverage: float | None = None,
) -> Tensor:
    """Share of the map's positive mass that lies in the region, on request in relation to the region's size.

    Formula:
        Σ_ROI a⁺ / Σ a⁺,  weighted: times P / |ROI|

    Args:
        case: N samples with regions.
        weighted: multiply by the whole area over that of the region: 1 is then what an even map has.
        absolute: use |a| instead of a.
        tokens: sum over cells, each by its share in the region.
        coverage: the share from which on a cell is in the region.

    Returns:
        `[N]`; NaN for an undefined map, a map without positive values or an empty region.

    Quantus:
        Follows `AttributionLocalisation` for positive maps. Differs under `weighted`, where Quantus multiplies by the
        region's share of the image and the source divides by it, and where it takes that share of all images after the
        second rather than of one.
    """
    view = _view(case, case.regions, absolute, tokens, coverage)
    share = _mass_share(view)
    return view.settle(share * view.cells / view.size if weighted else share)


@metric("relevance_rank_accuracy", category="localization", higher_is_better=True, bounds=(0, 1), needs={"roi"},
        paper="arras2022clevr")  # fmt: skip
def relevance_rank_accuracy(
    case: Case, *, absolute: bool = False, tokens: Tokens = False, coverage: float | None = None
) -> Tensor:
    """Share of the region among as many of the highest pixels as it has.

    Pixels tied at the cut count by their share, which is the mean over all ways to break the tie.

    Formula:
        |top-|ROI| ∩ ROI| / |ROI|

    Args:
        case: N samples with regions.
        absolute: use |a| instead of a.
        tokens: compare the areas of cells: the highest ones that have the region's area, the last one in part.
        coverage: the share from which on a cell is in the region.

    Returns:
        `[N]`; NaN for an undefined map or an empty region.

    Quantus:
        Follows `RelevanceRankAccuracy`.
    """
    view = _view(case, case.regions, absolute, tokens, coverage)
    return view.settle(view.inside(thresholds.leading(view.values, view.size)) / view.size)


@metric("top_k_intersection", category="localization", higher_is_better=True, bounds=(0, 1), needs={"roi"},
        paper="theiner2022interpretable")  # fmt: skip
def top_k_intersection(
    case: Case, *, k: int = 1000, absolute: bool = False, tokens: Tokens = False, coverage: float | None = None
) -> Tensor:
    """Share of the k highest pixels that lies in the region.

    Pixels tied at the cut count by their share, which is the mean over all ways to break the tie.

    Formula:
        |top-k ∩ ROI| / k

    Args:
        case: N samples with regions.
        k: number of pixels, also under `tokens`.
        absolute: use |a| instead of a.
        tokens: compare the areas of cells: the highest ones that have the area of k pixels, the last one in part.
        coverage: the share from which on a cell is in the region.

    Returns:
        `[N]`; NaN for an undefined map or an empty region.

    Quantus:
        Follows `TopKIntersection`.
    """
    view = _view(case, case.regions, absolute, tokens, coverage)
    pixels = case.regions[0].numel()
    cells = torch.full_like(view.size, check_count("k", k, high=pixels) * view.cells / pixels)
    return view.settle(view.inside(thresholds.leading(view.values, cells)) / cells)


@metric("roi_auc", category="localization", higher_is_better=True, bounds=(0, 1), needs={"roi"},
        paper="hanley1982meaning")  # fmt: skip
def roi_auc(case: Case, *, absolute: bool = False, tokens: Tokens = False, coverage: float | None = None) -> Tensor:
    """Area under the ROC curve of the map as a score for lying in the region.

    The probability that a pixel of the region has a higher value than one outside; a tie counts one half.

    Formula:
        P(a_in > a_out) + ½ P(a_in = a_out)

    Args:
        case: N samples with regions.
        absolute: use |a| instead of a.
        tokens: compare cells, each with its share inside and its share outside.
        coverage: the share from which on a cell is in the region.

    Returns:
        `[N]`; NaN for an undefined map, or a region that is empty or the whole image.

    Quantus:
        Follows `AUC`.
    """
    view = _view(case, case.regions, absolute, tokens, coverage)
    values, order = view.values.flatten(1).sort(1)
    inside = view.region.flatten(1).double().gather(1, order)
    outside = 1 - inside
    lead = (inside * _below(outside, values) - outside * _below(inside, values)).sum(1)
    return view.settle(0.5 + lead / (2 * inside.sum(1) * outside.sum(1)))


def _below(weights: Tensor, ascending: Tensor) -> Tensor:
    """The weight of all strictly lower values, for each of the values `[N, P]` in ascending order."""
    first = torch.ones_like(ascending, dtype=torch.bool)
    first[:, 1:] = ascending[:, 1:] > ascending[:, :-1]
    return (weights.cumsum(1) - weights).where(first, 0.0).cummax(1).values


@dataclass(frozen=True)
class _View:
    """What is compared: the map's values `[N, h, w]` and the region as the share of each cell that lies in it."""

    values: Tensor
    region: Tensor
    undefined: Tensor

    @property
    def cells(self) -> int:
        """h·w."""
        return self.region[0].numel()

    @property
    def size(self) -> Tensor:
        """The size of the region in cells, float64 `[N]`."""
        return self.region.sum((1, 2), dtype=torch.float64)

    def inside(self, part: Tensor) -> Tensor:
        """The size in cells of what `part` `[N, h, w]` (bool, or the share of each cell) has in common with the region."""
        dtype = torch.promote_types(part.dtype, self.region.dtype)  # float32 where all are 0 or 1: sums are then exact
        common: Tensor = torch.linalg.vecdot(part.flatten(1).to(dtype), self.region.flatten(1).to(dtype))
        return common.double()

    def settle(self, found: Tensor, empty: Empty = "nan") -> Tensor:
        """The score, or what stands in its place where the region is empty or the map undefined."""
        check_choice("empty", empty, ("nan", "zero"))
        found = found.masked_fill(self.size == 0, torch.nan if empty == "nan" else 0.0)
        return found.masked_fill(self.undefined, torch.nan)


def _view(case: Case, region: Tensor, absolute: bool, tokens: Tokens, coverage: float | None) -> _View:
    if tokens is False:
        if coverage is not None:
            raise InputError(f"coverage={coverage!r} is that of a cell: give it together with tokens=True.")
        values, undefined = case.values(absolute)
        return _View(values, region.float(), undefined)
    grid = resolve_grid(case, tokens)
    maps = case.maps if case.maps.shape[1:] == grid else area_average(case.maps, grid).float()
    share = area_average(region, grid)
    if coverage is not None:
        share = (share >= check_number("coverage", coverage, high=1) - _ROUNDING).double()
    values = maps.abs() if absolute else maps
    return _View(values, share, is_undefined(values))


def _mass_share(view: _View) -> Tensor:
    mass = view.values.clamp(min=0).double()
    return (mass * view.region).sum((1, 2)) / mass.sum((1, 2))


def _grow(regions: Tensor, reach: float) -> Tensor:
    """The pixels within `reach` of the region."""
    side = math.floor(reach)
    if side == 0:
        return regions
    offsets = torch.arange(-side, side + 1, device=regions.device)
    disk = (offsets[:, None] ** 2 + offsets**2 <= reach**2).float()
    return F.conv2d(regions[:, None].float(), disk[None, None], padding=side)[:, 0] > 0.5
