"""Does the model's output change where the map says that it should?"""

import torch
from torch import Tensor

from heatproof.checks import check_count
from heatproof.metrics.registry import Case, metric
from heatproof.probing import Baseline, Ranking, RankMasks, rank_pixels

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
    height, width = values.shape[1:]
    step = width if step is None else check_count("step", step, high=height * width)
    ranking = _ranking(case, absolute)
    masked = case.probe(RankMasks.successive(ranking.ranks, step), baseline=baseline, output=output)
    plain = case.probe.unmasked(output=output)[:, None]
    scale = torch.maximum(plain.abs(), masked.abs().amax(1, keepdim=True))
    found = pearson(ranking.chunk_sums(values, step), plain - masked, resolution=_RESOLUTION * scale)
    return found.masked_fill(undefined, torch.nan)


def pearson(x: Tensor, y: Tensor, *, resolution: Tensor) -> Tensor:
    """Pearson's correlation over the last dimension, in float64; NaN where x is constant or y varies within `resolution`."""
    rounding = 1e-12 * x.double().abs().amax(-1, keepdim=True)
    x, y = (v.double() - v.double().mean(-1, keepdim=True) for v in (x, y))
    flat = (x.abs() <= rounding).all(-1) | (y.abs() <= resolution).all(-1)
    found = (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()
    return found.clamp(-1, 1).masked_fill(flat, torch.nan)


def _ranking(case: Case, absolute: bool) -> Ranking:
    """The ranking of the map's pixels, shared by every metric that masks in its order."""
    return case.shared(("ranking", absolute), lambda: rank_pixels(case.values(absolute)[0], case.random))
