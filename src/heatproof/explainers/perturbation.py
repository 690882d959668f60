"""Maps from what the model says when parts of the image are replaced."""

import math

import torch
from torch import Tensor

from heatproof.checks import check_count, check_number
from heatproof.errors import InputError
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.models.patches import patch_grid, segments_of
from heatproof.probing import Baseline, BoundProbe, Masks, SampleRandom, SegmentMasks, SoftMasks, WindowMasks

_MASKS_AT_ONCE = 64
_KERNEL_WIDTH = 0.25
_ALPHA = 1.0


@explainer("lime", family="perturbation", signed=True, paper="ribeiro2016why", upsampling="nearest", linear=True)
def lime(
    model: Classifier,
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

    It asks the model alone and needs no gradients. It tells which segments matter on average when half of the others are
    gone; the map changes with the segments, with what fills them, and with the draws unless there are many.

    Formula:
        the weights β that minimise Σ_k π_k (f(x_k) − β_0 − Σ_{on} β)² + Σ β²
        x_k: each of the versions keeps a segment with probability 1/2; the first keeps all
        π_k = sqrt(exp(−d_k² / 0.25²)), d_k the cosine distance between which segments are on and all of them

    Cost:
        samples forward passes, no ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin. Any model at all; `patches` and `drop` need a ViT.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`; with a contrast class, the difference of the outputs is explained.
        random: the samples' random streams.
        probe: the model on masked images.
        samples: versions of the image.
        segments: about how many segments.
        segmentation: `slic`, a square `grid`, or the `patches` of a vision transformer, each a segment.
        features: keep the weights of this many segments, those of largest absolute value; by default all.
        baseline: what replaces a segment that is off: `segment_mean` (of each channel), or see `BoundProbe`. Under `drop`
            segments are made of a vision transformer's tokens, by `grid` or `patches`.
        output: `probability` or `logit`.

    Returns:
        Maps `[B, T, H, W]`: each pixel has its segment's weight; under `drop` on the token grid.

    Checked:
        the package `lime`, to 1e-5: tests/peers/test_lime.py. Given the same segments and versions: the package makes
            segments by quickshift.
        a float64 replica with scikit-learn's distances, to 1e-5: tests/explainers/test_perturbation.py.

    Example:
        >>> import heatproof as hp
        >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2)).eval()
        >>> options = {"samples": 20, "segmentation": "grid", "segments": 4}
        >>> hp.explain(net, torch.rand(1, 1, 8, 8), method="lime", **options)[0].unique().numel()
        4
    """
    check_count("samples", samples)
    regions = segments_of(model, images, segmentation, segments, baseline)
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


@explainer(
    "kernel_shap",
    family="perturbation",
    signed=True,
    paper="lundberg2017unified",
    upsampling="nearest",
    linear=True,
)
def kernel_shap(
    model: Classifier,
    images: Tensor,
    targets: Targets,  # noqa: ARG001
    *,
    random: SampleRandom,
    probe: BoundProbe,
    samples: int = 1000,
    segments: int = 50,
    segmentation: str = "slic",
    baseline: Baseline = "segment_mean",
    output: str = "probability",
) -> Tensor:
    """Kernel SHAP: each segment's Shapley value, estimated by a regression on which segments are on.

    The values of a map share out what the image has over an empty one, fairly by Shapley's axioms. They are as good as the
    segments and the filling: what counts for a coalition is what the model says of an image that was never taken.

    Formula:
        φ that minimise Σ_z (f(z) − f(none) − Σ_{on} φ)² under Σφ = f(all) − f(none), z coalitions drawn from the Shapley
        kernel (M − 1) / (C(M, |z|) |z| (M − |z|)) in pairs of a coalition and its complement, M the segments

    Cost:
        samples + 2 forward passes, no ways back. Fewer where all coalitions together are not more than `samples`: then each
        counts with its exact weight, and the values are the Shapley values.

    Models:
        CNN, ConvNeXt, ViT, Swin. Any model at all; `patches` and `drop` need a ViT.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`; with a contrast class, the difference of the outputs is explained.
        random: the samples' random streams.
        probe: the model on masked images.
        samples: coalitions, beside the full and the empty one.
        segments: about how many segments.
        segmentation: `slic`, a square `grid`, or the `patches` of a vision transformer, each a segment.
        baseline: what replaces a segment that is off: `segment_mean` (of each channel), or see `BoundProbe`. Under `drop`
            segments are made of a vision transformer's tokens, by `grid` or `patches`.
        output: `probability` or `logit`.

    Returns:
        Maps `[B, T, H, W]`: each pixel has its segment's value; under `drop` on the token grid.

    Checked:
        the package `shap` over all coalitions, to 1e-5: tests/peers/test_perturbation.py.
        captum `KernelShap` over 1500 draws, to 0.2: tests/peers/test_perturbation.py. Two estimates from different draws.
        Shapley values by brute force, to 1e-7: tests/explainers/test_perturbation.py.
    """
    check_count("samples", samples)
    regions = segments_of(model, images, segmentation, segments, baseline)
    counts = (regions.amax((1, 2)) + 1).tolist()
    on, weights = (part.to(images.device) for part in _coalitions(random, counts, samples))
    if isinstance(baseline, str) and baseline == "segment_mean":
        baseline = _segment_means(images, regions)
    values = probe(SegmentMasks(regions, on), baseline=baseline, output=output).double()
    present = torch.arange(max(counts), device=images.device) < torch.tensor(counts, device=images.device)[:, None]
    return _paint(_shapley_regression(on & present[:, None], values, weights, present), regions)


@explainer("occlusion", family="perturbation", signed=True, paper="zeiler2014visualizing", linear=True)
def occlusion(
    model: Classifier,  # noqa: ARG001
    images: Tensor,
    targets: Targets,  # noqa: ARG001
    *,
    probe: BoundProbe,
    window: int = 32,
    stride: int | None = None,
    baseline: Baseline = "black",
    output: str = "probability",
) -> Tensor:
    """What the output loses when a square window is replaced, averaged over the windows that cover a pixel.

    Each number is what the model really says of a changed image. It misses what matters only together with something outside
    of the window, and what a window hides depends on its size.

    Formula:
        mean over the windows S that cover the pixel of f(x) − f(x∖S)

    Cost:
        1 + W forward passes, no ways back. W windows: 169 of an image of 224 × 224 by default.

    Models:
        CNN, ConvNeXt, ViT, Swin. Any model at all.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`; with a contrast class, the difference of the outputs is explained.
        probe: the model on masked images.
        window: side of the window in pixels.
        stride: pixels between windows, half a window by default; the last window may be cut off at the edge.
        baseline: what replaces a pixel, see `make_filling`.
        output: `probability` or `logit`.

    Returns:
        Maps `[B, T, H, W]`.

    Checked:
        captum `Occlusion`, to 1e-4: tests/peers/test_perturbation.py.
        a replica window by window, to 1e-6: tests/explainers/test_perturbation.py.
    """
    _refuse_drop(baseline, "token_drop")
    step = max(1, check_count("window", window) // 2) if stride is None else stride
    masks = WindowMasks(len(images), images.shape[2:], (window,) * 2, (step,) * 2, images.device)
    loss = probe.unmasked(output=output)[:, None] - probe(masks, baseline=baseline, output=output)
    covered = _weighted_sum(masks, torch.ones_like(loss))
    return (_weighted_sum(masks, loss) / covered).float()


@explainer("rise", family="perturbation", signed=False, paper="petsiuk2018rise", linear=True)
def rise(
    model: Classifier,  # noqa: ARG001
    images: Tensor,
    targets: Targets,  # noqa: ARG001
    *,
    random: SampleRandom,
    probe: BoundProbe,
    samples: int = 4000,
    cells: int = 8,
    keep: float = 0.5,
    baseline: Baseline = 0.0,
    output: str = "probability",
) -> Tensor:
    """RISE: the mean of random soft masks, each weighted by the output on the image seen through it.

    It asks the model alone and needs no segments. The map is blurred as the masks are, its zero means nothing, and even
    thousands of masks leave it noisy.

    Formula:
        Σ_k f(x ⊙ M_k) M_k / (samples · keep), M_k a random grid of cells, each kept with probability `keep`, enlarged
        bilinearly and shifted at random

    Cost:
        samples forward passes, no ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin. Any model at all.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`; with a contrast class, the difference of the outputs is explained, and maps can be negative.
        random: the samples' random streams.
        probe: the model on masked images.
        samples: number of masks.
        cells: cells along a side of the grid.
        keep: probability of a cell to be kept.
        baseline: what stands where the mask is 0, see `make_filling`: by default 0 in model-input units, as in the authors'
            code, where the mask multiplies the normalised image.
        output: `probability` or `logit`.

    Returns:
        Maps `[B, T, H, W]`.

    Checked:
        the formula mask by mask, to 1e-4: tests/explainers/test_perturbation.py.
    """
    _refuse_drop(baseline, "token_drop")
    if not 0 < check_number("keep", keep, high=1) < 1:
        raise InputError(f"keep must lie between 0 and 1, got {keep!r}: at an end all masks are the same.")
    masks = SoftMasks(random, images.shape[2:], cells, keep, samples, images.device)
    values = probe(masks, baseline=baseline, output=output)
    kept = values.sum(1)[:, :, None, None] - _weighted_sum(masks, values)  # the masks say what is replaced
    return (kept / (samples * keep)).float()


@explainer(
    "token_drop",
    family="perturbation",
    signed=True,
    needs={"attention"},
    paper="covert2021explaining",
    upsampling="nearest",
    linear=True,
)
def token_drop(
    model: Classifier, images: Tensor, targets: Targets, *, probe: BoundProbe, output: str = "probability"
) -> Tensor:
    """What the output of a vision transformer loses when one token of the image is left out of its sequence.

    Nothing is painted over: the model sees fewer patches, each at its place. Where two patches say the same, neither is
    missed.

    Formula:
        f(x) − f(x without token i)

    Cost:
        2 + N forward passes, no ways back. One of them is for the first image of a batch alone, to see its grid.

    Models:
        ViT. It must add an absolute position embedding.

    Args:
        model: a vision transformer that adds an absolute position embedding, see `logits_without_tokens`.
        images: `[B, C, H, W]`.
        targets: `[B, T]`; with a contrast class, the difference of the outputs is explained.
        probe: the model on masked images.
        output: `probability` or `logit`.

    Returns:
        Maps `[B, T, h, w]` on the token grid.

    Checked:
        the definition, one token at a time, to 1e-4: tests/explainers/test_perturbation.py.
    """
    rows, columns = patch_grid(model, images)
    masks = WindowMasks(len(images), (rows, columns), (1, 1), (1, 1), images.device)
    loss = probe.unmasked(output=output)[:, None] - probe(masks, baseline="drop", output=output)
    return loss.mT.reshape(len(images), targets.count, rows, columns).float()


def _refuse_drop(baseline: Baseline, instead: str) -> None:
    if isinstance(baseline, str) and baseline == "drop":
        raise InputError(f"baseline='drop' takes whole tokens out, and these masks cut through them: use {instead}.")


def _weighted_sum(masks: Masks, weights: Tensor) -> Tensor:
    """`Σ_k weights[:, k] mask_k`, float64 `[B, T, H, W]`, a few masks at a time; weights `[B, K, T]`."""
    total: Tensor | float = 0.0
    for start in range(0, masks.count, _MASKS_AT_ONCE):
        stop = min(masks.count, start + _MASKS_AT_ONCE)
        total = total + torch.einsum(
            "bkt,bkhw->bthw", weights[:, start:stop].double(), masks.chunk(start, stop).double()
        )
    return torch.as_tensor(total)


def _coalitions(random: SampleRandom, counts: list[int], samples: int) -> tuple[Tensor, Tensor]:
    """Which segments are on, bool `[B, K, S]`, and the weight of each version, float64 `[B, K]`.

    The first version has all segments, the second none, both of weight 0; segments that an image lacks are always on.
    """
    drawn = [
        _all_coalitions(count)
        if 2**count - 2 <= samples
        else _draw_coalitions(random.generator(row, "kernel shap"), count, samples)
        for row, count in enumerate(counts)
    ]
    most = max(len(weights) for _, weights in drawn)
    on = torch.ones(len(counts), most + 2, max(counts), dtype=torch.bool)
    weights = torch.zeros(len(counts), most + 2, dtype=torch.float64)
    for row, (chosen, weight) in enumerate(drawn):
        on[row, 1, : counts[row]] = False
        on[row, 2 : len(chosen) + 2, : counts[row]] = chosen
        weights[row, 2 : len(chosen) + 2] = weight
    return on, weights


def _all_coalitions(count: int) -> tuple[Tensor, Tensor]:
    """Every coalition of `count` segments but the full and the empty one, with the weight of the Shapley kernel."""
    number = torch.arange(1, 2**count - 1)
    on = (number[:, None] >> torch.arange(count)) % 2 == 1
    sizes = on.sum(1).tolist()
    weights = [(count - 1) / (math.comb(count, size) * size * (count - size)) for size in sizes]
    return on, torch.tensor(weights, dtype=torch.float64)


def _draw_coalitions(generator: torch.Generator, count: int, samples: int) -> tuple[Tensor, Tensor]:
    """`samples` coalitions drawn from the Shapley kernel, each odd one the complement of the one before."""
    sizes = torch.arange(1, count, dtype=torch.float64)
    pairs = -(-samples // 2)
    size = 1 + torch.multinomial(1 / (sizes * (count - sizes)), pairs, replacement=True, generator=generator)
    ranks = torch.rand(pairs, count, generator=generator).argsort(1).argsort(1)
    on = ranks < size[:, None]
    both = torch.stack([on, ~on], 1).flatten(0, 1)[:samples]
    return both, torch.ones(samples, dtype=torch.float64)


def _shapley_regression(on: Tensor, values: Tensor, weights: Tensor, present: Tensor) -> Tensor:
    """The Shapley values `[B, S, T]` by least squares under the constraint that they sum to f(all) − f(none).

    on `[B, K, S]` and values `[B, K, T]`, the first version with all segments, the second with none; weights `[B, K]`;
    present `[B, S]` are the segments that an image has. The Lagrange multiplier is one more unknown.
    """
    x, full, none = on.double(), values[:, 0], values[:, 1]
    count = x.shape[2]
    system = x.new_zeros(len(x), count + 1, count + 1)
    system[:, :count, :count] = (x * weights[:, :, None]).mT @ x + torch.diag_embed((~present).double())
    system[:, :count, count] = system[:, count, :count] = present.double()
    right = torch.cat([(x * weights[:, :, None]).mT @ (values - none[:, None]), (full - none)[:, None]], 1)
    solution: Tensor = torch.linalg.pinv(system, hermitian=True) @ right  # too few coalitions: the smallest values
    return solution[:, :count]


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
