"""Figures read back from their SVG: every score is where it belongs."""

import xml.etree.ElementTree as ElementTree

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from heatproof.report import figures

SVG = "{http://www.w3.org/2000/svg}"
CLASSES = ["normal", "nodule"]
METHODS = ["gradcam", "lime"]


@pytest.fixture(scope="module")
def scores() -> pd.DataFrame:
    random = np.random.default_rng(0)
    rows = [(m, c, random.normal()) for m in METHODS for c in CLASSES for _ in range(9)]
    frame = pd.DataFrame([*rows, ("lime", "nodule", np.nan)], columns=["method", "label", "value"])
    return frame.sample(frac=1, random_state=0)


def points(svg: str) -> list[list[tuple[float, float]]]:
    """The places of the markers of each series that lies in the plot, in SVG units."""
    root = ElementTree.fromstring(svg)
    series = []
    for group in root.iter(f"{SVG}g"):
        uses = group.findall(f"{SVG}use")
        if len(uses) > 1:
            series.append([(float(use.get("x", 0)), float(use.get("y", 0))) for use in uses])
    return series


def test_every_score_is_a_point_at_its_value(scores: pd.DataFrame) -> None:
    series = points(figures.box_plots(scores, METHODS, CLASSES).light)
    groups = [
        scores[(scores["method"] == m) & (scores["label"] == c)]["value"].dropna() for m in METHODS for c in CLASSES
    ]
    assert [len(s) for s in series] == [len(g) for g in groups] == [9, 9, 9, 9]
    x = np.concatenate([[x for x, _ in s] for s in series])
    values = np.concatenate(groups)
    slope, intercept = np.polyfit(values, x, 1)
    assert slope > 0
    np.testing.assert_allclose(x, slope * values + intercept, atol=1e-3)
    heights = [np.mean([y for _, y in s]) for s in series]
    assert heights == sorted(heights)  # methods and, within them, classes run from top to bottom


def test_the_thick_line_is_the_median(scores: pd.DataFrame) -> None:
    svg = figures.box_plots(scores, METHODS, CLASSES).light
    series, groups = (
        points(svg),
        [scores[(scores["method"] == m) & (scores["label"] == c)]["value"].dropna() for m in METHODS for c in CLASSES],
    )
    x, values = np.concatenate([[x for x, _ in s] for s in series]), np.concatenate(groups)
    slope, intercept = np.polyfit(values, x, 1)
    thick = [p for p in ElementTree.fromstring(svg).iter(f"{SVG}path") if "stroke-width: 2.2" in p.get("style", "")]
    medians = [float(path.get("d", "").split()[1]) for path in thick]
    np.testing.assert_allclose(medians, [slope * np.median(g) + intercept for g in groups], atol=1e-3)


def test_scores_of_0_and_1_become_shares() -> None:
    frame = pd.DataFrame({"method": "gradcam", "label": "nodule", "value": [1.0, 1.0, 1.0, 0.0]})
    svg = figures.box_plots(frame, ["gradcam"], ["nodule"], limits=(0.0, 1.0)).light
    [places] = points(svg)
    zero, one = min(x for x, _ in places), max(x for x, _ in places)
    bar = next(p for p in ElementTree.fromstring(svg).iter(f"{SVG}path") if "fill-opacity" in p.get("style", ""))
    numbers = [float(n) for n in bar.get("d", "").replace("M", "").replace("L", "").replace("z", "").split()]
    assert (min(numbers[::2]), max(numbers[::2])) == pytest.approx((zero, zero + 0.75 * (one - zero)), abs=1e-3)


def test_a_method_without_scores_keeps_its_row(scores: pd.DataFrame) -> None:
    svg = figures.box_plots(scores, [*METHODS, "attention"], CLASSES).light
    texts = ["".join(text.itertext()) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]
    assert "attention" in texts
    assert texts.count("no scores") == 1


def test_drawing_is_deterministic_and_leaves_no_setting_behind(scores: pd.DataFrame) -> None:
    before = dict(mpl.rcParams)
    first = figures.box_plots(scores, METHODS, CLASSES)
    assert first == figures.box_plots(scores, METHODS, CLASSES)
    assert dict(mpl.rcParams) == before


