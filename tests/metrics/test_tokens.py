"""Localization on the grid of tokens: every cell counts for its area."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

import heatproof as hp
from heatproof.errors import InputError
from heatproof.images.read import read_mask
from heatproof.metrics.localization import (
    attribution_localization,
    dice,
    iou,
    pointing_game,
    relevance_mass_accuracy,
    relevance_rank_accuracy,
    roi_auc,
    top_k_intersection,
)
from heatproof.metrics.tokens import area_average
from support.cases import localization_case, make_case
from support.nets import TinyCNN, TinyViT


def by_hand():
    """A map of 2 × 2 tokens of 2 × 2 pixels, and a region that covers 1, 1/2, 1/4 and 0 of them."""
    maps = torch.tensor([[[3.0, 4.0], [1.0, -2.0]]])
    roi = torch.tensor([[[1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]], dtype=torch.bool)
    return localization_case(maps, roi)


def test_every_metric_by_hand():
    case, share = by_hand(), {"tokens": True}
    assert pointing_game(case, **share).item() == pytest.approx(1 / 2)
    assert iou(case, top=0, **share).item() == pytest.approx(0.5 / (1 + 1.75 - 0.5))  # the highest token alone
    assert dice(case, top=0, **share).item() == pytest.approx(2 * 0.5 / (1 + 1.75))
    assert iou(case, top=50, **share).item() == pytest.approx(1.5 / (2 + 1.75 - 1.5))
    assert relevance_mass_accuracy(case, **share).item() == pytest.approx((3 * 1 + 4 / 2 + 1 / 4) / 8)
    assert relevance_mass_accuracy(case, absolute=True, **share).item() == pytest.approx((3 * 1 + 4 / 2 + 1 / 4) / 10)
    # the region is 1.75 tokens: all of the highest, 3/4 of the second
    assert relevance_rank_accuracy(case, **share).item() == pytest.approx((0.5 + 0.75 * 1) / 1.75)
    # 6 pixels are one token and a half
    assert top_k_intersection(case, k=6, **share).item() == pytest.approx((0.5 + 0.5 * 1) / 1.5)
    # pairs (inside, outside) by token: the highest has 2 and 2 pixels, then 4 and 0, 1 and 3, 0 and 4
    pairs = 2 * (2 / 2 + 0 + 3 + 4) + 4 * (3 + 4) + 1 * (3 / 2 + 4)
    assert roi_auc(case, **share).item() == pytest.approx(pairs / (7 * 9))
    mass = (3 * 1 + 4 / 2 + 1 / 4) / 8
    assert attribution_localization(case, weighted=True, **share).item() == pytest.approx(mass * 4 / 1.75)


def test_coverage_makes_cells_whole():
    case = by_hand()
    for coverage, region in ((0.5, [1, 1, 0, 0]), (0.51, [1, 0, 0, 0]), (0.25, [1, 1, 1, 0]), (1, [1, 0, 0, 0])):
        cells = localization_case(case.maps, torch.tensor(region, dtype=torch.bool).view(1, 2, 2))
        for function in (pointing_game, relevance_mass_accuracy, relevance_rank_accuracy, roi_auc, iou, dice):
            assert function(case, tokens=True, coverage=coverage).item() == function(cells).item()


def test_tied_tokens_and_the_tolerance():
    case = by_hand()
    case.maps[0] = torch.tensor([[3.0, 4.0], [1.0, 4.0]])
    assert pointing_game(case, tokens=True).item() == pytest.approx((1 / 2 + 0) / 2)
    assert pointing_game(case, tokens=True, ties="any").item() == pytest.approx(1 / 2)
    # a pixel around the region: the second token is then covered, and one pixel of the last; with corners two of them
    assert pointing_game(case, tokens=True, tolerance=1).item() == pytest.approx((1 + 1 / 4) / 2)
    assert pointing_game(case, tokens=True, tolerance=1.5).item() == pytest.approx((1 + 2 / 4) / 2)


@pytest.mark.parametrize(("size", "grid"), [((12, 12), (4, 4)), ((12, 8), (4, 2)), ((7, 10), (3, 4)), ((5, 5), (5, 5))])
def test_areas_are_exact_where_cells_cut_through_pixels(size, grid):
    values = torch.randn(3, *size, dtype=torch.float64)
    fine = [g * s for g, s in zip(grid, size, strict=True)]  # each pixel in g × g parts, each cell of s × s of them
    parts = values.repeat_interleave(grid[0], 1).repeat_interleave(grid[1], 2)
    expected = F.avg_pool2d(parts[:, None], size)[:, 0]
    assert parts.shape[1:] == tuple(fine)
    assert torch.allclose(area_average(values, grid), expected, atol=1e-12)


@pytest.mark.parametrize("grid", [(4, 4), (3, 5)])
def test_auc_and_mass_against_pixels_weighted_by_hand(grid):
    maps, roi = torch.randn(6, *grid).round(decimals=1), torch.rand(6, 12, 12) > 0.7
    cover = area_average(roi, grid).flatten(1).numpy()
    case = localization_case(maps, roi)
    found = roi_auc(case, tokens=True)
    for b, values in enumerate(maps.flatten(1).numpy()):
        labels = np.repeat([1, 0], len(values))
        weights = np.concatenate([cover[b], 1 - cover[b]])
        expected = roc_auc_score(labels, np.tile(values, 2), sample_weight=weights)
        assert found[b].item() == pytest.approx(expected, abs=1e-9)
    positive = maps.clamp(min=0).flatten(1).double()
    expected = (positive * torch.from_numpy(cover)).sum(1) / positive.sum(1)
    assert torch.allclose(relevance_mass_accuracy(case, tokens=True), expected)


def test_a_map_at_the_input_is_averaged_over_each_token():
    maps, roi = torch.randn(3, 12, 12), torch.rand(3, 12, 12) > 0.6
    pooled = F.avg_pool2d(maps[:, None], 3)[:, 0]
    for function in (pointing_game, iou, dice, relevance_mass_accuracy, relevance_rank_accuracy, roi_auc):
        found = function(localization_case(maps, roi), tokens=(4, 4))
        assert torch.allclose(found, function(localization_case(pooled, roi), tokens=True), atol=1e-6)
    signed = relevance_mass_accuracy(localization_case(maps, roi), tokens=(4, 4), absolute=True)
    assert torch.allclose(signed, relevance_mass_accuracy(localization_case(pooled.abs(), roi), tokens=True), atol=1e-6)


def test_a_map_that_is_constant_on_the_grid_ranks_nothing():
    maps = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)[None]
    roi = torch.rand(1, 8, 8) > 0.5
    for function in (relevance_mass_accuracy, pointing_game, iou):
        assert function(localization_case(maps + 5, roi)).isfinite().all()
        assert function(localization_case(maps + 5, roi), tokens=(4, 4)).isnan().all()
        constant = torch.full((1, 7, 7), 0.1)  # whose averages over cut pixels differ by rounding
        assert function(localization_case(constant, torch.rand(1, 7, 7) > 0.5), tokens=(3, 3)).isnan().all()


@pytest.mark.parametrize("patch", [8, 4])
def test_true_is_the_grid_of_the_models_patches(patch):
    net = TinyViT(patch=patch, channels=1).eval()
    images, maps, roi = torch.randn(2, 1, 32, 32), torch.randn(2, 32, 32), torch.rand(2, 32, 32) > 0.7
    side = 32 // patch
    found = relevance_mass_accuracy(make_case(net, images, maps, roi=roi), tokens=True)
    assert torch.equal(found, relevance_mass_accuracy(make_case(net, images, maps, roi=roi), tokens=(side, side)))
    assert hp.score(
        net, images, maps, metric="relevance_mass_accuracy", roi=roi, tokens=True, targets=[0, 1]
    ).tolist() == (pytest.approx(found.tolist()))


def test_a_model_without_patches_says_what_to_give():
    images, maps, roi = torch.randn(2, 1, 32, 32), torch.randn(2, 32, 32), torch.rand(2, 32, 32) > 0.7
    with pytest.raises(InputError, match=r"tokens=True stands for the patches.*tokens=\(rows, columns\)"):
        iou(make_case(TinyCNN(channels=1), images, maps, roi=roi), tokens=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 14}, r"tokens must be \(rows, columns\), got 14"),
        ({"tokens": (4, 4, 4)}, r"tokens must be \(rows, columns\)"),
        ({"tokens": (0, 4)}, "tokens must be a whole number, from 1 to 12, got 0"),
        ({"tokens": (4, 13)}, "tokens must be a whole number, from 1 to 12, got 13"),
        ({"tokens": None}, r"tokens must be \(rows, columns\), got None"),
        ({"tokens": (4, 4), "coverage": 1.5}, "coverage must be a number, from 0 to 1"),
        ({"coverage": 0.5}, "coverage=0.5 is that of a cell: give it together with tokens=True"),
    ],
)
def test_impossible_grids_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        iou(localization_case(torch.randn(2, 12, 12), torch.rand(2, 12, 12) > 0.5), **options)


def test_small_regions_vanish_at_half_a_token_and_not_by_their_share(shared):
    paths = sorted((shared / "attention_maps_rois" / "duke").glob("*.png"))
    roi = torch.stack([torch.from_numpy(read_mask(path, (224, 224))) for path in paths]) > 0
    share = area_average(roi, (14, 14))
    assert len(roi) == 50
    assert (share.amax((1, 2)) < 0.5).sum() == 10
    assert (share.amax((1, 2)) > 0).all()
    assert torch.allclose(share.mean((1, 2)), roi.double().mean((1, 2)))
    maps = torch.rand(50, 14, 14)
    case = localization_case(maps, roi)
    assert iou(case, tokens=True).isfinite().all()
    assert iou(case, tokens=True, coverage=0.5).isnan().sum() == 10
