import numpy as np
import pytest
import torch
from scipy.ndimage import binary_fill_holes, distance_transform_edt
from skimage.filters import threshold_otsu
from sklearn.metrics import roc_auc_score

from heatproof.errors import InputError
from heatproof.metrics import METRICS
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
from support.cases import localization_case, slow_iou


def one(maps, roi):
    return localization_case(torch.tensor([maps], dtype=torch.float32), torch.tensor([roi], dtype=torch.bool))


def random_case(count=20, size=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    maps = torch.randn(count, size, size, generator=generator)
    roi = torch.zeros(count, size, size, dtype=torch.bool)
    corners = torch.randint(0, size - 4, (count, 2), generator=generator)
    sides = torch.randint(1, 5, (count, 2), generator=generator)
    for region, (y, x), (h, w) in zip(roi, corners, sides, strict=True):
        region[y : y + h, x : x + w] = True
    return maps, roi


# pointing game


def test_pointing_game_by_hand():
    maps = [[0.0, 1.0], [3.0, 2.0]]
    assert pointing_game(one(maps, [[0, 0], [1, 0]])).item() == 1
    assert pointing_game(one(maps, [[1, 1], [0, 1]])).item() == 0
    negative = [[-4.0, -1.0], [-3.0, -2.0]]
    assert pointing_game(one(negative, [[0, 1], [0, 0]])).item() == 1
    signed = [[-5.0, 1.0], [0.0, 0.5]]
    assert pointing_game(one(signed, [[1, 0], [0, 0]])).item() == 0
    assert pointing_game(one(signed, [[1, 0], [0, 0]]), absolute=True).item() == 1


def test_tied_maxima_count_by_their_share():
    maps = [[3.0, 3.0], [3.0, 0.0]]
    assert pointing_game(one(maps, [[1, 0], [0, 1]])).item() == pytest.approx(1 / 3)
    assert pointing_game(one(maps, [[1, 0], [0, 1]]), ties="any").item() == 1
    assert pointing_game(one(maps, [[0, 0], [0, 1]]), ties="any").item() == 0


@pytest.mark.parametrize("tolerance", [0, 0.9, 1, 1.5, 2, 2.9, 5])
def test_tolerance_is_the_euclidean_distance_to_the_region(tolerance):
    maps, roi = random_case(60)
    found = pointing_game(localization_case(maps, roi), tolerance=tolerance)
    for b in range(len(maps)):
        y, x = np.unravel_index(int(maps[b].argmax()), maps[b].shape)
        assert found[b].item() == float(distance_transform_edt(~roi[b].numpy())[y, x] <= tolerance)
    assert 0 < found.mean() < 1


def test_empty_regions_and_undefined_maps():
    maps, roi = random_case(5)
    roi[0] = False
    maps[1], maps[2, 0, 0], maps[3] = 0.7, torch.nan, torch.inf
    roi[4] = True
    for function in (
        pointing_game,
        iou,
        dice,
        relevance_mass_accuracy,
        relevance_rank_accuracy,
        attribution_localization,
    ):
        found = function(localization_case(maps, roi))
        assert found.isnan().tolist() == [True, True, True, True, False]
    assert top_k_intersection(localization_case(maps, roi), k=3).isnan().tolist() == [True, True, True, True, False]
    assert roi_auc(localization_case(maps, roi)).isnan().all(), "the whole image has no outside to compare with"
    assert pointing_game(localization_case(maps, roi))[4] == 1
    assert relevance_rank_accuracy(localization_case(maps, roi))[4] == 1
    for function in (pointing_game, iou, dice):
        found = function(localization_case(maps, roi), empty="zero")
        assert found[0] == 0
        assert found.isnan().tolist() == [False, True, True, True, False]


# intersection over union


def test_iou_by_hand():
    maps = [[9.0, 8.0, 1.0], [2.0, 3.0, 0.0], [0.0, 7.0, 0.5]]
    roi = [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    # top 30 % of 9 pixels: the percentile lies between the 3rd and 4th highest, so 9, 8, 7 are kept
    assert iou(one(maps, roi), top=30).item() == pytest.approx(1 / 4)
    # their rectangle: rows 0..2, columns 0..1
    assert iou(one(maps, roi), top=30, shape="rectangle").item() == pytest.approx(2 / 6)
    assert iou(one(maps, roi), top=100).item() == pytest.approx(2 / 9)
    assert iou(one(maps, roi), top=0).item() == pytest.approx(1 / 2)  # the maximum alone
    # scaled to [0, 1]: 9 and 8 reach 0.8
    assert iou(one(maps, roi), threshold=0.8).item() == pytest.approx(1 / 3)
    assert iou(one(maps, roi), threshold=8 / 9).item() == pytest.approx(1 / 3)
    assert iou(one(maps, roi), threshold=0).item() == pytest.approx(2 / 9)


@pytest.mark.parametrize("rectangle", [False, True])
@pytest.mark.parametrize("top", [1, 5, 10, 20, 33.3, 40, 99])
def test_iou_against_a_slow_replica(top, rectangle):
    maps, roi = random_case(25, size=11)  # 121 pixels: percentiles both on and between values
    maps[5:10] = maps[5:10].round()  # ties
    found = iou(localization_case(maps, roi), top=top, shape="rectangle" if rectangle else "mask")
    expected = [slow_iou(m, r, top, rectangle) for m, r in zip(maps.numpy(), roi.numpy(), strict=True)]
    assert found.tolist() == pytest.approx(expected)


def test_a_percentage_without_an_exact_float_keeps_the_exact_count():
    maps = torch.arange(1001.0).view(1, 7, 143)  # 33.3 % of 1000 steps are 333, in floats a little less
    assert iou(localization_case(maps, maps >= 1000 - 333), top=33.3).item() == 1


def test_values_equal_to_the_threshold_are_kept():
    maps = [[1.0, 1.0, 1.0, 0.0]]
    assert iou(one(maps, [[1, 1, 1, 0]]), top=1).item() == 1


def test_otsu_agrees_with_scikit_image():
    maps, roi = random_case(20, size=16)
    maps[:10] = maps[:10].exp()
    maps[10] = (maps[10] > 0).float()
    found = iou(localization_case(maps, roi), threshold="otsu")
    for b, (values, region) in enumerate(zip(maps.numpy(), roi.numpy(), strict=True)):
        low, high = values.min(), values.max()
        levels = np.floor((values - low) / (high - low) * 255).astype(np.uint8)
        kept = levels > threshold_otsu(levels)
        assert found[b].item() == pytest.approx((kept & region).sum() / (kept | region).sum())


def test_iou_of_absolute_values():
    maps, roi = random_case(10)
    expected = iou(localization_case(maps.abs(), roi))
    assert torch.equal(iou(localization_case(maps, roi), absolute=True), expected)
    assert not torch.equal(iou(localization_case(maps, roi)), expected)


@pytest.mark.parametrize("options", [{}, {"top": 5, "shape": "rectangle"}, {"threshold": 0.6}, {"threshold": "otsu"}])
def test_dice_is_twice_the_intersection_over_both_sizes(options):
    maps, roi = random_case(20)
    found, ious = dice(localization_case(maps, roi), **options), iou(localization_case(maps, roi), **options)
    assert torch.allclose(found, 2 * ious / (1 + ious))


def test_dice_by_hand():
    maps = [[9.0, 8.0, 1.0], [2.0, 3.0, 0.0], [0.0, 7.0, 0.5]]
    roi = [[1, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert dice(one(maps, roi), top=30).item() == pytest.approx(2 * 1 / (3 + 2))  # 9, 8, 7 are kept
    assert dice(one(maps, roi), top=30, shape="rectangle").item() == pytest.approx(2 * 2 / (6 + 2))


def test_holes_are_filled_map_by_map():
    maps, roi = random_case(12, size=16)
    maps[0] = 0.0
    maps[0, 3:8, 3:8] = 1.0
    maps[0, 4:7, 4:7] = 0.0  # a hole
    maps[0, 10:13, 0], maps[0, 10, 1], maps[0, 12, 1], maps[0, 11, 2] = 1, 1, 1, 1  # closed by corners: filled as well
    maps[0, 14:, 14] = 1.0  # open to the border
    found = iou(localization_case(maps, roi), threshold=0.5, fill=True)
    changed = 0
    for b, (values, region) in enumerate(zip(maps.numpy(), roi.numpy(), strict=True)):
        kept = (values - values.min()) / (values.max() - values.min()) >= 0.5
        filled = binary_fill_holes(kept)
        changed += int((filled != kept).any())
        assert found[b].item() == pytest.approx((filled & region).sum() / (filled | region).sum())
    assert changed > 2
    hole = torch.zeros(1, 16, 16, dtype=torch.bool)
    hole[0, 3:8, 3:8] = hole[0, 10:13, :2] = hole[0, 11, 2] = hole[0, 14:, 14] = True
    assert iou(localization_case(maps[:1], hole), threshold=0.5, fill=True).item() == 1


# mass


def test_mass_by_hand():
    maps = [[1.0, -5.0], [3.0, 4.0]]
    assert relevance_mass_accuracy(one(maps, [[1, 1], [0, 0]])).item() == pytest.approx(1 / 8)
    assert relevance_mass_accuracy(one(maps, [[1, 1], [0, 0]]), absolute=True).item() == pytest.approx(6 / 13)
    assert relevance_mass_accuracy(one(maps, [[1, 1], [1, 1]])).item() == 1
    assert relevance_mass_accuracy(one([[-1.0, -2.0], [0.0, -3.0]], [[1, 1], [0, 0]])).isnan().all()


def test_weighted_mass_is_that_over_the_area_of_the_region():
    maps, roi = random_case(10)
    mass = relevance_mass_accuracy(localization_case(maps, roi))
    assert torch.equal(attribution_localization(localization_case(maps, roi)), mass)
    area = roi.double().mean((1, 2))
    assert torch.allclose(attribution_localization(localization_case(maps, roi), weighted=True), mass / area)
    even = torch.ones(1, 4, 4)
    even[0, 3, 3] = 0.999999  # not constant
    weighted = attribution_localization(one(even[0].tolist(), [[1, 0, 0, 0]] * 4), weighted=True)
    assert weighted.item() == pytest.approx(1, abs=1e-6)


# ranks


def test_rank_accuracy_and_top_k_by_hand():
    maps = [[9.0, 8.0, 1.0], [2.0, 3.0, 0.0], [-1.0, 7.0, 0.5]]
    roi = [[1, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert relevance_rank_accuracy(one(maps, roi)).item() == pytest.approx(3 / 4)  # 9, 8, 7, 3: all but 8
    assert [top_k_intersection(one(maps, roi), k=k).item() for k in (1, 2, 3, 9)] == pytest.approx(
        [1, 1 / 2, 2 / 3, 4 / 9]
    )
    signed = [[-9.0, 1.0], [0.5, 0.1]]
    assert relevance_rank_accuracy(one(signed, [[1, 0], [0, 0]])).item() == 0
    assert relevance_rank_accuracy(one(signed, [[1, 0], [0, 0]]), absolute=True).item() == 1


def test_ranks_against_a_slow_replica():
    maps, roi = random_case(30)
    ranked, top = (
        relevance_rank_accuracy(localization_case(maps, roi)),
        top_k_intersection(localization_case(maps, roi), k=17),
    )
    for b, (values, region) in enumerate(zip(maps.numpy(), roi.numpy(), strict=True)):
        order = np.argsort(-values, axis=None)
        size = int(region.sum())
        assert ranked[b].item() == pytest.approx(region.flat[order[:size]].mean())
        assert top[b].item() == pytest.approx(region.flat[order[:17]].mean())


def test_tied_pixels_at_the_cut_count_by_their_mean_over_random_draws():
    generator = np.random.default_rng(0)
    maps, roi = torch.randn(4, 12, 12).round(), torch.rand(4, 12, 12) > 0.6
    ranked, top = (
        relevance_rank_accuracy(localization_case(maps, roi)),
        top_k_intersection(localization_case(maps, roi), k=17),
    )
    for b, (values, region) in enumerate(zip(maps.numpy(), roi.numpy(), strict=True)):
        size, draws = int(region.sum()), []
        for _ in range(2000):
            order = np.lexsort((generator.random(values.size), -values.ravel()))
            draws.append([region.flat[order[:size]].mean(), region.flat[order[:17]].mean()])
        mean, error = np.mean(draws, 0), 5 * np.std(draws, 0) / 2000**0.5
        assert abs(ranked[b].item() - mean[0]) <= error[0] + 1e-9
        assert abs(top[b].item() - mean[1]) <= error[1] + 1e-9
        assert np.std(draws, 0).min() > 0


def test_auc_agrees_with_scikit_learn():
    maps, roi = random_case(30)
    maps[10:20] = maps[10:20].round()  # ties
    maps[20:] = maps[20:].clamp(min=0)
    found = roi_auc(localization_case(maps, roi))
    expected = [roc_auc_score(r.ravel(), m.ravel()) for m, r in zip(maps.numpy(), roi.numpy(), strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-12)
    assert roi_auc(localization_case(roi.float(), roi)).tolist() == [1] * 30
    assert roi_auc(localization_case(-roi.float(), roi)).tolist() == [0] * 30
    assert torch.allclose(
        roi_auc(localization_case(-roi.float(), roi), absolute=True), torch.ones(30, dtype=torch.float64)
    )


def test_the_energy_pointing_game_is_the_same_number():
    assert METRICS["energy_pointing_game"] is METRICS["relevance_mass_accuracy"]


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (pointing_game, {"ties": "all"}, "ties must be 'fraction' or 'any', got 'all'"),
        (pointing_game, {"empty": 0}, "empty must be 'nan' or 'zero', got 0"),
        (pointing_game, {"tolerance": -1}, "tolerance must be a number, at least 0"),
        (iou, {"top": 120}, "top must be a number, from 0 to 100"),
        (iou, {"shape": "box"}, "shape must be 'mask' or 'rectangle'"),
        (iou, {"threshold": "li"}, "threshold must be 'otsu', a number from 0 to 1 or None, got 'li'"),
        (iou, {"threshold": 1.5}, "threshold must be a number, from 0 to 1"),
        (iou, {"threshold": 0.5, "top": 5}, "threshold=0.5 replaces top: leave top=5 out"),
        (dice, {"fill": True, "shape": "rectangle"}, "fill=True changes nothing about a rectangle"),
        (top_k_intersection, {}, "k must be a whole number, from 1 to 144, got 1000"),
        (top_k_intersection, {"k": 0}, "k must be a whole number"),
    ],
)
def test_impossible_options_are_refused(function, options, message):
    with pytest.raises(InputError, match=message):
        function(localization_case(*random_case(2)), **options)
