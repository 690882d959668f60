import numpy as np
import pytest
import torch
from scipy.stats import entropy, spearmanr
from skimage.metrics import structural_similarity

from heatproof.metrics.similarity import histogram_entropy, spearman, ssim


@pytest.mark.parametrize("kind", ["distinct", "ties", "huge"])
def test_spearman_is_that_of_scipy(kind):
    left, right = torch.randn(4, 9, 7), torch.randn(4, 9, 7)
    right += left * torch.tensor([-2.0, 0.0, 0.5, 3.0])[:, None, None]
    if kind == "ties":
        left, right = left.round(), right.round()
    if kind == "huge":
        left = left.double().exp() * 1e30
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(left, right, strict=True)]
    assert spearman(left, right).tolist() == pytest.approx(expected, abs=1e-12)


def test_spearman_of_maps_that_rank_nothing_is_nan():
    maps = torch.randn(4, 5, 5)
    broken = maps.clone()
    broken[0], broken[1, 2, 2], broken[2, 0, 0] = 1.0, torch.nan, torch.inf
    assert spearman(maps, broken).isnan().tolist() == [True, True, True, False]
    assert spearman(broken, maps).isnan().tolist() == [True, True, True, False]


def scaled(values):
    values = values.astype(np.float64)
    return values / np.abs(values).max()


@pytest.mark.parametrize("size", [(16, 16), (7, 12), (30, 9)])
def test_ssim_is_that_of_scikit_image_in_the_plane(size):
    left = torch.randn(4, *size)
    right = left * torch.tensor([1.0, 0.5, -1.0, 0.0])[:, None, None] + torch.randn(4, *size)
    expected = []
    for a, b in zip(map(scaled, left.numpy()), map(scaled, right.numpy()), strict=True):
        expected.append(structural_similarity(a, b, data_range=max(a.max(), b.max()) - min(a.min(), b.min())))
    assert ssim(left, right).tolist() == pytest.approx(expected, abs=1e-8)  # its running sums round
    assert ssim(left, 1000 * right).tolist() == pytest.approx(expected, abs=1e-6), "units make no difference"


@pytest.mark.parametrize(("size", "window"), [((4, 9), 3), ((6, 6), 5), ((5, 20), 5)])
def test_ssim_of_small_maps_has_the_largest_odd_window_that_fits(size, window):
    left, right = torch.randn(2, *size), torch.randn(2, *size)
    expected = []
    for a, b in zip(map(scaled, left.numpy()), map(scaled, right.numpy()), strict=True):
        span = max(a.max(), b.max()) - min(a.min(), b.min())
        expected.append(structural_similarity(a, b, data_range=span, win_size=window))
    assert ssim(left, right).tolist() == pytest.approx(expected, abs=1e-8)  # its running sums round


def test_ssim_where_there_is_little_to_compare():
    maps = torch.randn(3, 9, 9)
    nothing = torch.zeros(3, 9, 9)
    nothing[1, 0, 0] = torch.nan
    found = ssim(maps, nothing)
    assert found.isnan().tolist() == [False, True, False]
    assert (found[::2].abs() < 0.2).all()
    assert ssim(maps, maps).tolist() == pytest.approx([1] * 3)
    assert ssim(torch.randn(2, 2, 2), torch.randn(2, 2, 2)).isnan().all()


@pytest.mark.parametrize("bins", [2, 10, 100])
def test_histogram_entropy_is_that_of_numpy(bins):
    maps = torch.randn(3, 20, 20).double() * torch.tensor([1e-9, 1.0, 1e9])[:, None, None]
    expected = [entropy(np.histogram(a.numpy(), bins=bins)[0]) for a in maps]
    assert histogram_entropy(maps, bins).tolist() == pytest.approx(expected, abs=1e-12)


def test_histogram_entropy_by_hand():
    quarters = torch.arange(4.0).repeat_interleave(5).view(1, 4, 5)
    assert histogram_entropy(quarters, 100).item() == pytest.approx(np.log(4))
    constant = torch.full((1, 4, 4), 7.0)
    assert histogram_entropy(constant, 100).item() == 0
    assert histogram_entropy(constant.masked_fill(torch.eye(4, dtype=torch.bool), torch.nan), 100).isnan().all()
