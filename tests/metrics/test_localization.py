import numpy as np
import pytest
import torch
from scipy.ndimage import distance_transform_edt
from skimage.filters import threshold_otsu

from heatproof.errors import InputError
from heatproof.metrics import METRICS
from heatproof.metrics.localization import iou, pointing_game, relevance_mass_accuracy
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
    for function in (pointing_game, iou, relevance_mass_accuracy):
        found = function(localization_case(maps, roi))
        assert found.isnan().tolist() == [True, True, True, True, False]
    assert pointing_game(localization_case(maps, roi))[4] == 1
    for function in (pointing_game, iou):
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


# mass


def test_mass_by_hand():
    maps = [[1.0, -5.0], [3.0, 4.0]]
    assert relevance_mass_accuracy(one(maps, [[1, 1], [0, 0]])).item() == pytest.approx(1 / 8)
    assert relevance_mass_accuracy(one(maps, [[1, 1], [0, 0]]), absolute=True).item() == pytest.approx(6 / 13)
    assert relevance_mass_accuracy(one(maps, [[1, 1], [1, 1]])).item() == 1
    assert relevance_mass_accuracy(one([[-1.0, -2.0], [0.0, -3.0]], [[1, 1], [0, 0]])).isnan().all()


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
    ],
)
def test_impossible_options_are_refused(function, options, message):
    with pytest.raises(InputError, match=message):
        function(localization_case(*random_case(2)), **options)
