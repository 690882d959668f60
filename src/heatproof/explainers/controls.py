"""Maps that know nothing of the model: what an explanation has to beat."""

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.probing import SampleRandom

_CELL = 16  # pixels; the token grid of a ViT-B/16


@explainer("control_random", family="control", signed=False, paper="samek2017evaluating")
def control_random(model: Classifier, images: Tensor, targets: Targets, *, random: SampleRandom) -> Tensor:  # noqa: ARG001
    """Uniform noise on a grid of 16-pixel cells (at least 2 × 2), drawn for each sample, the same for every target.

    Returns:
        Maps `[B, T, h, w]` in [0, 1) on that grid.
    """
    height, width = (max(2, round(side / _CELL)) for side in images.shape[-2:])
    noise = random.uniform(height, width, purpose="control_random").to(images.device)
    return noise[:, None].expand(-1, targets.count, -1, -1)


@explainer("control_center", family="control", signed=False, paper="zhang2018topdown")
def control_center(model: Classifier, images: Tensor, targets: Targets) -> Tensor:  # noqa: ARG001
    """A Gaussian blob in the centre, σ a quarter of each side, the same for every image.

    Returns:
        Maps `[B, T, H, W]`, close to 1 in the centre.
    """
    height, width = (_bell(side, images.device) for side in images.shape[-2:])
    return (height[:, None] * width).expand(len(images), targets.count, -1, -1)


@explainer("control_edges", family="control", signed=False, paper="adebayo2018sanity")
def control_edges(model: Classifier, images: Tensor, targets: Targets) -> Tensor:  # noqa: ARG001
    """The image's own edges: the size of its slope by Sobel's filter, the same for every target.

    Returns:
        Maps `[B, T, H, W]`: change of the channels' mean by pixel, in model-input units; the border is repeated outwards.
    """
    grey = F.pad(images.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    smooth, slope = images.new_tensor([1.0, 2.0, 1.0]) / 4, images.new_tensor([-1.0, 0.0, 1.0]) / 2
    across = F.conv2d(grey, (smooth[:, None] * slope)[None, None])
    down = F.conv2d(grey, (slope[:, None] * smooth)[None, None])
    return torch.hypot(across, down).expand(-1, targets.count, -1, -1)


@explainer("control_input", family="control", signed=False, paper="adebayo2018sanity")
def control_input(model: Classifier, images: Tensor, targets: Targets) -> Tensor:  # noqa: ARG001
    """The image itself: each pixel's distance from its channel's mean, the same for every target.

    Returns:
        Maps `[B, T, H, W]`: the mean over channels of `|x − mean|`, in model-input units.
    """
    distance = (images - images.mean((2, 3), keepdim=True)).abs()
    return distance.mean(1, keepdim=True).expand(-1, targets.count, -1, -1)


def _bell(side: int, device: torch.device) -> Tensor:
    offsets = torch.arange(side, device=device, dtype=torch.float32) - (side - 1) / 2
    return torch.exp(-0.5 * (offsets / (side / 4)) ** 2)
