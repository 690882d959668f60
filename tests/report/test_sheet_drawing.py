"""How a sheet looks, pixel by pixel: colours about zero, outlines, bars, where each map stands, and words that fit."""

from dataclasses import replace

import numpy as np
import pytest
from matplotlib import colormaps

import heatproof as hp
from heatproof.images import display
from heatproof.report import sheet_picture
from heatproof.report.sheet_content import CAUTION, Cell, Failure, Film, Method, Sheet
from heatproof.report.sheet_picture import RAISED, cut, draw, tile, wrapped

SIDE = 120  # as wide as a column is at least


def film(size: tuple[int, int] = (8, 8), grey: int = 100, region: np.ndarray | None = None, **changes: str) -> Film:
    given = {"model": "net", "image": "one", "predicted": "nodule", "target": "nodule", "against": None, **changes}
    return Film(
        pixels=np.full(size, grey, np.uint8), region=region, probabilities={"nodule": 0.9, "normal": 0.1},
        multilabel=False, **given,
    )  # fmt: skip


def random_cell(signed: bool, size: tuple[int, int] = (8, 8), seed: int = 0) -> Cell:
    map = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    map = map if signed else np.abs(map)
    return Cell(signed, map, display.robust_limits(map, signed=signed)[1])


def method(name: str, **options: object) -> Method:
    return Method(hp.methods()[name], options)


def sheet(names: list[str], films: list[Film], cells: list[list[Cell]], unread: tuple[Failure, ...] = ()) -> Sheet:
    return Sheet([method(name) for name in names], films, cells, "lesion", False, unread)


