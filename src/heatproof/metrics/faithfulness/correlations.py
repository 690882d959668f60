"""Does what the map gives to a set of pixels go with what the output loses without it?"""

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from heatproof.checks import check_count
from heatproof.metrics.faithfulness.cells import RESOLUTION, Cells, drops_tokens
from heatproof.metrics.faithfulness.costs import cells_of_image, steps
from heatproof.metrics.registry import Case, Curve, metric
from heatproof.metrics.similarity import spearman
from heatproof.probing import Baseline, NestedSubsetMasks, RankMasks

_SUBSET_SIZE = 224  # pixels, of the source
_SIZES, _LARGEST = 10, 0.8  # sizes of sets, and the largest as a share of the image
_OVER_PIXELS = "black"  # any baseline but `drop`, where the baseline itself is drawn


def _estimate_passes(options: Mapping[str, Any], pixels: int) -> dict[Hashable, int]:
    return {("successive", options["step"], str(options["baseline"]), options["absolute"]): steps(options, pixels)}


@metric("faithfulness_estimate", category="faithfulness", higher_is_better=True, bounds=(-1, 1), needs={"model"},
        paper="alvarezmelis2018towards", passes=_estimate_passes)  # fmt: skip
def faithfulness_estimate(
    case: Case,
    *,
    step: int | None = None,
    baseline: Baseline = "black",
    output: str = "probability",
    absolute: bool = False,
) -> Tensor:
    """Correlation between what the map gives to a set of pixels and what the output loses without it.

    The S_k are successive chunks of the pixels in descending order of the map, not cumulative; the last one may be smaller.

    Formula:
        Pearson_k(Σ_{S_k} a, f(x) − f(x∖S_k))

    Args:
        case: N samples.
        step: pixels in a chunk; by default one image row of pixels. Under `drop` it counts tokens.
        baseline: what replaces a pixel, see `make_filling`, or `drop`: tokens are taken out of a vision transformer.
        output: `probability` or `logit`.
        absolute: use |a| instead of a.

    Returns:
        `[N]`; NaN for a constant map or an output that no chunk changes.

    Quantus:
        Follows `FaithfulnessEstimate`.
    """
    cells = Cells.of(case, baseline, absolute)
    step = cells.step(step)
    masked = cells.masked(
        ("successive", absolute, step), lambda: RankMasks.successive(cells.ranking.ranks, step), output
    )
    return _sums_against_drops(cells, cells.ranking.chunk_sums(cells.values, step), masked, output)


def _correlation_passes(options: Mapping[str, Any], pixels: int) -> dict[Hashable, int]:  # noqa: ARG001
    return {("subsets", options["subset_size"], options["runs"], str(options["baseline"])): int(options["runs"])}


@metric("faithfulness_correlation", category="faithfulness", higher_is_better=True, bounds=(-1, 1), needs={"model"},
        paper="bhatt2020evaluating", passes=_correlation_passes)  # fmt: skip
def faithfulness_correlation(
    case: Case,
    *,
    subset_size: int | None = None,
    runs: int = 100,
    baseline: Baseline = "black",
    output: str = "probability",
    absolute: bool = False,
) -> Tensor:
    """Correlation, over random sets of pixels, between what the map gives to a set and what the output loses without it.

    The sets S are independent draws, the same ones for every map of a sample.

    Formula:
        Pearson_S(Σ_S a, f(x) − f(x∖S))

    Args:
        case: N samples.
        subset_size: pixels in a set, by default 224; under `drop` tokens, by default one row of them.
        runs: number of sets.
        baseline: what replaces a pixel, see `make_filling`, or `drop`: tokens are taken out of a vision transformer.
        output: `probability` or `logit`.
        absolute: use |a| instead of a.

    Returns:
        `[N]`; NaN for a constant map or an output that no set changes.

    Quantus:
        Follows `FaithfulnessCorrelation`, over the same sets.
    """
    cells = Cells.of(case, baseline, absolute)
    if subset_size is None:
        subset_size = cells.step(None) if drops_tokens(baseline) else _SUBSET_SIZE
    check_count("subset_size", subset_size, high=cells.count)
    subsets = NestedSubsetMasks(case.random, cells.size, [subset_size], runs, cells.values.device)
    masked = cells.masked(("subsets", subset_size, runs), lambda: subsets, output)
    return _sums_against_drops(cells, subsets.sums(cells.values), masked, output)


def _sensitivity_passes(options: Mapping[str, Any], pixels: int) -> dict[Hashable, int]:
    sizes = len(_sizes(cells_of_image(options, pixels)))
    return {("nested subsets", options["runs"], str(options["baseline"])): int(options["runs"]) * sizes}


@metric("sensitivity_n", category="faithfulness", higher_is_better=True, bounds=(-1, 1), needs={"model"},
        paper="ancona2018towards", curve="mean", passes=_sensitivity_passes)  # fmt: skip
