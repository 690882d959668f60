"""Maps and regions on the grid of a method's own cells, such as the tokens of a vision transformer."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from heatproof.checks import check_count
from heatproof.errors import InputError, UnsupportedModelError
from heatproof.metrics.registry import Case
from heatproof.models.patches import patch_grid

Grid: TypeAlias = tuple[int, int]
Tokens: TypeAlias = bool | Sequence[int]


def check_grid(name: str, grid: Any, size: Sequence[int]) -> Grid:
    """`grid` as (rows, columns); `InputError` unless these are two whole numbers, at most the pixels of `size` (H, W)."""
    if isinstance(grid, str) or not isinstance(grid, Sequence) or len(grid) != 2:
        raise InputError(f"{name} must be (rows, columns), got {grid!r}.")
    rows, columns = (check_count(name, cells, high=side) for cells, side in zip(grid, size, strict=True))
    return rows, columns


def resolve_grid(case: Case, tokens: Tokens) -> Grid:
    """The grid that `tokens` asks for: the one given, or under True that of the maps, or else of the model's patches.

    Raises:
        InputError: not a grid of this image, or the model has no patches.
    """
    size = case.regions.shape[1:]
    if not isinstance(tokens, bool):
        return check_grid("tokens", tokens, size)
    if case.maps.shape[1:] != size:
        return case.maps.shape[1], case.maps.shape[2]
    return case.shared("patch grid", lambda: _patch_grid(case))


def _patch_grid(case: Case) -> Grid:
    try:
        return patch_grid(case.model, case.images)
    except UnsupportedModelError:
        raise InputError(
            "tokens=True stands for the patches of a vision transformer, and this model has no attention over them. Give "
            "the grid of the maps, tokens=(rows, columns), or the maps themselves on their own grid."
        ) from None


def area_average(values: Tensor, grid: Grid) -> Tensor:
    """The mean of `values` `[N, H, W]` over each cell of `grid`, by area where cells cut through pixels, float64.

    >>> area_average(torch.tensor([[[0.0, 1.0, 2.0]]]), (1, 2))
    tensor([[[0.3333, 1.6667]]], dtype=torch.float64)
    """
    rows, columns = (_shares(s, c, values.device) for s, c in zip(values.shape[1:], grid, strict=True))
    return rows @ values.double() @ columns.T


def _shares(pixels: int, cells: int, device: torch.device) -> Tensor:
    """The share of each cell that each pixel of a line makes up, float64 `[cells, pixels]`."""
    edges = torch.arange(cells + 1, dtype=torch.float64, device=device) * (pixels / cells)
    left = torch.arange(pixels, dtype=torch.float64, device=device)
    overlap = torch.minimum(edges[1:, None], left + 1) - torch.maximum(edges[:-1, None], left)
    return overlap.clamp(min=0) * (cells / pixels)
