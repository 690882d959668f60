"""Boxes, polygons and run lengths as text and as pixels."""

import json
from itertools import groupby

import numpy as np
import pytest
from PIL import Image
from skimage.measure import points_in_poly

from heatproof.errors import ImageError
from heatproof.images.regions import (
    boxes_to_mask,
    check_region,
    parse_boxes,
    parse_polygons,
    parse_rle,
    polygons_to_mask,
    read_region,
    sticks_out,
)


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


def star(random, corners=9):
    """A polygon around a point, convex or not, that does not cross itself; partly outside 40 x 60."""
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    reach = random.uniform(3, 30, corners)
    return np.stack([30 + reach * np.cos(angles), 20 + reach * np.sin(angles)], axis=1)


@pytest.mark.parametrize("crossing", [False, True])
def test_polygons_cover_the_pixels_whose_centre_they_hold(crossing):
    random = np.random.default_rng(0)
    y, x = np.mgrid[:40, :60] + 0.5
    for _ in range(50):
        polygon = random.uniform(-5, 50, (7, 2)) if crossing else star(random)
        expected = points_in_poly(np.stack([x.ravel(), y.ravel()], axis=1), polygon).reshape(40, 60)
        assert expected.any()
        np.testing.assert_array_equal(polygons_to_mask([polygon], (40, 60)), expected)


def test_a_rectangle_is_the_same_as_polygon_and_as_box():
    random = np.random.default_rng(1)
    for _ in range(50):
        x, y = np.sort(random.integers(-8, 60, (2, 2)) / 2, axis=1)  # many corners and edges on pixel centres
        if x[1] - x[0] < 1 or y[1] - y[0] < 1 or x[1] < 1 or y[1] < 1:
            continue
        corners = [[x[0], y[0]], [x[1], y[0]], [x[1], y[1]], [x[0], y[1]]]
        box = boxes_to_mask([[x[0], y[0], x[1], y[1]]], (40, 40))
        for turned in (corners, corners[::-1], corners[2:] + corners[:2], [*corners, corners[0]]):
            np.testing.assert_array_equal(polygons_to_mask([turned], (40, 40)), box)


def test_triangles_have_the_pixels_of_the_closed_form():
    for legs in (1, 2, 7, 30):
        centres = legs * (legs - 1) // 2  # below the diagonal; those on it lie on a lower right edge
        found = polygons_to_mask([[[0, 0], [legs, 0], [0, legs]]], (40, 40)).sum()
        assert found == max(centres, 1)
        turned = polygons_to_mask([[[legs, legs], [legs, 0], [0, legs]]], (40, 40)).sum()
        assert turned == legs * (legs + 1) // 2


def test_the_area_of_a_disc():
    angles = np.linspace(0, 2 * np.pi, 720, endpoint=False)
    disc = np.stack([100.3 + 80 * np.cos(angles), 99.6 + 80 * np.sin(angles)], axis=1)
    assert polygons_to_mask([disc], (200, 200)).sum() == pytest.approx(np.pi * 80**2, rel=2e-3)


def test_polygons_that_share_edges_share_no_pixel_and_leave_none_out():
    random = np.random.default_rng(2)
    corners = [[0, 0], [20, 0], [20, 20], [0, 20]]
    for _ in range(300):
        # edges that meet here run through many pixels' centres, where rounding must not tear them apart
        middle = random.integers(10, 90, 2) / 5
        parts = [polygons_to_mask([[corners[i], corners[i - 1], middle]], (20, 20)).astype(int) for i in range(4)]
        np.testing.assert_array_equal(sum(parts), 1)


def test_an_edge_is_the_same_from_both_sides():
    one, other = [0, 50 / 3], [18, 44 / 3]  # passes through pixels' centres; rounding depends on where one starts
    above, below = (
        polygons_to_mask([[one, other, [9, 0]]], (20, 20)),
        polygons_to_mask([[other, one, [9, 20]]], (20, 20)),
    )
    assert not (above & below).any()
    np.testing.assert_array_equal(above | below, polygons_to_mask([[one, [9, 0], other, [9, 20]]], (20, 20)))