def places(picture: np.ndarray, part: np.ndarray) -> list[tuple[int, int]]:
    """(x, y) of every place where `part` stands in the picture, pixel by pixel."""
    height, width = part.shape[:2]
    inside = picture[: len(picture) - height + 1, : picture.shape[1] - width + 1]
    middle = picture[height // 2 :, width // 2 :][: inside.shape[0], : inside.shape[1]]
    candidates = (inside == part[0, 0]).all(-1) & (middle == part[height // 2, width // 2]).all(-1)
    found = [(x, y) for y, x in np.argwhere(candidates) if (picture[y : y + height, x : x + width] == part).all()]
    return sorted(found, key=lambda place: (place[1], place[0]))


# ---- one map ----


def test_a_signed_map_has_the_colours_of_its_sign_and_the_image_at_zero() -> None:
    map = np.array([[-2.0, -1.0, 0.0, 1.0, 2.0, 9.0]], np.float32)
    drawn = tile(film((1, 6), grey=100), Cell(True, map, 2.0), side=6)
    # RdBu without its 30 outermost of 315 colours; opacity 0.85 at the limit, 0.85 · 63.5 / 127 → level 190 / 64 halfway
    ends = colormaps["RdBu_r"].resampled(315)(np.arange(315))[:, :3] * 255
    at = {-2.0: (0, 1.0), -1.0: (63, 64 / 127), 1.0: (191, 64 / 127), 2.0: (254, 1.0), 9.0: (254, 1.0)}
    for x, value in enumerate(map[0]):
        if value == 0:
            assert drawn[0, x].tolist() == [100, 100, 100]
            continue
        level, strength = at[float(value)]
        alpha = round(strength * 0.85 * 255) / 255
        expected = 100 * (1 - alpha) + np.rint(ends[30 + level]) * alpha
        np.testing.assert_allclose(drawn[0, x], expected, atol=0.51)
    blue, red = drawn[0, 0].astype(int), drawn[0, 4].astype(int)
    assert blue[2] > blue[0]
    assert red[0] > red[2]


def test_a_positive_map_begins_at_the_image_and_ends_in_the_last_colour() -> None:
    map = np.array([[0.0, 0.5, 1.0, 4.0]], np.float32)
    drawn = tile(film((1, 4), grey=100), Cell(False, map, 1.0), side=4)
    assert drawn[0, 0].tolist() == [100, 100, 100]
    last = np.rint(np.array(colormaps["viridis"](1.0)[:3]) * 255)
    alpha = round(0.85 * 255) / 255
    np.testing.assert_allclose(drawn[0, 2], 100 * (1 - alpha) + last * alpha, atol=0.51)
    np.testing.assert_array_equal(drawn[0, 3], drawn[0, 2])
    middle = np.rint(np.array(colormaps["viridis"](0.5)[:3]) * 255)
    half = round(0.5 * 0.85 * 255) / 255
    np.testing.assert_allclose(drawn[0, 1], 100 * (1 - half) + middle * half, atol=1.01)


def test_every_pixel_of_a_map_is_a_square_of_one_colour() -> None:
    cell = random_cell(True)
    small, large = tile(film(), cell, 8), tile(film(), cell, 30)
    assert large.shape == (24, 24, 3)  # three times: the largest whole multiple within 30
    np.testing.assert_array_equal(large, small.repeat(3, 0).repeat(3, 1))
    assert tile(film((40, 50)), None, 30).shape == (40, 50, 3)
    upright = replace(film(), pixels=np.arange(64, dtype=np.uint8).reshape(8, 8))
    np.testing.assert_array_equal(
        tile(upright, None, 16)[..., 0], np.arange(64).reshape(8, 8).repeat(2, 0).repeat(2, 1)
    )


def test_the_region_is_a_white_line_inside_and_a_black_one_outside_one_pixel_wide() -> None:
    region = np.zeros((8, 8), bool)
    region[2:6, 3:7] = True
    for cell in (None, random_cell(True)):
        drawn = tile(film(region=region), cell, 16)
        plain = tile(film(), cell, 16)
        expected = np.zeros((16, 16), int)
        expected[4:12, 6:14] = 2  # white ...
        expected[5:11, 7:13] = 0  # ... one pixel wide, at the sheet's scale and not the map's
        expected[3, 6:14] = expected[12, 6:14] = 1
        expected[4:12, 5] = expected[4:12, 14] = 1
        assert (drawn[expected == 2] == 255).all()
        assert (drawn[expected == 1] == 0).all()
        np.testing.assert_array_equal(drawn[expected == 0], plain[expected == 0])


def test_an_undefined_map_is_grey_and_an_image_alone_is_the_image() -> None:
    constant = Cell(False, np.full((8, 8), 0.5, np.float32), None, "constant map (0.5)")
    drawn = tile(film(grey=0), constant, 8)
    assert (drawn == round(140 * round(0.85 * 255) / 255)).all()
    assert (tile(film(grey=77), None, 8) == 77).all()


# ---- the sheet ----


def test_each_map_stands_once_in_the_row_of_its_method_and_the_column_of_its_film() -> None:
    films = [film(image="one", grey=90), film(image="two", grey=60), film(image="one", model="other", grey=30)]
    names = ["gradcam", "lrp_z", "control_random"]
    cells = [[random_cell(name == "lrp_z", seed=10 * r + c) for c in range(3)] for r, name in enumerate(names)]
    picture = np.asarray(draw(sheet(names, films, cells), SIDE))
    found = [[places(picture, tile(films[c], cells[r][c], SIDE)) for c in range(3)] for r in range(3)]
    assert all(len(place) == 1 for row in found for place in row)
    x = [[place[0][0] for place in row] for row in found]
    y = [[place[0][1] for place in row] for row in found]
    assert x[0] == x[1] == x[2] == sorted(x[0])
    assert all(len(set(row)) == 1 for row in y)
    assert [row[0] for row in y] == sorted({row[0] for row in y})
    # room for the caption under each map, and headings of families between them
    assert min(np.diff([row[0] for row in y])) >= SIDE + sheet_picture._height("small") + sheet_picture._height(
        "heading"
    )
    heads = [place for f in films for place in places(picture, tile(f, None, SIDE)) if place[1] < y[0][0]]
    assert [place[0] for place in heads] == x[0]


def test_long_sheets_have_several_strips_each_with_the_images_at_its_top() -> None:
    names = list(hp.methods())[:40]
    films = [film(grey=90)]
    cells = [[random_cell(False, seed=r)] for r in range(40)]
    made = sheet(names, films, cells)
    image = draw(made, SIDE)
    assert 0.5 < image.width / image.height < 2
    picture = np.asarray(image)
    tops = places(picture, tile(films[0], None, SIDE))
    assert len(tops) > 1
    assert len({y for _, y in tops}) == 1
    found = [places(picture, tile(films[0], row[0], SIDE)) for row in cells]
    assert all(len(place) == 1 for place in found)
    assert [place[0] for place in found] == sorted((p[0] for p in found), key=lambda place: place)  # down, then right
    assert {place[0][0] for place in found} == {x for x, _ in tops}


def test_a_colour_bar_stands_beside_every_method_and_runs_from_end_to_end() -> None:
    names = ["gradcam", "lrp_z", "lrp_gamma"]
    cells = [[random_cell(name != "gradcam", seed=r)] for r, name in enumerate(names)]
    picture = np.asarray(draw(sheet(names, [film()], cells), SIDE))
    for signed, rows in ((False, 1), (True, 2)):
        table = display.colours(signed)
        for size, times in ((sheet_picture.BAR, rows), ((110, 10), 1)):
            bar = np.asarray(sheet_picture._bar(signed, size))
            assert bar.shape == (size[1], size[0], 3)
            assert bar[0, 0].tolist() == table[0].tolist()
            assert bar[0, -1].tolist() == table[254].tolist()
            assert len(places(picture, bar)) == times


def test_legends_of_kinds_that_do_not_occur_are_left_out() -> None:
    picture = np.asarray(draw(sheet(["gradcam"], [film()], [[random_cell(False)]]), SIDE))
    assert len(places(picture, np.asarray(sheet_picture._bar(True, (110, 10))))) == 0
    assert len(places(picture, np.asarray(sheet_picture._bar(False, (110, 10))))) == 1


def test_what_is_refused_is_one_field_over_all_images_of_the_model() -> None:
    films = [film(image="one"), film(image="two"), film(image="one", model="other"), film(image="two", model="other")]
    refused = Failure("It has no legs.", "not for this model", expected=True)
    cells = [[Cell(False, failure=refused)] * 2 + [random_cell(False, seed=1), random_cell(False, seed=2)]]
    made = sheet(["gradcam"], films, cells)
    assert [(columns, failure) for columns, failure in made.spans(0)] == [([0, 1], refused), ([2], None), ([3], None)]
    picture = np.asarray(draw(made, SIDE))
    raised = np.argwhere((picture == [int(RAISED[i : i + 2], 16) for i in (1, 3, 5)]).all(-1))
    (top, left), (bottom, right) = raised.min(0), raised.max(0)
    [(x, y)] = places(picture, tile(films[2], cells[0][2], SIDE))
    assert (top, bottom) == (y, y + SIDE - 1)
    assert right - left + 1 == 2 * SIDE + sheet_picture.GAP
    assert right == x - 2 * sheet_picture.GAP - 1  # models stand a little apart
    field = picture[top : bottom + 1, left : right + 1]
    assert (field != field[0, 0]).any()  # there are words in it


def test_maps_that_fail_for_different_reasons_have_fields_of_their_own() -> None:
    films = [film(image=name) for name in ("one", "two", "three")]
    failures = [Failure(text, "failed: InputError") for text in ("This.", "That.", "That.")]
    made = sheet(["gradcam"], films, [[Cell(False, failure=failure) for failure in failures]])
    assert [columns for columns, _ in made.spans(0)] == [[0], [1, 2]]
    assert made.failures == failures


def test_what_could_not_be_read_adds_lines_at_the_bottom() -> None:
    cells = [[random_cell(False)]]
    without = draw(sheet(["gradcam"], [film()], cells), SIDE)
    failures = tuple(Failure("", "the file cannot be read", image=f"case {i}") for i in range(3))
    with_them = draw(sheet(["gradcam"], [film()], cells, failures), SIDE)
    assert with_them.height - without.height == 3 * sheet_picture._height("text")
    added = np.asarray(with_them)[without.height - 28 :]
    assert (added != 255).any()


def test_notes_say_what_the_eye_must_know() -> None:
    region = np.ones((8, 8), bool)
    made = sheet(["gradcam", "lrp_z"], [film(region=region), film(model="other")], [[random_cell(False)] * 2] * 2)
    assert made.notes[0] == "2 methods, 1 image, 2 models: net and other."
    assert "99th percentile" in made.notes[1]
    assert made.notes[2:] == ["White line: lesion.", CAUTION]
    native = Sheet(made.methods, [film()], made.cells, None, True, ())
    assert native.notes[2:] == ["Each map is shown on the grid that its method computes.", CAUTION]


def test_a_film_says_what_is_predicted_what_is_explained_and_against_what() -> None:
    assert film().lines == ["predicted nodule (0.90)"]
    asked = film(target="normal", against="nodule")
    assert asked.lines == ["predicted nodule (0.90)", "explained: normal (0.10)", "rather than nodule (0.90)"]


def test_captions_give_the_ends_of_the_scale() -> None:
    assert Cell(True, np.zeros((1, 1)), 0.01234).caption == "±0.012"
    assert Cell(False, np.zeros((1, 1)), 12345.0).caption == "0 to 12345"
    assert Cell(True, np.zeros((1, 1)), 0.5).limits == (-0.5, 0.5)
    assert Cell(False, np.zeros((1, 1)), 0.5).limits == (0.0, 0.5)


def test_the_first_sentence_of_an_error_is_enough_for_a_field() -> None:
    assert Failure("It runs none (F.dropout). Use another.", "").short == "It runs none (F.dropout)."
    assert Failure("One only", "").short == "One only"


# ---- words ----


@pytest.mark.parametrize("width", [40, 60, 90, 150])
def test_words_never_leave_their_width_and_none_is_lost_where_there_is_room(width: int) -> None:
    text = "blur_integrated_gradients of a patient and then some more words, Größe × 2"
    lines = wrapped(text, "text", width)
    assert all(sheet_picture._font("text").getlength(line) <= width for line in lines)
    if width >= 90:
        assert " ".join(lines).replace("_ ", "_") == text


def test_words_without_a_place_to_break_are_cut() -> None:
    [line] = wrapped("a" * 200, "small", 60)
    assert line.endswith("…")
    assert sheet_picture._font("small").getlength(line) <= 60
    assert wrapped("one two three four five six", "small", 60, most=2)[-1].endswith("…")
    assert cut(["a"], 1) == ["a"]


def test_names_of_any_length_fit_beside_and_above_their_pictures() -> None:
    films = [film(image="a_very_" * 30, model="m" * 300, grey=90), film(image="two", grey=60)]
    cells = [[random_cell(False, seed=1), random_cell(False, seed=2)]]
    picture = np.asarray(draw(sheet(["gradcam"], films, cells), SIDE))
    for shown, cell in zip(films, cells[0], strict=True):  # nothing is written over a picture
        assert len(places(picture, tile(shown, cell, SIDE))) == 1
        assert len(places(picture, tile(shown, None, SIDE))) == 1


def test_a_signed_method_keeps_its_colours_where_nothing_speaks_against() -> None:
    map = np.array([[0.0, 1.0]], np.float32)
    drawn = tile(film((1, 2)), Cell(True, map, 1.0), side=2)
    np.testing.assert_array_equal(
        drawn, display.overlay(np.full((1, 2), 100, np.uint8), map, signed=True, limits=(-1, 1))
    )
    assert drawn[0, 1, 0] > drawn[0, 1, 1] + 50  # red, not the yellow of a positive one


def test_a_family_that_goes_on_in_the_next_strip_is_named_again() -> None:
    names = ["gradcam", "layercam", "lrp_z", "lrp_gamma", "control_edges"]
    drawing = sheet_picture._Drawing(sheet(names, [film()], [[random_cell(False)]] * 5), SIDE)
    assert drawing._headings(range(1, 4)) == {1: "Class activation maps (continued)", 2: "Relevance propagation"}
    assert list(drawing._headings(range(5)).values()) == [
        "Class activation maps", "Relevance propagation", "Controls, blind to the model",
    ]  # fmt: skip


def test_captions_of_maps_without_a_scale_fit_under_the_smallest_picture() -> None:
    assert wrapped("constant map (0)", "small", sheet_picture.NARROWEST) == ["constant map (0)"]
