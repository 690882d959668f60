"""Which part of a map is its highest part."""

import math
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from heatproof.checks import check_choice, check_number
from heatproof.errors import InputError

Shape: TypeAlias = Literal["mask", "rectangle"]
Threshold: TypeAlias = str | float  # "otsu", or a number from 0 to 1

_TOP = 20.0
_PLANE = np.array([np.zeros((3, 3)), [[0, 1, 0], [1, 1, 1], [0, 1, 0]], np.zeros((3, 3))], dtype=bool)


def kept(values: Tensor, top: float, shape: Shape, threshold: Threshold | None, fill: bool) -> Tensor:
    """Where the map `[N, h, w]` is highest, bool; the options are those of the metric `iou`."""
    check_choice("shape", shape, ("mask", "rectangle"))
    check_number("top", top, high=100)
    if threshold is not None and top != _TOP:
        raise InputError(f"threshold={threshold!r} replaces top: leave top={top!r} out.")
    if fill and shape == "rectangle":
        raise InputError("fill=True changes nothing about a rectangle: leave it out, or choose shape='mask'.")
    found = _top(values, top) if threshold is None else _at_least(_scaled(values), threshold)
    if shape == "rectangle":
        return _bounding_rectangle(found)
    return _fill_holes(found) if fill else found


def leading(values: Tensor, count: Tensor) -> Tensor:
    """The share in which each cell of the maps `[N, h, w]` is among the `count` `[N]` highest ones, float64.

    Cells tied at the cut share what is left, as does the last cell of a count that is not whole.

    >>> leading(torch.tensor([[[5.0, 3.0, 3.0, 1.0]]]), torch.tensor([2.0]))
    tensor([[[1.0000, 0.5000, 0.5000, 0.0000]]], dtype=torch.float64)
    """
    lowest = _kth_highest(values.flatten(1), count.ceil().long().clamp(min=1))[:, None, None]
    above, tied = values > lowest, values == lowest
    left = (count - above.sum((1, 2))) / tied.sum((1, 2))
    return above.double() + left[:, None, None] * tied


def _top(values: Tensor, top: float) -> Tensor:
    """Where the values reach the percentile `100 − top`, whose kept set is that of one whole order statistic."""
    flat = values.flatten(1)
    count = 1 + math.floor((flat.shape[1] - 1) * top / 100 + 1e-9)
    lowest = _kth_highest(flat, torch.full((len(flat),), count, device=flat.device))
    return values >= lowest[:, None, None]


def _kth_highest(flat: Tensor, k: Tensor) -> Tensor:
    """The k-th highest value of each row of `[N, P]`, k `[N]` from 1."""
    found = torch.empty_like(flat[:, 0])
    for place in k.unique().tolist():
        rows = k == place
        found[rows] = flat[rows].kthvalue(flat.shape[1] - place + 1, dim=1).values
    return found


def _scaled(values: Tensor) -> Tensor:
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    return (values - low) / (high - low)


def _at_least(scaled: Tensor, threshold: Threshold) -> Tensor:
    if threshold != "otsu":
        if isinstance(threshold, str):
            raise InputError(f"threshold must be 'otsu', a number from 0 to 1 or None, got {threshold!r}.")
        return scaled >= check_number("threshold", threshold, high=1)
    levels = (scaled.nan_to_num() * 255).floor().long()
    return levels > _otsu_level(levels.flatten(1))[:, None, None]


def _otsu_level(levels: Tensor) -> Tensor:
    """The level `[N]` of 0..255 `[N, P]` above which the foreground lies, with the largest variance between the two."""
    counts = torch.zeros(len(levels), 256, dtype=torch.float64, device=levels.device)
    counts.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.float64))
    below, total = counts.cumsum(1), levels.shape[1]
    mass = (counts * torch.arange(256, device=levels.device)).cumsum(1)
    above = total - below
    difference = mass / below - (mass[:, -1:] - mass) / above
    return (below * above * difference.square()).nan_to_num(-1.0).argmax(1)


def _fill_holes(found: Tensor) -> Tensor:
    """The kept part and what it encloses, each map on its own."""
    from scipy.ndimage import binary_fill_holes

    return torch.from_numpy(binary_fill_holes(found.cpu().numpy(), _PLANE)).to(found.device)


def _bounding_rectangle(found: Tensor) -> Tensor:
    """The smallest rectangle that holds all kept pixels."""
    rows, columns = (_filled(found.any(axis)) for axis in (2, 1))
    return rows[:, :, None] & columns[:, None, :]


def _filled(line: Tensor) -> Tensor:
    """True from the first to the last True of each line `[N, L]`."""
    count = line.long().cumsum(1)
    return (count > 0) & ((count < count[:, -1:]) | line)