def test_several_polygons_are_united_and_a_hole_is_where_one_crosses_itself():
    two = polygons_to_mask(parse_polygons("0 0 3 0 3 2 0 2; 2 1 4 1 4 3 2 3;"), (3, 5))
    np.testing.assert_array_equal(two, [[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 1, 1, 0]])
    twice = polygons_to_mask(parse_polygons("0 0 4 0 4 4 0 4 0 0 1 1 3 1 3 3 1 3 1 1"), (4, 4))
    np.testing.assert_array_equal(twice, [[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 1]])


def test_coco_lists_are_the_same_polygons():
    text, listed = "0 0 3.5 0 3 2; 2 1 4 1 4 3 2 3", "[[0, 0, 3.5, 0, 3, 2], [2, 1, 4, 1, 4, 3, 2, 3]]"
    for one, other in zip(parse_polygons(text), parse_polygons(listed), strict=True):
        np.testing.assert_array_equal(one, other)
    assert parse_polygons(text)[0].tolist() == [[0, 0], [3.5, 0], [3, 2]]
    for empty in ("", "[]", " ; "):
        assert parse_polygons(empty) == []
        np.testing.assert_array_equal(polygons_to_mask(parse_polygons(empty), (2, 3)), np.zeros((2, 3)))


def test_a_polygon_finer_than_a_pixel_keeps_its_pixel():
    expected = np.zeros((3, 4))
    expected[1, 2] = 1
    np.testing.assert_array_equal(polygons_to_mask([[[2.6, 1.1], [2.9, 1.1], [2.7, 1.3]]], (3, 4)), expected)
    expected[1, 2], expected[2, 3] = 0, 1
    for corner in ([[3.8, 2.9], [4, 2.9], [4, 3]], [[4, 3], [4, 3], [4, 3]]):
        np.testing.assert_array_equal(polygons_to_mask([corner], (3, 4)), expected)


@pytest.mark.parametrize(
    "text",
    ["1 2 3 4", "1 2 3 4 5 6 7", "a b c d e f", "1 2 nan 4 5 6", "[[1, 2], [3, 4], [5, 6]]", "[1, 2, 3, 4, 5, 6]"],
)
def test_malformed_polygons(text):
    with pytest.raises(ImageError, match=r"at least three corners 'x y x y x y'"):
        parse_polygons(text)


def test_polygons_without_area_outside_or_cut():
    with pytest.raises(ImageError, match="on one line, it has no area"):
        parse_polygons("1 1 2 2 5 5 3 3")
    with pytest.raises(ImageError, match="Not the JSON of a region"):
        parse_polygons("[[1, 2, 3, 4, 5, 6")
    for corners in ([[9, 0], [12, 0], [9, 2]], [[-3, -3], [-1, 0], [0, -1]], [[0, 4.4], [5, 3.5], [5, 9]]):
        with pytest.raises(ImageError, match=r"covers nothing of its image of 3 x 4 pixels \(height x width\)"):
            polygons_to_mask([corners], (3, 4))


# --- run lengths: encoded here from the format's description, in decimal arithmetic rather than in bits ---


def runs_of(mask):
    """Lengths of the runs down the columns, outside first."""
    runs = [(value, len(list(same))) for value, same in groupby(mask.T.ravel().tolist())]
    return [0] * runs[0][0] + [length for _, length in runs]


def compressed(counts):
    """Digits of base 32, lowest first, until the rest is what the last digit's sign says; 32 more where one follows."""
    text = ""
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            value, digit = divmod(value, 32)
            last = value == (-1 if digit >= 16 else 0)
            text += chr(48 + digit + (0 if last else 32))
            if last:
                break
    return text


def test_hand_decoded_run_lengths():
    # 'b' is 98 - 48 = 50 = 32 (more follows) + 18, '1' is 1: 18 + 32 * 1 = 50 (an empty mask of 5 x 10)
    assert parse_rle("b1") == ([50], None)
    mask = [[0, 1, 0, 0, 0],
            [0, 1, 1, 0, 0],
            [0, 0, 1, 0, 1]]  # fmt: skip
    # 3 outside, 2 inside, 2 outside as they are; then 2 - 2 = 0, 5 - 2 = 3, 1 - 2 = -1: 'O' is 31, five bits all set
    assert parse_rle("32203O") == ([3, 2, 2, 2, 5, 1], None)
    for text in ("32203O", "[3, 2, 2, 2, 5, 1]"):
        np.testing.assert_array_equal(read_region("rle", text, (3, 5)), mask)


