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

    At a ReLU `y = max(x, 0)`, `g_x = 1[x > 0] · max(g_y, 0)`; everything else has its ordinary gradient. It shows which
    structures excite the network. It says little of the class: the map stays much the same for another target, or with
    other weights in the upper layers [adebayo2018sanity]. One forward pass, one backward pass a target.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

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

    At a ReLU `y = max(x, 0)`, `g_x = max(g_y, 0)`; everything else has its ordinary gradient, and max pooling sends back to
    its winners. Of the image it knows only these winners: in a network without max pooling or another non-linearity the
    map is the same for every image. One forward pass, one backward pass a target.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

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

    The fine structure of the first, where the second sees the class; both their weaknesses are its own, and it is zero
    wherever Grad-CAM is. Two forward passes, two backward passes a target.

    Args:
        model: a CNN with ReLUs.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        explain: maps by another explainer.
        layer: of Grad-CAM, the name of a module.

    Returns:
        Maps `[B, T, H, W]`, summed over channels.

    Raises:
        UnsupportedModelError: the model runs no ReLU, or has no spatial feature map.
    """
    guided: Tensor = guided_backprop(model, images, targets)
    cam = explain(images, targets, "gradcam", {"layer": layer})
    return guided * F.interpolate(cam, images.shape[-2:], mode="bilinear", align_corners=False)


@explainer("deep_lift", family="gradient", signed=True, needs={"pointwise"}, paper="shrikumar2017learning")
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

    `(x − x′) · m`, where m goes back as a gradient does, but through `y = f(x)` by the slope between image and baseline,
    `m_x = m_y (f(x) − f(x′)) / (x − x′)`, and through max pooling to the winners of both. The sum of a map is the change of
    the score from baseline to image, exactly. Like integrated gradients it gives nothing to pixels that are like the
    baseline; unlike them it depends on how the network is written, not on its function alone. It costs two forward passes
    and, for each target, two backward passes.

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
