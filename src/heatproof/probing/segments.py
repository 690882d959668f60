"""Segmentations: each pixel belongs to one segment, numbered from 0 without gaps."""

import numpy as np
import torch
from torch import Tensor

from heatproof.checks import check_choice, check_count
from heatproof.errors import InputError

SEGMENTATIONS = ("slic", "grid")


def make_segments(name: str, images: Tensor, count: int) -> Tensor:
    """About `count` segments of each of `images` `[B, C, H, W]` by `slic` or a square `grid`, int64 `[B, H, W]`."""
    check_choice("segmentation", name, SEGMENTATIONS)
    check_count("segments", count, high=images.shape[-2] * images.shape[-1])
    if name == "slic":
        return slic(images, count)
    side = max(1, round(count**0.5))
    return grid(images, side, side)


def grid(images: Tensor, rows: int, columns: int) -> Tensor:
    """`rows` × `columns` rectangles, as equal as whole pixels allow, int64 `[B, H, W]`.

    >>> grid(torch.zeros(1, 1, 2, 4), 1, 2).tolist()
    [[[0, 0, 1, 1], [0, 0, 1, 1]]]
    """
    batch, _, height, width = images.shape
    check_count("rows", rows, high=height)
    check_count("columns", columns, high=width)
    row = torch.arange(height, device=images.device) * rows // height
    column = torch.arange(width, device=images.device) * columns // width
    return (row[:, None] * columns + column).expand(batch, -1, -1)


def patches(images: Tensor, size: int) -> Tensor:
    """The square patches of a vision transformer, `size` pixels wide, int64 `[B, H, W]`."""
    height, width = images.shape[-2:]
    if height % size or width % size:
        raise InputError(
            f"Patches of {size} pixels do not tile an image of {height} × {width}: choose a divisor of both."
        )
    return grid(images, height // size, width // size)


def slic(images: Tensor, count: int) -> Tensor:
    """About `count` compact segments of similar colour (SLIC of scikit-image), int64 `[B, H, W]`.

    Each channel is stretched to [0, 1] first, so that the normalisation of the model makes no difference; other than three
    channels are seen as grey.
    """
    from skimage.segmentation import slic as skimage_slic

    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    stretched = (images - low) / (high - low).where(high > low, 1.0)
    if images.shape[1] != 3:
        stretched = stretched.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    labels = []
    for image in stretched.permute(0, 2, 3, 1).double().cpu().numpy():
        found = skimage_slic(image, n_segments=count, start_label=0, channel_axis=-1)
        labels.append(np.unique(found, return_inverse=True)[1].reshape(found.shape))
    return torch.from_numpy(np.stack(labels)).long().to(images.device)