def test_masks_survive_every_form_of_run_lengths():
    random = np.random.default_rng(3)
    for size in ((1, 1), (3, 5), (40, 70), (200, 300)):
        for share in (0.0, 0.02, 0.5, 0.98, 1.0):
            mask = random.random(size) < share
            mask[: size[0] // 2] |= share == 0.02  # long runs as well
            counts = runs_of(mask)
            text = compressed(counts)
            for data in (
                json.dumps(counts),
                json.dumps({"counts": counts}),
                json.dumps({"size": size, "counts": counts}),
                text,
                json.dumps({"counts": text}),
                json.dumps({"size": size, "counts": text}),
            ):
                np.testing.assert_array_equal(read_region("rle", f" {data}\n", size), mask)
            assert parse_rle(text)[0] == counts


def test_no_runs_are_an_empty_region():
    for text in ("", "[]", '{"size": [2, 3], "counts": []}', '{"counts": ""}'):
        np.testing.assert_array_equal(read_region("rle", text, (2, 3)), np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[3, 2]", r"add up to 5 pixels, the image has 2 x 3 = 6 \(height x width\): .* another image or were cut"),
        ("[3, 2, 2]", "add up to 7 pixels"),
        ('{"size": [3, 2], "counts": [3, 3]}', "are of an image of 3 x 2 pixels .* this one has 2 x 3"),
        ("[3, -1, 4]", r"A run length is negative \(-1\)"),
        ("6O1", r"A run length is negative \(-1\)"),
        ("6b", "end within a number: '6b' was cut"),
        ("3 3", "' ' does not occur in COCO's compressed run lengths: '3 3'"),
        ("3\u00b33", "does not occur"),
        ('{"size": [2, 3]}', "whole numbers in a list or COCO's compressed text"),
        ("[3.0, 3]", "whole numbers"),
        ("[true, 5]", "whole numbers"),
        ("[[3, 3]]", "whole numbers"),
        ('{"size": [2], "counts": [6]}', r"size of run lengths is \[height, width\], got \[2\]"),
        ('{"size": "2 3", "counts": [6]}', "size of run lengths is"),
        ("{'size': [2, 3], 'counts': [6]}", "Not the JSON of a region"),
    ],
)
def test_run_lengths_that_do_not_fit(text, message):
    with pytest.raises(ImageError, match=message) as caught:
        read_region("rle", text, (2, 3))
    assert len(str(caught.value)) < 250


def test_a_long_text_is_not_repeated_in_its_message():
    with pytest.raises(ImageError) as caught:
        parse_rle("x" * 100_000)
    assert len(str(caught.value)) < 250


def test_a_region_is_checked_without_the_size_of_its_image(tmp_path):
    Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / "mask.png")
    for kind, good, bad in (
        ("mask", str(tmp_path / "mask.png"), str(tmp_path / "nowhere.png")),
        ("box", "0 0 99 99", "0 0 99"),
        ("polygon", "0 0 99 0 0 99", "0 0 99 0"),
        ("rle", "[99]", "[9.5]"),
    ):
        check_region(kind, good)
        with pytest.raises(ImageError):
            check_region(kind, bad)
    np.testing.assert_array_equal(read_region("mask", str(tmp_path / "mask.png"), (4, 4)), np.eye(4))


def test_what_sticks_out_of_the_image():
    assert not sticks_out("box", "0 0 4 3;1 1 2 2", (3, 4))
    for text in ("0 0 4.1 3", "0 0 4 3.1", "-0.1 0 4 3", "1 1 2 2;0 -1 4 3"):
        assert sticks_out("box", text, (3, 4))
    assert not sticks_out("polygon", "0 0 4 0 4 3", (3, 4))
    assert sticks_out("polygon", "0 0 4 0 4 3.5", (3, 4))
    assert not sticks_out("polygon", "", (3, 4))
    assert not sticks_out("rle", "[12]", (3, 4))
