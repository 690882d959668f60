"""Maps from the gradient of the score by the pixels."""

import torch
from torch import Tensor

from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.relevance import ForwardPass, presets, run


@explainer("saliency", family="gradient", signed=False, paper="simonyan2014deep")
def saliency(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """The size of the gradient: how much the score changes with each pixel.

    It tells to which pixels the score is sensitive, not what it is made of: where the model is saturated, what the decision
    rests on has hardly a gradient.

    Formula:
        max_c |∇f(x)|_c

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Returns:
        Maps `[B, T, H, W]`, the maximum over channels.

    Checked:
        captum `Saliency`, to 1e-4: tests/peers/test_captum.py.
        autograd by hand, to rounding: tests/explainers/test_gradient.py.
    """
    return gradients(model, images, targets).abs().amax(2)


@explainer("gradient", family="gradient", signed=True, paper="simonyan2014deep", linear=True)
def gradient(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """The gradient with its sign: what the score gains as a pixel gets brighter in all channels.

    It tells where the score would change, not what it is made of, and the slopes of the channels may cancel. As noisy as
    `saliency`: use it as the base of `smoothgrad`.

    Formula:
        Σ_c ∇f(x)_c

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        numbers by hand, exactly: tests/explainers/test_gradient_backprop.py.
        captum `Saliency` with its sign, averaged by `NoiseTunnel`, to 1e-4: tests/peers/test_gradient_family.py.
    """
    return gradients(model, images, targets).sum(2)


@explainer("input_x_gradient", family="gradient", signed=True, paper="shrikumar2016not", linear=True, complete="f(x)")
def input_x_gradient(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """The gradient times the pixel's value, in model-input units.

    Of a network of ReLUs without biases it sums to the score. It shares the score among the pixels' distances from 0, which
    the normalisation puts at the mean intensity: a pixel of that grey gets nothing, however much it matters.

    Formula:
        Σ_c x_c ∇f(x)_c

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN, ConvNeXt, ViT, Swin.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        captum `InputXGradient`, to 1e-4: tests/peers/test_captum.py.
        autograd by hand, to rounding: tests/explainers/test_gradient.py.
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
