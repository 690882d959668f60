"""Maps from the gradient of the score by the pixels."""

import torch
from torch import Tensor

from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.relevance import ForwardPass, presets, run


@explainer("saliency", family="gradient", signed=False, paper="simonyan2014deep")
def saliency(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """The size of the gradient: how much the score changes with each pixel.

    Returns:
        Maps `[B, T, H, W]`, the maximum of |gradient| over channels.
    """
    return gradients(model, images, targets).abs().amax(2)


@explainer("gradient", family="gradient", signed=True, paper="simonyan2014deep")
def gradient(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """The gradient with its sign: what the score gains as a pixel gets brighter in all channels.

    It tells where the score would change, not what it is made of, and where the model is saturated it is small. One forward
    pass, one backward pass a target.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.
    """
    return gradients(model, images, targets).sum(2)


@explainer("input_x_gradient", family="gradient", signed=True, paper="shrikumar2016not")
def input_x_gradient(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """The gradient times the pixel's value, in model-input units.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.
    """
    return (images[:, None] * gradients(model, images, targets)).sum(2)


def gradients(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """The gradient of each target's score by the image, `[B, T, C, H, W]`."""
    return gradients_of(run(model, images, presets.NOTHING), targets)


def gradients_of(passed: ForwardPass, targets: Targets) -> Tensor:
    """The gradient of each target's score by the image, `[B, T, C, H, W]`, as the pass's preset has it."""
    scores = targets.in_turn(passed.logits)
    ways = (passed.per_unit(score, [passed.images], phase="gradient", last=last)[0] for score, last in scores)
    return torch.stack(list(ways), 1)


def of_rows(targets: Targets, rows: Tensor) -> Targets:
    """The targets of the images at `rows` (indices), which may come more than once."""
    return Targets(targets.index[rows], None if targets.against is None else targets.against[rows])
