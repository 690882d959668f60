"""The display rules against slow replicas and closed forms."""

import numpy as np
import pytest
import torch
from PIL import Image

from heatproof.errors import InputError
from heatproof.images import display

NEUTRAL = [247, 247, 247]  # ColorBrewer's RdBu in the middle


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(0)


def blob(random: np.random.Generator, size: int = 24) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(random.normal(size=(size, size)), 3) > 0.03


def has_neighbour(mask: np.ndarray, y: int, x: int) -> bool:
    steps = ((0, 1), (1, 0), (0, -1), (-1, 0))
    return any(0 <= y + dy < len(mask) and 0 <= x + dx < mask.shape[1] and mask[y + dy, x + dx] for dy, dx in steps)


def test_the_limit_is_the_99th_percentile_of_the_absolute_values() -> None:
    ramp = np.arange(-100.0, 1.0).reshape(1, -1)
    assert display.robust_limits(ramp, signed=True) == (-99.0, 99.0)
    assert display.robust_limits(-ramp, signed=False) == (0.0, 99.0)


def test_where_almost_all_is_zero_the_limit_is_the_maximum() -> None:
    sparse = np.zeros((20, 20))
    sparse[3, 3], sparse[4, 4] = 5.0, -7.0
    assert display.robust_limits(sparse, signed=True) == (-7.0, 7.0)
    assert display.robust_limits(sparse, signed=False) == (0.0, 5.0)


def test_a_map_declared_positive_without_positive_values_is_at_zero_everywhere() -> None:
    assert display.levels(np.array([[-1.0, -3.0]]), signed=False).tolist() == [[0, 0]]


def test_values_that_are_not_finite_do_not_enter_the_limits() -> None:
    assert display.robust_limits(np.array([[np.nan, np.inf, 2.0, 0.0]]), signed=False) == (0.0, pytest.approx(1.98))


def test_zero_is_the_neutral_colour_and_signs_are_symmetric(random: np.random.Generator) -> None:
    values = random.normal(size=(50, 50))
    values[0, 0] = 0.0
    above, below = display.levels(values, signed=True), display.levels(-values, signed=True)
    assert above[0, 0] == 127
    assert display.colours(True)[127].tolist() == NEUTRAL
    np.testing.assert_array_equal(above.astype(int) + below, 254)
    red, blue = display.colours(True)[254], display.colours(True)[0]
    assert red[0] > 150 > red[2]
    assert blue[2] > 150 > blue[0]


def test_opacity_is_symmetric_and_zero_where_the_map_is_silent() -> None:
    signed, positive = display.alphas(True, 0.8), display.alphas(False, 0.8)
    np.testing.assert_array_equal(signed[:255], signed[254::-1])
    assert (signed[127], signed[0], positive[0], positive[254]) == (0, 204, 0, 204)
    assert (np.diff(positive[:255].astype(int)) >= 0).all()


def replica(image: np.ndarray, map: np.ndarray, signed: bool, opacity: float, limit: float) -> np.ndarray:
    """The overlay pixel by pixel in float64, from matplotlib's own colour maps."""
    from matplotlib import colormaps

    out = np.zeros((*map.shape, 3))
    for (y, x), value in np.ndenumerate(map):
        strength = min(max(abs(value) if signed else value, 0) / limit, 1.0)
        if signed:  # the outer 30 levels of 315 on each side are cut off
            place = 0.5 + np.sign(value) * 0.5 * strength
            colour = np.array(colormaps["RdBu_r"].resampled(315)(30 + round(float(place) * 254)))[:3]
        else:
            colour = np.array(colormaps["viridis"](strength))[:3]
        alpha = opacity * strength
        out[y, x] = (1 - alpha) * image[y, x] + alpha * 255 * colour
    return out


@pytest.mark.parametrize("signed", [True, False])
def test_overlay_equals_a_slow_replica(random: np.random.Generator, signed: bool) -> None:
    image = random.integers(0, 256, size=(16, 20)).astype(np.uint8)
    map = random.normal(size=image.shape)
    map = map if signed else np.abs(map)
    limit = np.percentile(np.abs(map), 99)
    got = display.overlay(image, map, signed=signed, opacity=0.7)
    # 255 levels and 256 opacities: each colour may be off by the step between two levels
    np.testing.assert_allclose(got, replica(image, map, signed, 0.7, limit), atol=3)
    as_float = display.overlay(image / 255.0, map, signed=signed, opacity=0.7)
    np.testing.assert_array_equal(as_float, got)


def test_zero_leaves_the_image_and_the_strongest_value_has_the_end_colour() -> None:
    image = np.full((1, 3), 90, np.uint8)
    got = display.overlay(image, np.array([[-4.0, 0.0, 4.0]]), signed=True, opacity=1.0, limits=(-4.0, 4.0))
    ends = display.colours(True)
    np.testing.assert_array_equal(got[0], [ends[0], [90, 90, 90], ends[254]])


def test_each_option_changes_the_overlay(random: np.random.Generator) -> None:
    image, map = random.random((12, 12)), random.normal(size=(12, 12))
    plain = display.overlay(image, map)
    roi = np.zeros((12, 12), bool)
    roi[3:8, 3:8] = True
    changes = ({"opacity": 0.3}, {"limits": (-9.0, 9.0)}, {"signed": False}, {"roi": roi})
    assert all((display.overlay(image, map, **change) != plain).any() for change in changes)
    np.testing.assert_array_equal(display.overlay(image, map, signed=True), plain)  # the guess for a map below zero


