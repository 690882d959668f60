"""Noisy linear imputation: a replaced pixel becomes the weighted mean of its eight neighbours, and a little noise.

The neighbours may be replaced themselves, so the values solve a sparse linear system, one for each mask and channel: by
conjugate gradients, which coarser and coarser grids precondition, so that large holes take hardly more steps than small ones
[bramble1990parallel].
"""

import torch
from torch import Tensor
from torch.nn import functional as F

NOISE = 0.01  # standard deviation, in model-input units, as in the authors' code
_TOLERANCE = 1e-8  # of the residual, relative to that of the start
# pixels of the systems that are solved together: on a CPU what its caches hold
_ON_A_CPU, _ON_A_GPU = 1 << 16, 1 << 23


def inpaint(images: Tensor, masks: Tensor, noise: Tensor) -> Tensor:
    """Images whose masked pixels are imputed from the others [rong2022consistent].

    Each masked pixel is the mean of its neighbours in the image, direct ones with weight 1/6, diagonal ones with 1/12.

    Args:
        images: `[B, C, H, W]`.
        masks: bool `[B, k, H, W]`, True = replaced. A mask that leaves no pixel leaves the noise alone.
        noise: added to the imputed values, `[B, C, H, W]`.

    Returns:
        `[B, k, C, H, W]`.

    Example:
        >>> image = torch.tensor([[[[1.0, 0.0, 4.0]]]])
        >>> inpaint(image, torch.tensor([[[[False, True, False]]]]), torch.zeros(1, 1, 1, 3)).flatten().tolist()
        [1.0, 2.5, 4.0]
    """
    shape = (*masks.shape[:2], *images.shape[1:])
    values = images[:, None].expand(shape).flatten(0, 2)
    replaced = masks[:, :, None].expand(shape).flatten(0, 2)
    together = max(1, (_ON_A_CPU if images.device.type == "cpu" else _ON_A_GPU) // masks[0, 0].numel())
    parts = zip(values.split(together), replaced.split(together), strict=True)
    imputed = torch.cat([_impute(part.double(), where.double()).to(images) for part, where in parts])
    return torch.where(masks[:, :, None], imputed.view(shape) + noise[:, None], images[:, None])


def _impute(values: Tensor, masks: Tensor) -> Tensor:
    """What stands at the masked pixels (masks `[n, H, W]`, 1 = masked) of `values` `[n, H, W]`; 0 elsewhere.

    The unknowns x solve `masks · (total · x − blur(x)) = masks · blur(the rest)`: a pixel's own weights in the blur and in
    the total cancel.
    """
    levels = _coarser(masks)
    total = _blur(torch.ones_like(masks[:1]))
    solution, direction = torch.zeros_like(values), torch.zeros_like(values)
    residual = masks * _blur(values * (1 - masks))
    square = _dot(residual, residual)
    enough, along = _TOLERANCE**2 * square, torch.ones_like(square)
    while (unsolved := square > enough).any():
        steered, before = _precondition(residual, levels), along
        along = _dot(residual, steered)
        # a system that is solved stands still, so that it does not depend on those that are solved with it
        direction = torch.where(unsolved, torch.addcmul(steered, along / before, direction), 0.0)
        pushed = (total * direction).sub_(_blur(direction)).mul_(masks)
        step = torch.where(unsolved, along / _dot(direction, pushed), 0.0)
        solution.addcmul_(step, direction)
        residual = torch.addcmul(residual, step, pushed, value=-1)
        square = _dot(residual, residual)
    return solution


def _blur(values: Tensor) -> Tensor:
    """The weights 1, 2, 1 along rows and along columns, with 0 around the image, `[n, H, W]`."""
    wide = F.pad(values, (1, 1, 1, 1))
    across = wide[..., :-2].add(wide[..., 1:-1], alpha=2).add_(wide[..., 2:])
    return across[..., :-2, :].add(across[..., 1:-1, :], alpha=2).add_(across[..., 2:, :])


def _precondition(residual: Tensor, levels: list[Tensor]) -> Tensor:
    """The residual, and what is left of it on each coarser grid interpolated back."""
    if len(levels) == 1:
        return residual
    coarse = _precondition(levels[1] * _halved(residual), levels[1:])
    return residual + _doubled(coarse, residual.shape[1:])


def _coarser(masks: Tensor) -> list[Tensor]:
    """The masks on grids of half the size each; a cell is masked if all pixels are into which it is interpolated."""
    levels = [masks]
    while min(levels[-1].shape[1:]) > 1 and (coarse := _halved(1 - levels[-1]) == 0).any():
        levels.append(coarse.to(masks))
    return levels


def _halved(values: Tensor) -> Tensor:
    """The transpose of `_doubled`."""
    return F.avg_pool2d(_blur(values), 2) / 4


def _doubled(values: Tensor, size: torch.Size) -> Tensor:
    """Bilinear interpolation between cells of two by two pixels, `[n, h, w]` to `[n, *size]`."""
    near = F.interpolate(values[None], scale_factor=2, mode="nearest")[0]
    return _blur(F.pad(near, (0, size[1] % 2, 0, size[0] % 2))) / 16


def _dot(left: Tensor, right: Tensor) -> Tensor:
    """Sums of products over the pixels, `[n, 1, 1]`."""
    return (left * right).sum((1, 2), keepdim=True)
