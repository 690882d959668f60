"""The gallery shows every case of every model, each map in the colours of the display rules, each score where it belongs."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from heatproof.images import display
from heatproof.report import build_report
from heatproof.report.gallery import heatmap, outline_path
from heatproof.report.text import significant
from heatproof.study.store import Run
from support.pages import Element, parse
from support.runs import CONSTANT, HOSTILE, METHODS, METRICS, MISSING, PARTLY_NAN, RunFolder, label_of


@pytest.fixture(scope="module")
def cards(report: Path) -> dict[tuple[str, str], Element]:
    page = parse((report / "index.html").read_text(encoding="utf-8"))
    found = page.all("article", class_="card")
    by_case = {(card.all("h3")[0].children[0].strip(), card.attributes["data-model"]): card for card in found}
    assert len(by_case) == len(found)
    return by_case


def tile(card: Element, method: str) -> Element:
    return card.all("tr", class_="pictures")[0].all("td")[1 + [label_of(m) for m in METHODS].index(method)]


def test_every_case_is_there_exactly_once_for_each_model(cards: dict[tuple[str, str], Element], run: Run) -> None:
    assert len(cards) == 60
    assert set(cards) == {(sample, model) for model in run.models for sample in run.cases(model)}
    assert list(cards)[:2] == [("case_000", "vit"), ("case_000", "densenet")]  # no order but that of the data


def test_predictions_labels_and_filters(cards: dict[tuple[str, str], Element], run: Run) -> None:
    predictions = run.predictions.set_index(["sample_id", "model"])
    for key, card in cards.items():
        row = predictions.loc[key]
        predicted, label = row["predicted"], row["label"]
        said = card.all("p", class_="verdict")[0].text
        assert f"predicted {predicted} {row[f'p_{predicted}']:.2f} · true class {label}" in said
        assert ("✓ correct" in said) == (predicted == label) != ("✗ incorrect" in said)
        expected = {
            "data-label": label,
            "data-predicted": predicted,
            "data-correct": "yes" if predicted == label else "no",
        }
        assert expected.items() <= card.attributes.items()
        if predicted != label:
            assert f"true class {label} {row[f'p_{label}']:.2f}" in said


def test_scores_stand_under_their_map(cards: dict[tuple[str, str], Element], run: Run) -> None:
    values = run.scores.set_index(["sample_id", "model", "metric", "method"])["value"]
    names = [label_of(metric) for metric in METRICS]
    for (sample, model), card in cards.items():
        rows = card.all("tbody")[0].all("tr")
        assert len(rows) == len(names)
        for metric, row in zip(names, rows, strict=True):
            assert row.all("th")[0].text.split()[0] == metric
            for method, cell in zip(map(label_of, METHODS), row.all("td"), strict=True):
                value = values.get((sample, model, metric, method))
                expected = "–" if value is None else "undef." if np.isnan(value) else significant(value)
                assert cell.text == expected


def test_pictures_are_the_images_and_maps_of_the_run(
    cards: dict[tuple[str, str], Element], run: Run, report: Path
) -> None:
    for (sample, model), card in list(cards.items())[:8]:
        image = card.all("img", class_="heat")[0]
        base = card.all("tr", class_="pictures")[0].all("td")[0].all("img")[0]
        assert base.attributes["src"].rsplit("/", 1)[0] == image.attributes["src"].rsplit("/", 1)[0]
        grey = np.asarray(Image.open(report / base.attributes["src"]))
        np.testing.assert_array_equal(grey, run.image(model, sample))
        for method in map(label_of, METHODS):
            values = run.map(model, method, sample)
            heat = tile(card, method).all("img", class_="heat")
            assert len(heat) == (values is not None)
            for shown in heat:
                assert f"-{method}." in shown.attributes["src"]
                assert composited(report / shown.attributes["src"], grey) == pytest.approx(
                    display.overlay(grey, values, signed=method in {"lrp_z", "lime_200"}),
                    abs=1.5,  # the opacity is rounded to 1/255 once here, twice there
                )


def composited(path: Path, grey: np.ndarray, opacity: float = display.OPACITY) -> np.ndarray:
    """What a browser shows: the picture with its own transparency and the page's opacity over the grey image."""
    rgba = np.asarray(Image.open(path).convert("RGBA")).astype(float)
    alpha = rgba[..., 3:] / 255 * opacity
    return rgba[..., :3] * alpha + grey[..., None] * (1 - alpha)


