"""The geometry against torch's own resampling, a slow coverage sum, and itself backwards."""

import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from heatproof.errors import InputError
from heatproof.images.geometry import Geometry, fit_geometry

SOURCES = [(60, 90), (131, 77), (40, 40), (17, 50)]
TARGET = (32, 48)
FITS = ["resize", "crop", "letterbox"]


def centres(size):
    """(x, y) of every pixel centre, `[H * W, 2]`."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    return np.stack([x.ravel(), y.ravel()], axis=1)


@pytest.mark.parametrize("source", SOURCES)
def test_resize_is_torch_antialiased_bilinear(source):
    pixels = np.random.default_rng(0).random(source, dtype=np.float32)
    ours = fit_geometry("resize", source, TARGET).image(pixels)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(pixels)[None, None].double(), size=TARGET, mode="bilinear", align_corners=False, antialias=True
    )
    np.testing.assert_allclose(ours, theirs[0, 0].numpy(), atol=1e-5)


def test_crop_is_short_side_then_centre():
    # what torchvision's Resize(256) and CenterCrop(224) do, by their documented formulas
    pixels = np.random.default_rng(0).random((300, 401), dtype=np.float32)
    ours = fit_geometry("crop", (300, 401), (224, 224), short_side=256).image(pixels)
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(pixels)[None, None].double(), size=(256, int(256 * 401 / 300)), mode="bilinear", antialias=True
    )[0, 0].numpy()
    top, left = round((256 - 224) / 2), round((342 - 224) / 2)
    np.testing.assert_allclose(ours, resized[top : top + 224, left : left + 224], atol=1e-5)


def test_letterbox_keeps_the_aspect_and_pads_with_black():
    pixels = np.full((50, 100), 0.7, dtype=np.float32)
    out = fit_geometry("letterbox", (50, 100), (40, 40)).image(pixels)
    expected = np.zeros((40, 40), dtype=np.float32)
    expected[10:30] = 0.7
    np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("source", SOURCES)
def test_image_mask_box_points_and_heatmap_stay_together(fit, source):
    """Pixels hold their own coordinates, so every path through the geometry can be read off and compared."""
    geometry = fit_geometry(fit, source, TARGET)
    x, y = (centres(source)[:, k].reshape(source) for k in (0, 1))
    box = np.array([[source[1] * 0.3, source[0] * 0.25, source[1] * 0.7, source[0] * 0.8]])
    mask = (x > box[0, 0]) & (x < box[0, 2]) & (y > box[0, 1]) & (y < box[0, 3])

    # forward image = inverse points, away from the borders where the filter is cut
    back = geometry.inverse_points(centres(TARGET)).reshape(*TARGET, 2)
    margin = 1 + 1 / min(geometry.scale)
    inner = ((back > margin) & (back < np.array(source[::-1]) - margin)).all(axis=2)
    assert inner.sum() > 50
    for ramp, k in ((x, 0), (y, 1)):
        np.testing.assert_allclose(
            geometry.image(ramp)[inner], back[..., k][inner], atol=0.06 / min(1, *geometry.scale)
        )

    # the mask's outline = the box, to half a pixel of either grid
    moved = geometry.boxes(box)[0]
    rows, columns = np.nonzero(geometry.mask(mask))
    outline = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    clipped = np.clip(moved, 0, [TARGET[1], TARGET[0]] * 2)
    half = 0.5 + 0.5 * max(geometry.scale)
    np.testing.assert_allclose(outline, clipped, atol=half + 1e-6)
    centroid = [columns.mean() + 0.5, rows.mean() + 0.5]
    np.testing.assert_allclose(centroid, (clipped[:2] + clipped[2:]) / 2, atol=half)

    # and back: exactly for what has coordinates, for the heatmap as for the image
    np.testing.assert_allclose(geometry.inverse_boxes(geometry.boxes(box)), box, atol=1e-9)
    np.testing.assert_allclose(geometry.inverse_points(geometry.points(box[:, :2])), box[:, :2], atol=1e-9)
    forth = geometry.points(centres(source)).reshape(*source, 2)
    margin = 1 + max(geometry.scale)
    low, high = geometry.points([[0, 0], source[::-1]])  # of the content: the letterbox's bars hold nothing
    low, high = np.maximum(low, 0) + margin, np.minimum(high, TARGET[::-1]) - margin
    inner = ((forth > low) & (forth < high)).all(axis=2)
    assert inner.sum() > 50
    for k in (0, 1):
        ramp = centres(TARGET)[:, k].reshape(TARGET)
        found = geometry.inverse_map(ramp)[inner]
        np.testing.assert_allclose(found, forth[..., k][inner], atol=0.06 * max(1, *geometry.scale))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("source", SOURCES)
def test_a_picture_comes_back_where_it_was(fit, source):
    """A blob goes through the geometry and back and keeps its centroid to a twentieth of a pixel of the coarser grid."""
    x, y = (centres(source)[:, k].reshape(source) for k in (0, 1))
    spot = np.array([source[1] * 0.55, source[0] * 0.45])
    blob = np.exp(-(((x - spot[0]) / source[1]) ** 2 + ((y - spot[1]) / source[0]) ** 2) * 400)
    geometry = fit_geometry(fit, source, TARGET)
    coarse = max(1, 1 / min(geometry.scale))
    forth = geometry.image(blob)
    there = np.array(ndimage.center_of_mass(forth))[::-1] + 0.5
    back = np.array(ndimage.center_of_mass(geometry.inverse_map(forth, fill=0)))[::-1] + 0.5
    np.testing.assert_allclose(there, geometry.points(spot[None])[0], atol=0.05 * coarse * max(geometry.scale) + 1e-3)
    np.testing.assert_allclose(back, spot, atol=0.05 * coarse)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("source", [(9, 14), (13, 6), (4, 5)])
def test_mask_is_half_coverage(fit, source):
    """Against a plain double sum; solid regions, so that no part is finer than the grid."""
    mask = np.zeros(source, dtype=bool)
    mask[1 : source[0] - 1, 0 : source[1] // 2 + 1] = True
    geometry = fit_geometry(fit, source, (4, 6))
    (sy, sx), (oy, ox) = geometry.scale, geometry.offset
    expected = np.zeros((4, 6))
    for i, j, r, c in np.ndindex(4, 6, *source):
        high = max(0.0, min(i + 1, sy * (r + 1) + oy) - max(i, sy * r + oy))
        wide = max(0.0, min(j + 1, sx * (c + 1) + ox) - max(j, sx * c + ox))
        expected[i, j] += high * wide * mask[r, c]
    np.testing.assert_array_equal(geometry.mask(mask), expected >= 0.5 - 1e-5)


def test_a_thin_lesion_neither_vanishes_nor_grows():
    mask = np.zeros((100, 100), dtype=bool)
    mask[52, 20:80] = True  # a line a tenth of an input pixel wide
    mask[14, 14] = True  # a dot of a hundredth of one
    mask[60:90, 40:70] = True  # and a solid part, on the grid
    out = fit_geometry("resize", (100, 100), (10, 10)).mask(mask)
    expected = np.zeros((10, 10), dtype=bool)
    expected[5, 2:8] = True
    expected[1, 1] = True
    expected[6:9, 4:7] = True
    np.testing.assert_array_equal(out, expected)


def test_an_empty_and_a_full_mask_stay_so():
    geometry = fit_geometry("crop", (50, 70), (32, 32))
    assert not geometry.mask(np.zeros((50, 70), dtype=bool)).any()
    assert geometry.mask(np.ones((50, 70), dtype=bool)).all()


def test_seen_is_what_the_crop_left_and_the_map_is_nan_elsewhere():
    geometry = fit_geometry("crop", (10, 30), (10, 10))
    seen = np.zeros((10, 30), dtype=bool)
    seen[:, 10:20] = True
    np.testing.assert_array_equal(geometry.seen, seen)
    values = np.arange(100, dtype=np.float32).reshape(10, 10)
    back = geometry.inverse_map(values)
    np.testing.assert_array_equal(back[:, 10:20], values)
    assert np.isnan(back[~seen]).all()
    np.testing.assert_array_equal(geometry.inverse_map(values, fill=-1)[~seen], -1)


def test_a_constant_map_comes_back_constant_up_to_the_edge_of_what_was_seen():
    for fit in FITS:
        geometry = fit_geometry(fit, (90, 50), (32, 32))
        np.testing.assert_allclose(geometry.inverse_map(np.full((32, 32), 0.3))[geometry.seen], 0.3, atol=1e-6)


def test_colour_goes_channel_by_channel():
    pixels = np.random.default_rng(0).random((20, 31, 3))
    geometry = fit_geometry("letterbox", (20, 31), (16, 16))
    out = geometry.image(pixels)
    for channel in range(3):
        np.testing.assert_array_equal(out[..., channel], geometry.image(pixels[..., channel]))


@pytest.mark.parametrize("fit", FITS)
def test_through_json_and_back(fit):
    geometry = fit_geometry(fit, (33, 70), (20, 24))
    assert Geometry.from_dict(json.loads(json.dumps(geometry.to_dict()))) == geometry


def test_identity_changes_nothing():
    pixels = np.random.default_rng(0).random((24, 24), dtype=np.float32)
    for fit in FITS:
        np.testing.assert_array_equal(fit_geometry(fit, (24, 24), (24, 24)).image(pixels), pixels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fit": "crp"}, "Did you mean 'crop'"),
        ({"fit": "resize", "short_side": 64}, "short_side belongs to fit='crop'"),
        ({"fit": "crop", "short_side": 31}, "at least 32"),
        ({"fit": "resize", "size": (0, 5)}, "at least one pixel"),
        ({"fit": "crop", "source_size": (1, 10**7)}, "too elongated"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        fit_geometry(**{"source_size": (64, 64), "size": (32, 32), **arguments})


def test_arrays_of_another_size_are_refused():
    geometry = fit_geometry("resize", (8, 8), (4, 4))
    for call in (geometry.image, geometry.mask, geometry.inverse_map):
        with pytest.raises(InputError, match=r"\(5, 5\)"):
            call(np.zeros((5, 5)))
