"""The output as whole regions of the image are replaced, in the order of what the map gives to them."""

from collections.abc import Hashable, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.checks import check_choice, check_count
from heatproof.metrics.faithfulness.cells import Cells, drops_tokens
from heatproof.metrics.faithfulness.costs import windows
from heatproof.metrics.registry import Case, Curve, metric
from heatproof.models.patches import segments_of
from heatproof.probing import Baseline, SegmentMasks, rank_pixels

Order: TypeAlias = Literal["morf", "lerf", "random"]

_MOST_REGIONS = 100
_REGION_WINDOW, _SELECTIVITY_WINDOW = 9, 16  # pixels a side


def _irof_passes(options: Mapping[str, Any], pixels: int) -> dict[Hashable, int]:  # noqa: ARG001
    return {("irof", str(sorted((name, str(value)) for name, value in options.items()))): int(options["segments"])}


@metric("irof", category="faithfulness", higher_is_better=True, needs={"model"}, paper="rieger2020irof",
        passes=_irof_passes)  # fmt: skip
def irof(
    case: Case,
    *,
    segments: int = 100,
    segmentation: str = "slic",
    baseline: Baseline = "mean",
    output: str = "probability",
    absolute: bool = False,
) -> Tensor:
    """Iterative removal of features: what share of the output is lost as segments are replaced, the best ones first.

    x_k is the image without the k segments of highest mean a, and K is the number of segments.

    Formula:
        1/K Σ_{k=1..K} (1 − f(x_k) / f(x))

    Args:
        case: N samples.
        segments: about how many segments; `patches` are as many as there are.
        segmentation: `slic`, a square `grid`, or the `patches` of a vision transformer, each a segment.
        baseline: what replaces a segment, see `make_filling`, or `drop`: segments are of a vision transformer's tokens, by
            `grid` or `patches`, which are taken out.
        output: `probability` or `logit`.
        absolute: rank by |a| instead of a.

    Returns:
        `[N]`; NaN for an undefined map or an output of 0.

    Quantus:
        Differs: `IROF` takes the area with steps of 1 and without half of the first and of the last segment, so that it
        grows with the number of segments.
    """
    cells = Cells.of(case, baseline, absolute)
    key = ("segments", segmentation, segments, drops_tokens(baseline))
    regions = case.shared(key, lambda: segments_of(case.model, case.images, segmentation, segments, baseline))
    sums, sizes = _sums_and_sizes(cells.values, regions)
    outputs = _without_regions(cells, regions, sums / sizes, sums.shape[1], (key, "mean"), output)
    plain = cells.plain(output)
    lost = 1 - outputs.double() / plain.where(plain != 0, torch.nan)
    exists = sizes > 0  # as many columns as the image with most segments has
    return (lost.where(exists, 0.0).sum(1) / exists.sum(1)).masked_fill(cells.undefined, torch.nan)


def _region_passes(options: Mapping[str, Any], pixels: int) -> dict[Hashable, int]:
    count = min(windows(options, pixels, _REGION_WINDOW), int(options["regions"] or _MOST_REGIONS))
    return {("windows", options["window"], str(options["baseline"]), options["order"], count): count}


@metric("region_perturbation", category="faithfulness", higher_is_better=True, needs={"model"},
        paper="samek2017evaluating", curve="mean", passes=_region_passes)  # fmt: skip
def region_perturbation(
    case: Case,
    *,
    window: int | None = None,
    regions: int | None = None,
    order: Order = "morf",
    baseline: Baseline = "black",
    output: str = "probability",
    absolute: bool = False,
) -> Curve:
    """Area over the perturbation curve: the mean loss of the output as windows are replaced, those of highest sum first.

    x_k is the image without the first k windows.

    Formula:
        1/(L+1) Σ_{k=0..L} (f(x) − f(x_k))

    Args:
        case: N samples.
        window: side of the square windows that tile the image (those at the far edges may be cut off), by default 9 pixels;
            under `drop` in tokens, by default 1.
        regions: L, by default 100, or all windows where they are fewer.
        order: most relevant first (`morf`), least relevant first (`lerf`; lower is better then) or `random`.
        baseline: what replaces a window, see `make_filling`, or `drop`: tokens are taken out of a vision transformer.
        output: `probability` or `logit`.
        absolute: rank by |a| instead of a.

    Returns:
        The curve of the losses, whose mean is the metric; NaN for an undefined map.

    Quantus:
        Follows `RegionPerturbation` along the curve after its first point, which is what Quantus returns.
    """
    check_choice("order", order, ("morf", "lerf", "random"))
    cells = Cells.of(case, baseline, absolute)
    side = _side(cells, window, _REGION_WINDOW)
    tiles = _tiles(cells, side)
    sums, _ = _sums_and_sizes(cells.values, tiles)
    count = sums.shape[1]
    most = min(count, _MOST_REGIONS) if regions is None else check_count("regions", regions, high=count)
    if order == "random":
        sums = case.random.uniform(count, purpose="region order").to(sums)
    values = -sums if order == "lerf" else sums
    outputs = _without_regions(cells, tiles, values, most, ("windows", side, order), output)
    return _curve(cells, count, cells.plain(output) - _from_plain(cells, outputs, output))


