"""Maps from the gradient of the score by the pixels."""

import torch
from torch import Tensor

from heatproof.checks import check_count
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.probing import Baseline, MicroBatch, SampleRandom, make_baseline
from heatproof.relevance import presets, run


@explainer("saliency", family="gradient", signed=False, paper="simonyan2014deep")
def saliency(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """The size of the gradient: how much the score changes with each pixel.

    Returns:
        Maps `[B, T, H, W]`, the maximum of |gradient| over channels.
    """
    return gradients(model, images, targets).abs().amax(2)


@explainer("input_x_gradient", family="gradient", signed=True, paper="shrikumar2016not")
def input_x_gradient(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """The gradient times the pixel's value, in model-input units.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.
    """
    return (images[:, None] * gradients(model, images, targets)).sum(2)


@explainer("integrated_gradients", family="gradient", signed=True, paper="sundararajan2017axiomatic")
def integrated_gradients(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    random: SampleRandom,
    batch_size: int,
    baseline: Baseline = "black",
    steps: int = 50,
) -> Tensor:
    """The gradient averaged on the straight way from a baseline to the image, times the difference of the two.

    `(x − x′) · 1/n Σ_k ∇f(x′ + (k − ½)/n · (x − x′))`, the midpoint rule. The sum of a map is the change of the score from
    baseline to image, up to the error of that rule.

    Args:
        model: any model.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        random: the samples' random streams, for the baseline `noise`.
        batch_size: points of the way that go through the model at a time.
        baseline: where the way begins, see `make_baseline`.
        steps: n, the points on the way.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.
    """
    check_count("steps", steps)
    start = make_baseline(baseline, images, black=lambda: model.intensity_range[0], random=random)
    way = images - start
    total = images.new_zeros(len(images), targets.count, *images.shape[1:])

    def add_gradients(points: Tensor) -> Tensor:
        image, shares = points // steps, (points % steps + 0.5) / steps
        on_the_way = start[image] + shares.to(images).view(-1, 1, 1, 1) * way[image]
        total.index_add_(0, image, gradients(model, on_the_way, _of_rows(targets, image)))
        return points

    MicroBatch(batch_size).run(add_gradients, torch.arange(len(images) * steps, device=images.device))
    return (way[:, None] * total / steps).sum(2)


def gradients(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """The gradient of each target's score by the image, `[B, T, C, H, W]`."""
    passed = run(model, images, presets.NOTHING)
    scores = targets.in_turn(passed.logits)
    ways = (passed.per_unit(score, [passed.images], phase="gradient", last=last)[0] for score, last in scores)
    return torch.stack(list(ways), 1)


def _of_rows(targets: Targets, rows: Tensor) -> Targets:
    return Targets(targets.index[rows], None if targets.against is None else targets.against[rows])