def test_tensors_and_pil_images_are_shown_like_arrays(random: np.random.Generator) -> None:
    grey, map = random.integers(0, 255, (12, 12), dtype=np.uint8), random.normal(size=(12, 12)).astype(np.float32)
    roi = np.zeros((12, 12), bool)
    roi[3:8, 3:8] = True
    expected = display.overlay(grey, map, roi=roi)
    tensor = torch.from_numpy(map).requires_grad_()
    np.testing.assert_array_equal(display.overlay(Image.fromarray(grey), tensor, roi=torch.from_numpy(roi)), expected)
    np.testing.assert_array_equal(display.overlay(grey, tensor, roi=roi.astype(np.uint8)), expected)
    figure = display.show(Image.fromarray(grey), tensor, torch.from_numpy(roi))
    np.testing.assert_array_equal(figure.axes[1].images[0].get_array(), display.overlay(grey, map))


@pytest.mark.parametrize("map", [np.full((4, 4), 0.5), np.zeros((4, 4)), np.full((4, 4), np.nan)])
def test_a_map_that_ranks_nothing_is_grey_and_says_so(map: np.ndarray) -> None:
    got = display.overlay(np.zeros((4, 4)), map, signed=False, opacity=1.0)
    assert len(np.unique(got)) == 1
    assert 100 < got[0, 0, 0] < 200
    reason = display.undefined_reason(map)
    assert reason is not None
    figure = display.show(np.zeros((4, 4)), map, title="lime")
    assert figure.axes[1].get_title() == f"lime · {reason}"
    assert len(figure.axes) == 2  # no colour bar


def test_single_undefined_pixels_are_grey() -> None:
    got = display.overlay(np.zeros((1, 3)), np.array([[0.0, np.nan, 1.0]]), signed=False, opacity=1.0)
    assert got[0, 0].tolist() == [0, 0, 0]
    assert len(set(got[0, 1].tolist())) == 1
    assert got[0, 1, 0] == 140


def test_outline_lies_on_the_border_of_the_region(random: np.random.Generator) -> None:
    roi = blob(random)
    inner, outer = display.outline(roi)
    for (y, x), inside in np.ndenumerate(roi):
        at_edge = y in (0, len(roi) - 1) or x in (0, len(roi) - 1)
        assert inner[y, x] == (inside and (at_edge or has_neighbour(~roi, y, x)))
        assert outer[y, x] == (not inside and has_neighbour(roi, y, x))


def test_overlay_draws_the_outline_white_inside_and_black_outside() -> None:
    roi = np.zeros((9, 9), bool)
    roi[2:7, 3:6] = True
    got = display.overlay(np.full((9, 9), 0.5), np.eye(9), signed=False, roi=roi)
    white, black = (got == 255).all(2), (got == 0).all(2)
    assert white.sum() == 2 * 5 + 2 * 1  # the rectangle's own outermost pixels
    assert black.sum() == 2 * (5 + 3)  # the pixels that share a side with it
    assert not (white & ~roi).any()
    assert not (black & roi).any()


def test_contours_of_a_rectangle_run_half_a_pixel_outside_its_centres() -> None:
    roi = np.zeros((10, 12), bool)
    roi[2:5, 3:9] = True
    [polygon] = display.contours(roi)
    assert polygon[:, 0].min() == 2.5
    assert polygon[:, 0].max() == 8.5
    assert polygon[:, 1].min() == 1.5
    assert polygon[:, 1].max() == 4.5
    [edge] = display.contours(np.ones((3, 3), bool))
    assert edge.min() == -0.5
    assert edge.max() == 2.5


def test_contours_separate_the_region_from_the_rest(random: np.random.Generator) -> None:
    roi = blob(random)
    from skimage.draw import polygon2mask

    filled = np.zeros_like(roi)
    for polygon in display.contours(roi):  # a hole's contour takes out what the outer one put in
        filled ^= polygon2mask(roi.shape, polygon[:, ::-1])
    np.testing.assert_array_equal(filled, roi)


def test_show_has_a_colour_bar_with_the_limits_and_the_outline(random: np.random.Generator) -> None:
    map = random.normal(size=(20, 20))
    roi = np.zeros((20, 20), bool)
    roi[5:9, 5:9] = True
    figure = display.show(random.random((20, 20)), map, roi, signed=True)
    plain, covered, bar = figure.axes
    assert bar.get_ylim() == pytest.approx(display.robust_limits(map, signed=True))
    assert len(plain.lines) == len(covered.lines) == 2  # black under white
    np.testing.assert_array_equal(covered.lines[1].get_xydata(), display.contours(roi)[0])


@pytest.mark.parametrize(
    ("image", "map", "options", "message"),
    [
        (np.zeros((4, 4)), np.zeros((4, 5)), {}, "image's size"),
        (np.zeros((4, 4)), np.zeros((4, 4)), {"roi": np.zeros((2, 2), bool)}, "image's size"),
        (np.full((4, 4), 1.5), np.zeros((4, 4)), {}, r"\[0, 1\]"),
        (np.zeros((4, 4, 2)), np.zeros((4, 4)), {}, r"\[H, W, 3\]"),
        (np.zeros((4, 4)), np.eye(4), {"opacity": 2.0}, "opacity"),
        (np.zeros((4, 4)), np.eye(4), {"limits": (1.0, 1.0)}, "limits"),
        (np.zeros((4, 4)), np.eye(4), {"limits": (-1.0, 2.0), "signed": True}, "limits"),
    ],
)
def test_bad_input_is_named(image: np.ndarray, map: np.ndarray, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        display.overlay(image, map, **options)