@pytest.mark.parametrize("signed", [True, False])
def test_a_heatmap_has_the_transparency_of_the_rules(tmp_path: Path, signed: bool) -> None:
    map = np.array([[-2.0, 0.0, 1.0, np.nan, 2.0]])
    heatmap(map, signed, tmp_path / "a.png")
    rgba = np.asarray(Image.open(tmp_path / "a.png").convert("RGBA"))[0]
    level = display.levels(map, signed=signed)[0]
    np.testing.assert_array_equal(rgba[:, 3], display.alphas(signed, 1.0)[level])
    seen = rgba[:, 3] > 0
    np.testing.assert_array_equal(rgba[seen, :3], display.colours(signed)[level][seen])
    assert rgba[1, 3] == 0
    assert rgba[3, 3] == rgba[4, 3] == 255


def test_scales_are_written_beside_each_map(cards: dict[tuple[str, str], Element], run: Run) -> None:
    for (sample, model), card in cards.items():
        for method, signed in (("lrp_z", True), ("transformer_lrp", False)):
            values = run.map(model, method, sample)
            if values is not None:
                limit = significant(np.percentile(np.abs(values), 99), 2)
                bar = tile(card, method).all("div", class_="ends")[0]
                assert bar.text == (f"±{limit}" if signed else f"0 to {limit}")
                assert bar.all("span", class_="signed" if signed else "positive")


def test_what_has_no_map_or_no_scale_says_so(cards: dict[tuple[str, str], Element]) -> None:
    assert tile(cards[MISSING, "vit"], "gradcam").text == "no map: ValueError"
    assert tile(cards["case_007", "densenet"], "attention").text == "not possible for this model"
    assert "constant map (0)" in tile(cards[CONSTANT, "vit"], "gradcam").text
    assert not tile(cards[CONSTANT, "vit"], "gradcam").all("div", class_="ends")
    assert "512 pixels undefined (grey)" in tile(cards[PARTLY_NAN, "vit"], "attention").text


def test_outlines_are_drawn_where_a_region_is_annotated(cards: dict[tuple[str, str], Element], run: Run) -> None:
    for (sample, model), card in cards.items():
        roi, paths = run.roi(model, sample), card.all("path")
        assert ("region not annotated" in card.text) == (roi is None)
        assert [path.attributes["d"] for path in paths] == ([] if roi is None else [outline_path(roi)])
        for use in card.all("use"):
            assert use.attributes["href"] == f"#{paths[0].attributes['id']}"
        shown = len(card.all("div", class_="tile")) - len(card.all("span", class_="absent"))
        assert len(card.all("svg", class_="outline")) == (0 if roi is None else shown)


def test_the_outline_of_a_rectangle() -> None:
    roi = np.zeros((8, 8), bool)
    roi[2:4, 3:6] = True
    path = outline_path(roi)
    assert path.startswith("M")
    assert path.endswith("Z")
    corners = {tuple(map(float, point.split())) for point in path[1:-1].split("L")}
    xs, ys = zip(*corners, strict=True)
    # pixel edges: the region's first column begins at 3, its last ends at 6
    assert (min(xs), max(xs), min(ys), max(ys)) == (3.0, 6.0, 2.0, 4.0)
    assert outline_path(np.zeros((4, 4), bool)) == ""


def test_maps_of_another_class_than_the_predicted_one_are_named(run: Run, tmp_path: Path) -> None:

    class ByLabel(RunFolder):
        def recipe(self) -> dict:
            return {**super().recipe(), "target": "label"}

        def _chunk(self, model: str, start: int, rows: slice, predictions: pd.DataFrame) -> None:
            super()._chunk(model, start, rows, predictions.assign(predicted=predictions["label"]))

    path = ByLabel(tmp_path / "run", models=["densenet"], cases=9, metrics=["sparseness"]).write()
    page = parse(build_report(path).read_text(encoding="utf-8"))
    predictions = Run(path).predictions.set_index("sample_id")
    wrong = 0
    for card in page.all("article", class_="card"):
        row = predictions.loc[card.all("h3")[0].children[0].strip()]
        wrong += row["predicted"] != row["label"]
        assert (f"maps explain {row['label']}" in card.text) == (row["predicted"] != row["label"])
    assert wrong
    assert HOSTILE in set(predictions["label"])
