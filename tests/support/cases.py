"""Models and cases whose scores are known, and slow float64 replicas to compare with."""

import copy
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from heatproof.metrics import Case
from heatproof.models import Classifier
from heatproof.probing import SampleRandom, bind

Array = np.ndarray


class PixelSum(nn.Module):
    """Each class's logit is a weighted sum of the pixels: a model whose every score is known in closed form."""

    def __init__(self, weights: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(weights)

    def forward(self, images: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", images, self.weights)


class Wavy(nn.Module):
    """A smooth non-linear model without rounding trouble, cheap enough for thousands of passes."""

    def __init__(self, classes: int = 3, channels: int = 1, size: int = 8) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weights = nn.Parameter(torch.randn(classes, channels, size, size, generator=generator) / size)

    def forward(self, images: Tensor) -> Tensor:
        return torch.einsum("bchw,kchw->bk", torch.sin(2 * images), self.weights) + 0.3 * images[:, 0, 0, :1].square()


def make_case(
    model: Classifier | nn.Module,
    images: Tensor,
    maps: Tensor,
    targets: Tensor | None = None,
    *,
    roi: Tensor | None = None,
    explainer: Callable[..., Tensor] | None = None,
    seed: int = 0,
    keys: list[str] | None = None,
    batch_size: int = 16,  # given, so that equal calls give equal numbers
) -> Case:
    """A case without the front door; samples are named by their row."""
    classifier = model if isinstance(model, Classifier) else Classifier(model.eval())
    targets = torch.zeros(len(images), dtype=torch.long) if targets is None else targets
    random = SampleRandom(seed, keys or [str(row) for row in range(len(images))])
    probe = bind(
        classifier, images, lambda out: out.gather(1, targets[:, None])[:, 0], random=random, batch_size=batch_size
    )

    def explain(images: Tensor, targets: Tensor, model: Classifier | None) -> Tensor:
        assert explainer is not None
        return explainer(images, targets) if model is None else explainer(images, targets, model=model)

    return Case(classifier, images, targets, maps, random, probe, roi, explainer and explain)


def localization_case(maps: Tensor, roi: Tensor) -> Case:
    """A case for metrics that compare maps with regions."""
    return make_case(nn.Flatten(), torch.zeros(len(maps), 1, *maps.shape[1:]), maps, roi=roi)


def float64_output(net: nn.Module, target: int, output: str) -> Callable[[Array], float]:
    """The target's output of a copy of `net` in float64 on one image `[C, H, W]`, multi-class."""
    precise = copy.deepcopy(net).double().eval()

    def f(image: Array) -> float:
        with torch.no_grad():
            logits = precise(torch.from_numpy(image)[None])[0]
        return float((logits.softmax(0) if output == "probability" else logits)[target])

    return f


def slow_pearson(x: Array, y: Array) -> float:
    """Pearson's correlation from its definition."""
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return top / math.sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def slow_estimate(f: Callable[[Array], float], image: Array, values: Array, step: int, baseline: Array) -> float:
    """Faithfulness estimate of one image `[C, H, W]`, written from the definition; no ties in `values`."""
    order = sorted(range(values.size), key=lambda p: -values.flat[p])
    sums, drops = [], []
    for start in range(0, len(order), step):
        changed = image.astype(np.float64).copy()
        for p in order[start : start + step]:
            row, column = divmod(p, values.shape[1])
            changed[:, row, column] = baseline[:, row, column]
        sums.append(sum(float(values.flat[p]) for p in order[start : start + step]))
        drops.append(f(image.astype(np.float64)) - f(changed))
    return slow_pearson(sums, drops)


def slow_iou(values: Array, region: Array, top: float, rectangle: bool) -> float:
    """IoU of one map and region by numpy's percentile and plain loops."""
    kept = values >= np.percentile(values.astype(np.float64), 100 - top, method="higher")
    if rectangle:
        rows, columns = np.nonzero(kept)
        kept = np.zeros_like(kept)
        kept[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    inside = sum(bool(k) and bool(r) for k, r in zip(kept.flat, region.flat, strict=True))
    either = sum(bool(k) or bool(r) for k, r in zip(kept.flat, region.flat, strict=True))
    return inside / either


def slow_gini(values: Array) -> float:
    """Gini index as the mean absolute difference of all pairs over twice the mean."""
    flat = np.abs(values.astype(np.float64)).ravel()
    return float(np.abs(flat[:, None] - flat[None]).mean() / (2 * flat.mean()))


def slow_ridge(x: Array, y: Array, weights: Array, alpha: float) -> Array:
    """Weighted ridge coefficients with an unpenalised intercept, from the normal equations with a column of ones."""
    design = np.concatenate([np.ones((len(x), 1)), x], axis=1)
    penalty = alpha * np.eye(design.shape[1])
    penalty[0, 0] = 0
    return np.linalg.solve(design.T @ np.diag(weights) @ design + penalty, design.T @ (weights * y))[1:]
