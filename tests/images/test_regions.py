"""Boxes as text and as pixels."""

import numpy as np
import pytest

from heatproof.errors import ImageError
from heatproof.images.regions import boxes_to_mask, parse_boxes


def test_boxes_cover_the_pixels_whose_centre_they_hold():
    boxes = np.random.default_rng(0).uniform(0, 20, (50, 4))
    boxes = np.concatenate([boxes[:, :2].clip(0, 14), boxes[:, :2].clip(0, 14) + 1 + boxes[:, 2:] / 4], axis=1)
    y, x = np.mgrid[:18, :20] + 0.5
    for x0, y0, x1, y1 in boxes:
        expected = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
        np.testing.assert_array_equal(boxes_to_mask([[x0, y0, x1, y1]], (18, 20)), expected)


def test_several_boxes_are_united_and_cut_at_the_border():
    mask = boxes_to_mask(parse_boxes("-5 -5 1 1; 2 1 9 2 ;"), (3, 4))
    np.testing.assert_array_equal(mask, [[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]])


def test_no_box_is_an_empty_region():
    assert parse_boxes("").shape == (0, 4)
    np.testing.assert_array_equal(boxes_to_mask(parse_boxes(""), (2, 2)), np.zeros((2, 2)))


def test_a_box_finer_than_a_pixel_keeps_its_pixel():
    expected = np.zeros((3, 4))
    expected[1, 2] = 1
    np.testing.assert_array_equal(boxes_to_mask([[2.6, 1.1, 2.9, 1.3]], (3, 4)), expected)


@pytest.mark.parametrize("text", ["1 2 3", "1 2 3 4 5", "a b c d", "1 2 nan 4", "1,2,3,4"])
def test_malformed_boxes(text):
    with pytest.raises(ImageError, match="four numbers"):
        parse_boxes(text)


def test_boxes_without_area_or_outside():
    with pytest.raises(ImageError, match="x0 < x1"):
        parse_boxes("10 10 5 5")
    with pytest.raises(ImageError, match=r"9 0 12 2 lies outside its image of 3 x 4"):
        boxes_to_mask([[9, 0, 12, 2]], (3, 4))
