"""Folding and interpolation against the formulas, in float64."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from heatproof.models.adapt import fold_channels, resize_positions

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _grey(seed=0):
    return torch.rand(2, 1, 24, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _normalized(grey, mean, std):
    view = lambda values: torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)  # noqa: E731
    return (grey - view(mean)) / view(std)


def test_folding_without_padding_is_exact():
    weight, bias, grey = torch.randn(5, 3, 4, 4).double(), torch.randn(5).double(), _grey()
    want = F.conv2d(_normalized(grey, MEAN, STD), weight, bias, stride=4)
    folded, shifted, mean, std = fold_channels(weight, bias, MEAN, STD)
    got = F.conv2d(_normalized(grey, [mean], [std]), folded, shifted, stride=4)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_folding_without_bias_is_exact_for_the_average_mean_also_at_padded_borders():
    weight, grey = torch.randn(5, 3, 7, 7).double(), _grey()
    folded, bias, mean, std = fold_channels(weight, None, MEAN, STD)
    want = F.conv2d(_normalized(grey, [sum(MEAN) / 3] * 3, STD), weight, stride=2, padding=3)
    got = F.conv2d(_normalized(grey, [mean], [std]), folded, bias, stride=2, padding=3)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def _cubic_matrix(old, new):
    """Keys' cubic kernel with a = -0.75 at half-pixel centres, border values repeated: `[new, old]`."""
    matrix, a = np.zeros((new, old)), -0.75
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
            d = abs(centre - j)
            weight = (a + 2) * d**3 - (a + 3) * d**2 + 1 if d <= 1 else a * (d**3 - 5 * d**2 + 8 * d - 4)
            matrix[i, min(max(j, 0), old - 1)] += weight
    return matrix


def test_positions_are_interpolated_on_each_axis_and_extra_tokens_stay():
    positions = torch.randn(1, 2 + 8 * 6, 3).double()
    resized = resize_positions(positions, (8, 6), (5, 11))
    assert torch.equal(resized[:, :2], positions[:, :2])
    grid = positions[0, 2:].reshape(8, 6, 3).numpy()
    want = np.einsum("ia,jb,abd->ijd", _cubic_matrix(8, 5), _cubic_matrix(6, 11), grid)
    np.testing.assert_allclose(resized[0, 2:].reshape(5, 11, 3).numpy(), want, rtol=1e-10, atol=1e-10)
    assert torch.equal(resize_positions(positions, (8, 6), (8, 6)), positions)
