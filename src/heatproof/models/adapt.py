"""Fit pretrained weights to another input: another image size, one channel in place of three."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.errors import InputError

Grid = tuple[int, int]


def patch_grid(image_size: tuple[int, int], patch_size: tuple[int, int]) -> Grid:
    """Patches in (height, width).

    Raises:
        InputError: the patches do not tile the image: a rest at its right and lower edge would never be seen.
    """
    grid = (image_size[0] // patch_size[0], image_size[1] // patch_size[1])
    if 0 in grid or image_size[0] % patch_size[0] or image_size[1] % patch_size[1]:
        near = tuple(max(1, round(s / p)) * p for s, p in zip(image_size, patch_size, strict=True))
        raise InputError(
            f"Patches of {patch_size[0]} x {patch_size[1]} do not tile an image of {image_size[0]} x {image_size[1]} "
            f"pixels: choose image_size a multiple of the patch size, such as {near}, or another patch_size."
        )
    return grid


def resize_positions(positions: Tensor, old: Grid, new: Grid) -> Tensor:
    """Position embeddings `[1, X + h·w, D]` for another grid of patches, by bicubic interpolation.

    The X extra tokens in front (class, distillation) keep theirs. This is the interpolation of
    `dosovitskiy2021image` as transformers' `interpolate_pos_encoding` does it, done once on the weights so that the
    forward pass stays plain.
    """
    if old == new:
        return positions
    extra = positions.shape[1] - old[0] * old[1]
    image = positions[:, extra:].reshape(1, *old, -1).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new, mode="bicubic", align_corners=False)
    return torch.cat([positions[:, :extra], image.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def fold_channels(
    weight: Tensor, bias: Tensor | None, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor | None, float, float]:
    """A first convolution for three channels as one for a grey image: `(weight, bias, mean, std)`.

    A grey image g reaches channel c as `(g − m_c) / s_c`. With `x = (g − m) / s`, m and s the averages, that is
    `x·s/s_c + (m − m_c)/s_c`: the weights are summed over their channels with the factors `s/s_c`, and the constants
    go into the bias. Where the convolution pads nothing, the result equals that on the repeated image, up to rounding.
    Without a bias (None: DenseNet) the constants have nowhere to go: the result is that of the repeated image
    normalised with m in every channel and each channel's own std.

    Args:
        weight: `[out, 3, kh, kw]`.
        bias: `[out]` or None.
        mean: three values, for intensities in [0, 1].
        std: likewise.
    """
    means, stds = weight.new_tensor(list(mean)).double(), weight.new_tensor(list(std)).double()
    m, s = means.mean(), stds.mean()
    exact = weight.double()
    folded = torch.einsum("ocyx,c->oyx", exact, s / stds)[:, None]
    if bias is not None:
        bias = (bias.double() + torch.einsum("ocyx,c->o", exact, (m - means) / stds)).to(weight.dtype)
    return folded.to(weight.dtype), bias, float(m), float(s)
