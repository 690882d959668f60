"""Maps from a gradient that goes back through non-linearities by another rule: guided backpropagation, DeepLIFT."""

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.errors import UnsupportedModelError
from heatproof.explainers.gradient import gradients_of, of_rows
from heatproof.explainers.registry import Explain, explainer
from heatproof.models import Classifier, Targets
from heatproof.probing import Baseline, MicroBatch, SampleRandom, make_baseline
from heatproof.relevance import Preset, presets, run


@explainer("guided_backprop", family="gradient", signed=True, needs={"relu"}, paper="springenberg2015striving")
def guided_backprop(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """The gradient, of which every ReLU passes the positive part only, where it was active itself.

    It shows which structures of the image excite the network. It says little of the class: the map stays much the same for
    another target, or with other weights in the upper layers [adebayo2018sanity].

    Formula:
        the gradient by the image, but at each ReLU y = x⁺:  g_x = 1[x > 0] · g_y⁺

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN. The rule is one for ReLU; GELU and SiLU have no half on which they are off.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        captum `GuidedBackprop`, to 1e-4: tests/peers/test_gradient_family.py. Captum needs each ReLU to be a module
            used once.
        a replica with an autograd function of its own, to 1e-4: tests/explainers/test_gradient_backprop.py.

    Raises:
        UnsupportedModelError: the model runs no ReLU.

    Example:
        >>> import heatproof as hp
        >>> from torch import nn, rand
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
        >>> hp.explain(net.eval(), rand(1, 3, 4, 4), method="guided_backprop").shape
        torch.Size([1, 4, 4])
    """
    return _through_relu(model, images, targets, presets.GUIDED_BACKPROP)


@explainer("deconvnet", family="gradient", signed=True, needs={"relu"}, paper="zeiler2014visualizing")
def deconvnet(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """The way back of a deconvolutional network: every ReLU passes the positive part, whether it was active or not.

    Of the image it knows only the winners of max pooling, to which it sends back: in a network without it or another
    non-linearity the map is the same for every image. It shows what the network looks for rather than what it found.

    Formula:
        the gradient by the image, but at each ReLU y = x⁺:  g_x = g_y⁺

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN. The rule is one for ReLU, as that of `guided_backprop`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        captum `Deconvolution`, to 1e-4: tests/peers/test_gradient_family.py. Captum needs each ReLU to be a module used
            once.
        a replica with an autograd function of its own, to 1e-4: tests/explainers/test_gradient_backprop.py.

    Raises:
        UnsupportedModelError: the model runs no ReLU.
    """
    return _through_relu(model, images, targets, presets.DECONVNET)


@explainer(
    "guided_gradcam",
    family="gradient",
    signed=True,
    needs={"relu", "spatial_features"},
    paper="selvaraju2017gradcam",
)
def guided_gradcam(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    explain: Explain,
    layer: str | None = None,
) -> Tensor:
    """Guided Grad-CAM: guided backpropagation times Grad-CAM upsampled to the image.

    The fine structure of the first, where the second sees the class. Both their weaknesses are its own: the sharp edges tell
    what excites the network and not why it decided, and the map is zero wherever Grad-CAM is.

    Formula:
        guided_backprop(x) ⊙ upsampled(gradcam(x))

    Cost:
        2 forward passes, 2 · T ways back.

    Models:
        CNN. As `guided_backprop` and `gradcam` both.

    Args:
        model: a CNN with ReLUs.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        explain: maps by another explainer.
        layer: of Grad-CAM, the name of a module; by default as in `gradcam`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        captum `GuidedGradCam`, to 1e-4: tests/peers/test_gradient_family.py. With bilinear upsampling, captum's is
            nearest by default.
        the product of its two parts, to 1e-4: tests/explainers/test_gradient_backprop.py.

    Raises:
        UnsupportedModelError: the model runs no ReLU, or has no spatial feature map.
    """
    guided: Tensor = guided_backprop(model, images, targets)
    cam = explain(images, targets, "gradcam", {"layer": layer})
    return guided * F.interpolate(cam, images.shape[-2:], mode="bilinear", align_corners=False)


@explainer(
    "deep_lift",
    family="gradient",
    signed=True,
    needs={"pointwise"},
    paper="shrikumar2017learning",
    linear=True,
    complete="f(x) − f(baseline)",
)
def deep_lift(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    random: SampleRandom,
    batch_size: int,
    strict: bool,
    baseline: Baseline = "black",
) -> Tensor:
    """DeepLIFT by the Rescale rule: how each pixel's difference from a baseline shares in the change of the score.

    The sum of a map is the change of the score from baseline to image, exactly. Like integrated gradients it gives nothing
    to pixels that are like the baseline; unlike them it depends on how the network is written, not on its function alone.

    Formula:
        (x − x′) ⊙ m, where m goes back as a gradient does, but at y = φ(x) by the slope from baseline to image,
        m_x = m_y (φ(x) − φ(x′)) / (x − x′), and through max pooling to the winners of both

    Cost:
        2 forward passes, 2 · T ways back.

    Models:
        CNN. Non-linearities must work number by number or be max pooling; attention, gates and layer norms multiply
        activations, for which there is no multiplier.

    Args:
        model: a network whose non-linearities work number by number or are max pooling, as most CNNs.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        random: the samples' random streams, for the baseline `noise`.
        batch_size: images and baselines that go through the model at a time; two at least.
        strict: an operation without a rule is an error.
        baseline: x′, see `make_baseline`.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Checked:
        captum `DeepLift`, to 1e-4: tests/peers/test_gradient_family.py. Where no activation stands beside a max pooling:
            there captum's maps do not sum to the change of the score, and these do.
        the change of the score, to 1e-4: tests/explainers/test_deep_lift.py.
        numbers by hand, to rounding: tests/explainers/test_deep_lift.py.

    Raises:
        UnsupportedOperationError: the model multiplies activations (attention, gates), normalises by them (layer norm) or
            chooses among them otherwise.
    """
    start = make_baseline(baseline, images, black=lambda: model.intensity_range[0], random=random)

    def maps_of(rows: Tensor) -> Tensor:
        both = torch.cat([images[rows], start[rows]])
        passed = run(model, both, presets.DEEP_LIFT, strict=strict)
        scores = of_rows(targets, rows).in_turn(passed.logits[: len(rows)])
        ways = (passed.per_unit(score, [passed.images], last=last)[0][: len(rows)] for score, last in scores)
        return ((images - start)[rows, None] * torch.stack(list(ways), 1)).sum(2)

    return MicroBatch(max(1, batch_size // 2)).run(maps_of, torch.arange(len(images), device=images.device))


def _through_relu(model: Classifier, images: Tensor, targets: Targets, preset: Preset) -> Tensor:
    passed = run(model, images, preset)
    if not passed.mode.ran["relu"]:
        raise UnsupportedModelError(
            f"{preset.name} is a rule for ReLU, and this model runs none (GELU and SiLU have no half on which they are "
            "off). Use a method for any model: input_x_gradient, integrated_gradients, lrp_epsilon."
        )
    return gradients_of(passed, targets).sum(2)
