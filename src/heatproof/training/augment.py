"""Small random changes of training images: heatmaps need models that look at structure, not at exact positions."""

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.checks import check_number
from heatproof.errors import InputError, near_names


@dataclass(frozen=True)
class Augmentation:
    """The largest change of each kind; every image draws its own, uniformly between minus and plus that much.

    Attributes:
        shift: share of the width and of the height.
        scale: share of the size, about the centre.
        rotate: degrees, about the centre.
        contrast: share, about black.
        brightness: intensity, where 1 is white.
        gamma: the natural logarithm of the exponent; what is beyond black or white is cut before.
        noise: standard deviation of Gaussian noise (intensity), the same in every channel; not drawn but fixed.
        flip: probability to mirror left and right. None by default, because the heart has a side, and so have the
            markers L and R; it suits single limbs, and nothing that is read by side.
    """

    shift: float = 0.04
    scale: float = 0.05
    rotate: float = 3.0
    contrast: float = 0.1
    brightness: float = 0.05
    gamma: float = 0.1
    noise: float = 0.0
    flip: float = 0.0

    @classmethod
    def of(cls, value: "bool | Mapping[str, float] | Augmentation") -> "Augmentation | None":
        """`True`: the strengths above; a mapping changes some of them; `False`: none.

        Raises:
            InputError: an unknown kind (with the near names), or a strength out of range.
        """
        if isinstance(value, bool):
            return cls() if value else None
        if isinstance(value, Augmentation):
            return value
        if not isinstance(value, Mapping):
            raise InputError(f"augment must be True, False or a mapping of strengths, got {value!r}.")
        known = [field.name for field in fields(cls)]
        for name, strength in value.items():
            if name not in known:
                raise InputError(f"augment has no {name!r}. {near_names(str(name), known)}")
            check_number(f"augment[{name!r}]", strength, high=_HIGHEST[name])
        return cls(**value)


_HIGHEST = {
    "shift": 0.5, "scale": 0.9, "rotate": 180, "contrast": 1, "brightness": 1, "gamma": 2, "noise": 1, "flip": 1,
}  # fmt: skip


def augment(images: Tensor, strengths: Augmentation, draws: torch.Generator) -> Tensor:
    """Move, turn, scale and brighten each image a little.

    Args:
        images: intensities in [0, 1], `[B, C, H, W]`, before normalisation.
        strengths: how much.
        draws: a generator on the CPU, so that the draws are the same on every device.

    Returns:
        Intensities in [0, 1], `[B, C, H, W]`; what comes in from outside is 0, black.
    """
    uniform = torch.rand(len(images), 8, generator=draws).to(images)
    between = uniform * 2 - 1
    moved = move(
        images, strengths.shift * between[:, :2], 1 + strengths.scale * between[:, 2], strengths.rotate * between[:, 3]
    )
    contrast, brightness, gamma = (between[:, k].view(-1, 1, 1, 1) for k in (4, 5, 6))
    bright = (moved * (1 + strengths.contrast * contrast) + strengths.brightness * brightness).clamp(0, 1)
    changed = bright ** (strengths.gamma * gamma).exp()
    changed = torch.where((uniform[:, 7] < strengths.flip).view(-1, 1, 1, 1), changed.flip(-1), changed)
    if strengths.noise:
        noise = torch.randn(len(images), 1, *images.shape[2:], generator=draws).to(images)
        changed = (changed + strengths.noise * noise).clamp(0, 1)
    return changed


def move(images: Tensor, shift: Tensor, scale: Tensor, degrees: Tensor) -> Tensor:
    """Scale and turn images `[B, C, H, W]` about their centre, then shift them by `shift` `[B, 2]` (x, y).

    `scale` `[B]` above 1 enlarges; `degrees` `[B]` above 0 turns counter-clockwise as seen; the shift is a share of the
    width and height. Bilinear, with black outside.
    """
    height, width = images.shape[2:]
    angle = degrees.deg2rad()
    cos, sin = angle.cos() / scale, angle.sin() / scale
    # where a pixel comes from, in coordinates from -1 to 1 that are not square where the image is not
    back = torch.stack([cos, -sin * height / width, sin * width / height, cos], dim=1).view(-1, 2, 2)
    theta = torch.cat([back, -2 * back @ shift[..., None]], dim=2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