def sensitivity_n(
    case: Case,
    *,
    runs: int = 100,
    baseline: Baseline = "black",
    output: str = "probability",
    absolute: bool = False,
) -> Curve:
    """Mean, over sizes n, of the correlation between what the map gives to n pixels and what the output loses without them.

    The sets S are random ones of n pixels, for each of 10 sizes n, evenly spaced in the logarithm from 1 pixel to 80 % of
    them. The profile over n is the curve, see `heatproof.curve`.

    Formula:
        mean_n Pearson_{|S| = n}(Σ_S a, f(x) − f(x∖S))

    Args:
        case: N samples.
        runs: sets of each size.
        baseline: what replaces a pixel, see `make_filling`, or `drop`: tokens are taken out of a vision transformer.
        output: `probability` or `logit`.
        absolute: use |a| instead of a.

    Returns:
        The curve of the correlations, whose mean is the metric. A correlation is NaN where no set of that size changes the
        output, or all have the same sum of the map; the mean leaves it out. NaN for an undefined map.

    Quantus:
        Differs: `SensitivityN` takes out the highest pixels, one chunk after another, and correlates over the samples
        of its first batch, which is one number for each chunk and none for a sample. The source draws random sets of
        pixels of one image.
    """
    cells = Cells.of(case, baseline, absolute)
    sizes = _sizes(cells.count)
    subsets = NestedSubsetMasks(case.random, cells.size, sizes, runs, cells.values.device)
    masked = cells.masked(("nested subsets", runs), lambda: subsets, output)
    sums, outputs = (values.unflatten(1, (runs, -1)).mT for values in (subsets.sums(cells.values), masked))
    found = _correlation_with_drops(sums, outputs, cells.plain(output)[:, None])
    shares = torch.tensor(sizes, dtype=torch.float64, device=found.device) / cells.count
    return Curve(shares, found.masked_fill(cells.undefined[:, None], torch.nan))


def _sizes(cells: int) -> list[int]:
    """From 1 to 80 % of the cells, evenly spaced in the logarithm, each once."""
    largest = max(1, int(_LARGEST * cells))
    return sorted({round(largest ** (i / (_SIZES - 1))) for i in range(_SIZES)})


def _monotonicity_passes(options: Mapping[str, Any], pixels: int) -> dict[Hashable, int]:
    count = -(-pixels // int(options["step"] or round(pixels**0.5))) * int(options["samples"])
    return {("resampled", options["step"], options["samples"]): count}


@metric("monotonicity_correlation", category="faithfulness", higher_is_better=True, bounds=(-1, 1), needs={"model"},
        paper="nguyen2020quantitative", passes=_monotonicity_passes)  # fmt: skip
def monotonicity_correlation(
    case: Case, *, step: int | None = None, samples: int = 10, output: str = "probability"
) -> Tensor:
    """Rank correlation between |a| of a set of pixels and how much the output depends on them.

    The S_k are successive chunks of the pixels in descending order of |a|, not cumulative, and new values are uniform
    between each channel's extremes.

    Formula:
        Spearman_k(Σ_{S_k} |a|, E[(f(x) − f(x with S_k resampled))²])

    Args:
        case: N samples.
        step: pixels in a chunk; by default one image row of pixels. The last may be smaller.
        samples: draws of new values for each chunk.
        output: `probability` or `logit`.

    Returns:
        `[N]`; NaN where |a| is undefined, or if the output depends on no chunk or on all alike.

    Quantus:
        Follows `MonotonicityCorrelation`, under the same draws.
    """
    cells = Cells.of(case, _OVER_PIXELS, absolute=True)
    step = cells.step(step)
    masks = RankMasks.successive(cells.ranking.ranks, step)
    plain, squares = cells.plain(output), []
    for draw in range(check_count("samples", samples)):
        drops = plain - case.probe(masks, baseline=_resampled(case, draw), output=output)
        rounding = RESOLUTION * torch.maximum(plain.abs(), (plain - drops).abs().amax(1, keepdim=True))
        squares.append(drops.double().square().where(drops.abs() > rounding, 0.0))
    effects = torch.stack(squares).mean(0)
    found = spearman(cells.ranking.chunk_sums(cells.values, step)[:, None], effects[:, None])
    return found.masked_fill(cells.undefined, torch.nan)


def _resampled(case: Case, draw: int) -> Tensor:
    """The images with new values everywhere, uniform between each channel's extremes."""
    low, high = case.images.amin((2, 3), keepdim=True), case.images.amax((2, 3), keepdim=True)
    return low + (high - low) * case.random.uniform(*case.images.shape[1:], purpose=f"resampling {draw}").to(low)


def pearson(x: Tensor, y: Tensor, *, resolution: Tensor) -> Tensor:
    """Pearson's correlation over the last dimension, in float64; NaN where x is constant or y varies within `resolution`."""
    rounding = 1e-12 * x.double().abs().amax(-1, keepdim=True)
    x, y = (v.double() - v.double().mean(-1, keepdim=True) for v in (x, y))
    flat = (x.abs() <= rounding).all(-1) | (y.abs() <= resolution).all(-1)
    found = (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    return found.clamp(-1, 1).masked_fill(flat, torch.nan)


def _sums_against_drops(cells: Cells, sums: Tensor, masked: Tensor, output: str) -> Tensor:
    """The correlation `[N]` of `sums` `[N, K]` with what each mask takes from the output."""
    return _correlation_with_drops(sums, masked, cells.plain(output)).masked_fill(cells.undefined, torch.nan)


def _correlation_with_drops(sums: Tensor, masked: Tensor, plain: Tensor) -> Tensor:
    """The correlation of `sums` `[..., K]` with `plain − masked`, `[...]`; plain `[..., 1]`."""
    scale = torch.maximum(plain.abs(), masked.abs().amax(-1, keepdim=True))
    return pearson(sums, plain - masked, resolution=RESOLUTION * scale)