def _selectivity_passes(options: Mapping[str, Any], pixels: int) -> dict[Hashable, int]:
    count = windows(options, pixels, _SELECTIVITY_WINDOW)
    return {("windows", options["window"], str(options["baseline"]), "morf", count): count}


@metric("selectivity", category="faithfulness", higher_is_better=False, needs={"model"}, paper="montavon2018methods",
        curve="area", passes=_selectivity_passes)  # fmt: skip
def selectivity(
    case: Case,
    *,
    window: int | None = None,
    baseline: Baseline = "black",
    output: str = "probability",
    absolute: bool = False,
) -> Curve:
    """Area under the output as windows are replaced, those of the highest sum of the map first.

    Formula:
        ∫₀¹ f(x without the first share q of the windows) dq

    Args:
        case: N samples.
        window: side of the square windows that tile the image (those at the far edges may be cut off), by default 16 pixels;
            under `drop` in tokens, by default 1.
        baseline: what replaces a window, see `make_filling`, or `drop`: tokens are taken out of a vision transformer.
        output: `probability` or `logit`.
        absolute: rank by |a| instead of a.

    Returns:
        The curve over the share of windows replaced, whose area is the metric; NaN for an undefined map.

    Quantus:
        Follows `Selectivity` along the curve after its first point, which is what Quantus returns.
    """
    cells = Cells.of(case, baseline, absolute)
    side = _side(cells, window, _SELECTIVITY_WINDOW)
    tiles = _tiles(cells, side)
    sums, _ = _sums_and_sizes(cells.values, tiles)
    count = sums.shape[1]
    outputs = _without_regions(cells, tiles, sums, count, ("windows", side, "morf"), output)
    return _curve(cells, count, _from_plain(cells, outputs, output))


def _side(cells: Cells, window: int | None, default: int) -> int:
    shortest = min(cells.size)
    if window is None:
        return 1 if drops_tokens(cells.baseline) else min(default, shortest)
    return check_count("window", window, high=shortest)


def _tiles(cells: Cells, side: int) -> Tensor:
    """Squares of `side` cells from the first corner on, int64 `[N, h, w]`."""
    rows, columns = (torch.arange(extent, device=cells.values.device) // side for extent in cells.size)
    return (rows[:, None] * (columns[-1] + 1) + columns).expand(len(cells.values), -1, -1)


def _sums_and_sizes(values: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
    """The sum of `values` `[N, h, w]` over each region and its cells, float64 `[N, S]`."""
    index, flat = regions.flatten(1), values.flatten(1).double()
    zeros = flat.new_zeros(len(flat), int(index.max()) + 1)
    return zeros.scatter_add(1, index, flat), zeros.scatter_add(1, index, torch.ones_like(flat))


def _without_regions(cells: Cells, regions: Tensor, values: Tensor, most: int, key: Hashable, output: str) -> Tensor:
    """The output without the 1, 2, ... `most` regions of highest `values` `[N, S]`, `[N, most]`."""

    def masks() -> SegmentMasks:
        # ties are drawn among as many places as there are cells, so that no image's draw depends on the others' regions
        padded = F.pad(values.nan_to_num(-torch.inf), (0, cells.count - values.shape[1]), value=-torch.inf)
        ranks = rank_pixels(padded[:, None], cells.case.random).ranks[:, :, : values.shape[1]]
        removed = torch.arange(1, most + 1, device=ranks.device)[:, None]
        return SegmentMasks(regions, ranks >= removed)

    return cells.masked((key, cells.absolute, most), masks, output)


def _from_plain(cells: Cells, outputs: Tensor, output: str) -> Tensor:
    return torch.cat([cells.plain(output), outputs], 1)


def _curve(cells: Cells, count: int, values: Tensor) -> Curve:
    """`values` `[N, P]` from no region replaced on, of `count` regions."""
    shares = torch.arange(values.shape[1], dtype=torch.float64, device=values.device) / count
    return Curve(shares, values.masked_fill(cells.undefined[:, None], torch.nan))
