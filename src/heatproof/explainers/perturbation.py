"""Maps from what the model says when parts of the image are replaced."""

import torch
from torch import Tensor

from heatproof.checks import check_count
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.probing import Baseline, BoundProbe, SampleRandom, SegmentMasks
from heatproof.probing.segments import make_segments

_KERNEL_WIDTH = 0.25
_ALPHA = 1.0


@explainer("lime", family="perturbation", signed=True, paper="ribeiro2016why")
def lime(
    model: Classifier,  # noqa: ARG001
    images: Tensor,
    targets: Targets,  # noqa: ARG001
    *,
    random: SampleRandom,
    probe: BoundProbe,
    samples: int = 1000,
    segments: int = 50,
    segmentation: str = "slic",
    features: int | None = None,
    baseline: Baseline = "segment_mean",
    output: str = "probability",
) -> Tensor:
    """LIME: the weights of a linear model of the output in which segments are on and off.

    Each of `samples` versions of the image keeps a segment with probability 1/2; the first keeps all. A ridge regression
    (α = 1, with intercept) fits the output, versions weighted by `sqrt(exp(−d² / 0.25²))` with d the cosine distance
    between which segments are on and all of them.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`; with a contrast class, the difference of the outputs is explained.
        random: the samples' random streams.
        probe: the model on masked images.
        samples: versions of the image.
        segments: about how many segments.
        segmentation: `slic`, or a square `grid`.
        features: keep the weights of this many segments, those of largest absolute value; by default all.
        baseline: what replaces a segment that is off: `segment_mean` (of each channel), or see `make_baseline`.
        output: `probability` or `logit`.

    Returns:
        Maps `[B, T, H, W]`: each pixel has its segment's weight.
    """
    check_count("samples", samples)
    regions = make_segments(segmentation, images, segments)
    counts = regions.amax((1, 2)) + 1
    on = _draw_on(random, counts.tolist(), samples).to(images.device)
    if isinstance(baseline, str) and baseline == "segment_mean":
        baseline = _segment_means(images, regions)
    values = probe(SegmentMasks(regions, on), baseline=baseline, output=output)
    changes = values.double() - values[:, :1]  # the intercept takes a constant; one that never changes leaves exactly 0
    weights = _weighted_ridge(on.double(), changes, _kernel(on, counts))
    if features is not None:
        weights = _largest(weights, check_count("features", features))
    return _paint(weights, regions)


def _draw_on(random: SampleRandom, counts: list[int], samples: int) -> Tensor:
    """Which segments are on, bool `[B, samples, S]`; segments that an image lacks are always on.

    A segment's draws do not depend on how many segments follow it, so a slightly changed image keeps most of them.
    """
    on = torch.ones(len(counts), samples, max(counts), dtype=torch.bool)
    for row, count in enumerate(counts):
        on[row, :, :count] = torch.randint(2, (count, samples), generator=random.generator(row, "lime")).T.bool()
    on[:, 0] = True
    return on


def _kernel(on: Tensor, counts: Tensor) -> Tensor:
    """The weight of each version, float64 `[B, K]`: its cosine with the all-ones vector is √(share of segments on)."""
    lacking = on.shape[2] - counts
    share = (on.sum(2) - lacking[:, None]) / counts[:, None].double()
    distance = 1 - share.sqrt()
    return torch.exp(-((distance / _KERNEL_WIDTH) ** 2)).sqrt()


def _weighted_ridge(x: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Coefficients `[B, S, T]` of y `[B, K, T]` on x `[B, K, S]` under sample weights `[B, K]`; the intercept is free."""
    shares = (weights / weights.sum(1, keepdim=True))[:, :, None]
    x = x - (shares * x).sum(1, keepdim=True)
    y = y - (shares * y).sum(1, keepdim=True)
    weighted = x.mT * weights[:, None]
    penalty = _ALPHA * torch.eye(x.shape[2], dtype=x.dtype, device=x.device)
    solution: Tensor = torch.linalg.solve(weighted @ x + penalty, weighted @ y)
    return solution


def _largest(weights: Tensor, count: int) -> Tensor:
    """`[B, S, T]` with all but the `count` weights of largest absolute value set to 0."""
    chosen = weights.abs().topk(min(count, weights.shape[1]), dim=1).indices
    return torch.zeros_like(weights).scatter(1, chosen, weights.gather(1, chosen))


def _segment_means(images: Tensor, regions: Tensor) -> Tensor:
    """Each pixel's segment mean of each channel, `[B, C, H, W]`."""
    index = regions.flatten(1)[:, None].expand(-1, images.shape[1], -1)
    zeros = images.new_zeros(*images.shape[:2], int(regions.max()) + 1, dtype=torch.float64)
    flat = images.flatten(2).double()
    sums, sizes = zeros.scatter_add(2, index, flat), zeros.scatter_add(2, index, torch.ones_like(flat))
    return (sums / sizes).gather(2, index).view_as(images).to(images.dtype)


def _paint(weights: Tensor, regions: Tensor) -> Tensor:
    """Segment weights `[B, S, T]` to maps `[B, T, H, W]`, float32."""
    index = regions.flatten(1)[:, None].expand(-1, weights.shape[2], -1)
    return weights.mT.gather(2, index).view(len(weights), -1, *regions.shape[1:]).float()
