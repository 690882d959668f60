"""Does the model's output change where the map says that it should?"""

import torch
from torch import Tensor

from heatproof.checks import check_count
from heatproof.metrics.registry import METRICS, Case, Curve, metric
from heatproof.probing import Baseline, Masks, Ranking, RankMasks, SubsetMasks, rank_pixels

# Changes of the output below this share of it are rounding in float32, and their correlation with anything is chance.
_RESOLUTION = 5e-7


@metric(
    "faithfulness_estimate",
    category="faithfulness",
    higher_is_better=True,
    bounds=(-1, 1),
    needs={"model"},
    paper="alvarezmelis2018towards",
)
def faithfulness_estimate(
    case: Case,
    *,
    step: int | None = None,
    baseline: Baseline = "black",
    output: str = "probability",
    absolute: bool = False,
) -> Tensor:
    """Correlation between what the map gives to a set of pixels and what the output loses without it.

    Pearson's correlation of `Σ_{S_k} a` and `f(x) − f(x∖S_k)`, where the S_k are successive chunks of the pixels in
    descending order of the map, not cumulative; the last one may be smaller.

    Args:
        case: N samples.
        step: pixels in a chunk; by default one image row of pixels.
        baseline: what replaces a pixel, see `make_baseline`.
        output: `probability` or `logit`.
        absolute: use |a| instead of a.

    Returns:
        `[N]`; NaN for a constant map or an output that no chunk changes.
    """
    values, undefined = case.values(absolute)
    step = _check_step(step, values)
    ranking = _ranking(case, absolute)
    masks = RankMasks.successive(ranking.ranks, step)
    found = _sums_against_drops(case, masks, ranking.chunk_sums(values, step), baseline, output)
    return found.masked_fill(undefined, torch.nan)


@metric(
    "faithfulness_correlation",
    category="faithfulness",
    higher_is_better=True,
    bounds=(-1, 1),
    needs={"model"},
    paper="bhatt2020evaluating",
)
def faithfulness_correlation(
    case: Case,
    *,
    subset_size: int = 224,
    runs: int = 100,
    baseline: Baseline = "black",
    output: str = "probability",
    absolute: bool = False,
) -> Tensor:
    """Correlation, over random sets of pixels, between what the map gives to a set and what the output loses without it.

    Pearson's correlation of `Σ_S a` and `f(x) − f(x∖S)` over independent draws of S, the same draws for every map of a
    sample.

    Args:
        case: N samples.
        subset_size: pixels in a set.
        runs: number of sets.
        baseline: what replaces a pixel, see `make_baseline`.
        output: `probability` or `logit`.
        absolute: use |a| instead of a.

    Returns:
        `[N]`; NaN for a constant map or an output that no set changes.
    """
    values, undefined = case.values(absolute)
    masks = SubsetMasks.random(case.random, values.shape[1:], subset_size, check_count("runs", runs)).to(values.device)
    found = _sums_against_drops(case, masks, masks.sums(values), baseline, output)
    return found.masked_fill(undefined, torch.nan)


@metric(
    "deletion",
    category="faithfulness",
    higher_is_better=False,
    needs={"model"},
    paper="petsiuk2018rise",
    curve=True,
)
def deletion(
    case: Case,
    *,
    step: int | None = None,
    baseline: Baseline = "black",
    output: str = "probability",
    absolute: bool = False,
) -> Curve:
    """Area under the output as pixels are replaced, those of the highest values first.

    The curve is `f(x∖top-q)` for q from 0 (the image) to 1 (the baseline), see `heatproof.curve`. `pixel_flipping` of
    `bach2015pixelwise` is the same.

    Args:
        case: N samples.
        step: pixels replaced between two points of the curve; by default one image row of pixels. The last may be fewer.
        baseline: what replaces a pixel, see `make_baseline`.
        output: `probability` or `logit`.
        absolute: rank by |a| instead of a.

    Returns:
        The curve, whose area is the metric; NaN for an undefined map.
    """
    ranks, counts = _ranking(case, absolute).ranks, _counts(case, step)
    masked = case.probe(RankMasks.leading(ranks, counts[1:]), baseline=baseline, output=output)
    plain = case.probe.unmasked(output=output)[:, None]
    return _curve(case, absolute, counts, torch.cat([plain, masked], 1))


METRICS.add_alias("pixel_flipping", "deletion")


@metric(
    "insertion",
    category="faithfulness",
    higher_is_better=True,
    needs={"model"},
    paper="petsiuk2018rise",
    curve=True,
)
def insertion(
    case: Case,
    *,
    step: int | None = None,
    baseline: Baseline = "blur",
    output: str = "probability",
    absolute: bool = False,
) -> Curve:
    """Area under the output as pixels are put back into the baseline, those of the highest values first.

    The curve is the output for the share q of pixels put back, from 0 (the baseline) to 1 (the image), see
    `heatproof.curve`.

    Args:
        case: N samples.
        step: pixels put back between two points of the curve; by default one image row of pixels. The last may be fewer.
        baseline: what stands in the place of the other pixels, see `make_baseline`.
        output: `probability` or `logit`.
        absolute: rank by |a| instead of a.

    Returns:
        The curve, whose area is the metric; NaN for an undefined map.
    """
    ranks, counts = _ranking(case, absolute).ranks, _counts(case, step)
    masked = case.probe(RankMasks.trailing(ranks, counts[:-1]), baseline=baseline, output=output)
    plain = case.probe.unmasked(output=output)[:, None]
    return _curve(case, absolute, counts, torch.cat([masked, plain], 1))


def pearson(x: Tensor, y: Tensor, *, resolution: Tensor) -> Tensor:
    """Pearson's correlation over the last dimension, in float64; NaN where x is constant or y varies within `resolution`."""
    rounding = 1e-12 * x.double().abs().amax(-1, keepdim=True)
    x, y = (v.double() - v.double().mean(-1, keepdim=True) for v in (x, y))
    flat = (x.abs() <= rounding).all(-1) | (y.abs() <= resolution).all(-1)
    found = (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    return found.clamp(-1, 1).masked_fill(flat, torch.nan)


def _sums_against_drops(case: Case, masks: Masks, sums: Tensor, baseline: Baseline, output: str) -> Tensor:
    """The correlation `[N]` of `sums` `[N, K]` with what each mask takes from the output."""
    masked = case.probe(masks, baseline=baseline, output=output)
    plain = case.probe.unmasked(output=output)[:, None]
    scale = torch.maximum(plain.abs(), masked.abs().amax(1, keepdim=True))
    return pearson(sums, plain - masked, resolution=_RESOLUTION * scale)


def _ranking(case: Case, absolute: bool) -> Ranking:
    """The ranking of the map's pixels, shared by every metric that masks in its order."""
    return case.shared(("ranking", absolute), lambda: rank_pixels(case.values(absolute)[0], case.random))


def _check_step(step: int | None, values: Tensor) -> int:
    height, width = values.shape[1:]
    return width if step is None else check_count("step", step, high=height * width)


def _counts(case: Case, step: int | None) -> list[int]:
    """How many pixels have changed at each point of a curve, from none to all."""
    pixels = case.maps[0].numel()
    return [*range(0, pixels, _check_step(step, case.maps)), pixels]


def _curve(case: Case, absolute: bool, counts: list[int], outputs: Tensor) -> Curve:
    shares = torch.tensor(counts, dtype=torch.float64, device=outputs.device) / counts[-1]
    undefined = case.values(absolute)[1]
    return Curve(shares, outputs.masked_fill(undefined[:, None], torch.nan))