def test_the_dark_variant_differs_in_its_colours_alone(scores: pd.DataFrame) -> None:
    picture = figures.box_plots(scores, METHODS, CLASSES)
    back = picture.dark
    for light, dark in figures.DARK.items():
        assert light not in picture.dark
        back = back.replace(dark, light)
    assert back == picture.light
    assert picture.dark != picture.light


def test_curves_mark_the_epoch_with_the_lowest_validation_loss() -> None:
    history = pd.DataFrame(
        {"epoch": [1, 2, 3], "train_loss": [3, 2, 1], "val_loss": [3, 1, 2], "val_auroc": [0.5, 0.7, 0.6]}
    )
    svg = figures.training_curves(history.assign(seconds=1.0)).light
    root = ElementTree.fromstring(svg)
    dashed = [p for p in root.iter(f"{SVG}path") if "stroke-dasharray" in p.get("style", "")]
    curves = [
        p for p in root.iter(f"{SVG}path") if "stroke-width: 1.6" in p.get("style", "") and "clip-path" in p.attrib
    ]
    assert len(dashed) == 2  # one a panel
    assert len(curves) == 3
    xs = [float(n) for n in curves[0].get("d", "").replace("M", "").replace("L", "").split()[::2]]
    assert float(dashed[0].get("d", "").split()[1]) == pytest.approx(xs[1], abs=1e-3)
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert {"Loss", "Validation", "train", "val", "val auroc"} <= set(texts)
    assert not any("seconds" in text for text in texts)


def test_epochs_are_whole_numbers_even_where_there_is_one() -> None:
    history = pd.DataFrame({"epoch": [1], "train_loss": [1.0], "val_loss": [2.0]})
    root = ElementTree.fromstring(figures.training_curves(history).light)
    ticks = [g for g in root.iter(f"{SVG}g") if g.get("id", "").startswith("xtick_")]
    assert ["".join(tick.itertext()).strip() for tick in ticks] == ["1"]


def test_shared_limits_hold_all_finite_values() -> None:
    low, high = figures.shared_limits(pd.Series([0.0, np.nan, 2.0, np.inf])) or (0, 0)
    assert (low, high) == pytest.approx((-0.08, 2.08))
    assert figures.shared_limits(pd.Series([1.0, 1.0])) == (0.5, 1.5)
    assert figures.shared_limits(pd.Series([np.nan])) is None


def test_the_reliability_plot_has_every_filled_bin_where_it_belongs() -> None:
    bins = [
        {"low": 0.0, "high": 0.5, "n": 0, "confidence": None, "accuracy": None},
        {"low": 0.5, "high": 0.75, "n": 12, "confidence": 0.6, "accuracy": 0.5},
        {"low": 0.75, "high": 1.0, "n": 36, "confidence": 0.9, "accuracy": 0.95},
    ]
    root = ElementTree.fromstring(figures.reliability(bins).light)
    paths = [path for path in root.iter(f"{SVG}path") if path.get("clip-path")]
    [diagonal] = [path for path in paths if "stroke-dasharray" in path.get("style", "")]
    [curve] = [path for path in paths if "stroke-width: 1.6" in path.get("style", "")]
    corner, end, *_ = places(diagonal)  # (0, 0) and (1, 1)
    shown = [tuple((p - c) / (e - c) for p, c, e in zip(place, corner, end, strict=True)) for place in places(curve)]
    np.testing.assert_allclose(shown, [(0.6, 0.5), (0.9, 0.95)], atol=1e-4)
    bars = [places(path) for path in paths if "fill-opacity" in path.get("style", "")]
    heights = [max(y for _, y in bar) - min(y for _, y in bar) for bar in bars]
    assert len(heights) == 2
    assert heights[1] == pytest.approx(3 * heights[0], rel=1e-4)


def places(path: ElementTree.Element) -> list[tuple[float, float]]:
    numbers = [float(n) for n in path.get("d", "").replace("M", "").replace("L", "").replace("z", "").split()]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def test_a_large_box_shows_its_outliers_alone() -> None:
    values = np.concatenate([np.linspace(0, 1, 200), [9.0, -9.0]])
    frame = pd.DataFrame({"method": "gradcam", "label": "nodule", "value": values})
    [series] = points(figures.box_plots(frame, ["gradcam"], ["nodule"]).light)
    assert len(series) == 2
