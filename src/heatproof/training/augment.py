"""Small random changes of training images: heatmaps need models that look at structure, not at exact positions."""

import torch
from torch import Tensor
from torch.nn import functional as F

# The largest changes: shift as a share of the image's side, scale and contrast as factors, brightness as an intensity.
SHIFT, SCALE, CONTRAST, BRIGHTNESS = 0.04, 0.05, 0.1, 0.05


def augment(images: Tensor, draws: torch.Generator) -> Tensor:
    """Shift, scale and brighten each image a little; no flips, because the heart has a side.

    Args:
        images: intensities in [0, 1], `[B, C, H, W]`, before normalisation.
        draws: a generator on the CPU, so that the draws are the same on every device.

    Returns:
        Intensities in [0, 1], `[B, C, H, W]`; what comes in from outside is 0, black.
    """
    uniform = torch.rand(len(images), 5, generator=draws).to(images) * 2 - 1
    moved = shift_and_scale(images, SHIFT * uniform[:, :2], 1 + SCALE * uniform[:, 2])
    contrast, brightness = (uniform[:, k].view(-1, 1, 1, 1) for k in (3, 4))
    return (moved * (1 + CONTRAST * contrast) + BRIGHTNESS * brightness).clamp(0, 1)


def shift_and_scale(images: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale images `[B, C, H, W]` about their centre by `scale` `[B]`, then move them by `shift` `[B, 2]` (x, y).

    The shift is a share of the width and height. Bilinear, with black outside.
    """
    theta = torch.zeros(len(images), 2, 3).to(images)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / scale
    theta[:, :, 2] = -2 * shift / scale[:, None]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
