"""The gallery holds every case of every model, each map in the colours of the display rules, each score where it belongs."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from heatproof.images import display
from heatproof.report import gallery
from heatproof.report.gallery import heatmap, outline_path
from heatproof.report.text import significant
from heatproof.study.store import Run
from support.pages import cases_of
from support.runs import CONSTANT, METHODS, METRICS, MISSING, PARTLY_NAN, SIGNED, RunFolder, label_of

Key = tuple[str, str, str]
Cards = dict[Key, dict[str, Any]]


def by_key(content: dict[str, Any]) -> Cards:
    found = {(card["sample"], card["model"], card["target"]): card for card in content["cards"]}
    assert len(found) == len(content["cards"])
    return found


@pytest.fixture(scope="module")
def cards(report: Path) -> Cards:
    return by_key(cases_of(report))


@pytest.fixture(scope="module")
def label_run(label_report: Path) -> Run:
    return Run(label_report.parent)


@pytest.fixture(scope="module")
def label_cards(label_report: Path) -> Cards:
    return by_key(cases_of(label_report))


def tile(card: dict[str, Any], method: str) -> dict[str, Any]:
    return card["tiles"][[label_of(m) for m in METHODS].index(method)]


def test_every_case_is_there_exactly_once_for_each_model(cards: Cards, run: Run) -> None:
    assert len(cards) == 60
    assert {key[:2] for key in cards} == {(sample, model) for model in run.models for sample in run.cases(model)}
    assert [key[:2] for key in cards][:2] == [("case_000", "vit"), ("case_000", "densenet")]  # no order but the data's


def test_predictions_and_labels_are_those_of_the_run(cards: Cards, run: Run) -> None:
    predictions = run.predictions.set_index(["sample_id", "model"])
    for (sample, model, target), card in cards.items():
        row = predictions.loc[(sample, model)]
        assert (card["labels"], card["predicted"], target) == ([row["label"]], [row["predicted"]], row["predicted"])
        assert card["correct"] == ("yes" if row["predicted"] == row["label"] else "no")
        for name in {row["label"], row["predicted"]}:
            assert card["p"][name] == pytest.approx(row[f"p_{name}"], abs=1e-4)
    assert {card["correct"] for card in cards.values()} == {"yes", "no"}


def test_scores_stand_under_their_map(cards: Cards, run: Run) -> None:
    values = run.scores.set_index(["sample_id", "model", "metric", "method"])["value"]
    for (sample, model, _), card in cards.items():
        for method in map(label_of, METHODS):
            for metric, shown in zip(map(label_of, METRICS), tile(card, method)["scores"], strict=True):
                value = values.get((sample, model, metric, method))
                expected = "" if value is None else None if np.isnan(value) else pytest.approx(value, rel=1e-3)
                assert shown == expected


def test_pictures_are_the_images_and_maps_of_the_run(cards: Cards, run: Run, report: Path) -> None:
    for (sample, model, _), card in list(cards.items())[:8]:
        grey = np.asarray(Image.open(report / card["image"]))
        np.testing.assert_array_equal(grey, run.image(model, sample))
        for method in map(label_of, METHODS):
            values = run.map(model, method, sample)
            assert ("file" in tile(card, method)) == (values is not None)
            if values is not None:
                assert composited(report / tile(card, method)["file"], grey) == pytest.approx(
                    display.overlay(grey, values, signed=method in SIGNED),
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
    heatmap(map, signed, tmp_path / "a.png", 256)
    rgba = np.asarray(Image.open(tmp_path / "a.png").convert("RGBA"))[0]
    level = display.levels(map, signed=signed)[0]
    np.testing.assert_array_equal(rgba[:, 3], display.alphas(signed, 1.0)[level])
    seen = rgba[:, 3] > 0
    np.testing.assert_array_equal(rgba[seen, :3], display.colours(signed)[level][seen])
    assert rgba[1, 3] == 0
    assert rgba[3, 3] == rgba[4, 3] == 255


def test_a_large_map_is_averaged_and_keeps_its_scale(tmp_path: Path) -> None:
    """Blocks of 2 × 2 of known means; the limits are those of the map itself, so 1 is as strong as before."""
    blocks = np.repeat(np.repeat(np.linspace(0, 1, 256), 2)[None], 4, axis=0)
    blocks[1::2] += 0.2  # so that each block holds v and v + 0.2
    heatmap(blocks, False, tmp_path / "a.png", 256)
    levels = np.asarray(Image.open(tmp_path / "a.png"))
    assert levels.shape == (2, 256)
    limits = display.robust_limits(blocks, signed=False)
    expected = display.levels(np.linspace(0.1, 1.1, 256)[None], signed=False, limits=limits)
    assert np.abs(levels[0].astype(int) - expected[0]).max() <= 1  # float32 against float64
    assert limits is not None
    assert limits[1] > 1.1  # not the shrunk map's own


def test_what_is_undefined_in_a_large_map_stays_grey(tmp_path: Path) -> None:
    map = np.linspace(0, 1, 512 * 512).reshape(512, 512)
    map[:4] = np.nan
    heatmap(map, False, tmp_path / "a.png", 256)
    levels = np.asarray(Image.open(tmp_path / "a.png"))
    assert (levels[:2] == display.UNDEFINED).all()
    assert not (levels[2:] == display.UNDEFINED).any()


def test_many_maps_are_kept_smaller(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    maps = 60 * 8
    assert gallery.picture_side(run) == 256
    monkeypatch.setattr(gallery, "PIXELS", maps * 100**2)
    assert gallery.picture_side(run) == 100
    monkeypatch.setattr(gallery, "PIXELS", maps)
    assert gallery.picture_side(run) == 96
    monkeypatch.setattr(gallery, "SIDES", (32, 256))
    gallery.write_gallery(run, tmp_path)
    sizes = {Image.open(path).size for path in tmp_path.rglob("*.png")}
    assert sizes == {(32, 32)}
    assert cases_of(tmp_path)["cards"][0]["size"] == [64, 64]  # the outline is in pixels of the image itself


def test_scales_are_written_beside_each_map(cards: Cards, run: Run) -> None:
    for (sample, model, _), card in cards.items():
        for method in ("lrp_z", "transformer_lrp"):
            values = run.map(model, method, sample)
            if values is not None:
                assert tile(card, method)["limit"] == significant(np.percentile(np.abs(values), 99), 2)


def test_methods_and_metrics_come_with_what_the_page_must_know(report: Path) -> None:
    content = cases_of(report)
    assert [m["name"] for m in content["methods"]] == [label_of(m) for m in METHODS]
    assert {m["name"] for m in content["methods"] if m["signed"]} == SIGNED
    assert {m["name"] for m in content["methods"] if m["control"]} == {"control_random", "control_center"}
    assert [m["name"] for m in content["metrics"]] == [label_of(m) for m in METRICS]
    assert {m["name"] for m in content["metrics"] if not m["higher"]} == {"max_sensitivity", "avg_sensitivity"}


def test_what_has_no_map_or_no_scale_says_so(cards: Cards) -> None:
    found = {key[:2]: card for key, card in cards.items()}
    assert tile(found[MISSING, "vit"], "gradcam")["note"] == "no map: ValueError"
    assert tile(found["case_007", "densenet"], "attention")["note"] == "not possible for this model"
    assert tile(found[CONSTANT, "vit"], "gradcam")["note"] == "constant map (0)"
    assert tile(found[CONSTANT, "vit"], "gradcam")["limit"] == ""
    assert tile(found[PARTLY_NAN, "vit"], "attention")["note"] == "512 pixels undefined (grey)"


def test_outlines_are_those_of_the_region(cards: Cards, run: Run) -> None:
    for (sample, model, _), card in cards.items():
        roi = run.roi(model, sample)
        assert card["outline"] == (None if roi is None else outline_path(roi))
    assert any(card["outline"] is None for card in cards.values())


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


def test_each_explained_class_of_an_image_is_a_case(label_cards: Cards, label_run: Run) -> None:
    targets = label_run.recipe.target
    expected = {(s, m, t) for m in label_run.models for s in label_run.cases(m) for t in targets}
    assert set(label_cards) == expected
    assert len(expected) == 2 * 30 * 2


def test_labels_are_right_or_wrong_each_for_itself(label_cards: Cards, label_run: Run) -> None:
    predictions = label_run.predictions.set_index(["sample_id", "model"])
    seen = set()
    for (sample, model, target), card in label_cards.items():
        row = predictions.loc[(sample, model)]
        truth, said = row[f"label_{target}"], row[f"p_{target}"] >= 0.5
        expected = "unknown" if np.isnan(truth) else "yes" if (truth == 1) == said else "no"
        assert card["correct"] == expected
        assert card["truth"] == ("unknown" if np.isnan(truth) else "yes" if truth == 1 else "no")
        assert "|".join(card["labels"]) == row["labels"]
        assert "|".join(card["predicted"]) == row["predicted"]
        assert card["p"][target] == pytest.approx(row[f"p_{target}"], abs=1e-4)
        seen.add(expected)
    assert seen == {"yes", "no", "unknown"}


def test_maps_scores_and_regions_are_those_of_the_explained_class(
    label_cards: Cards, label_run: Run, label_report: Path
) -> None:
    values = label_run.scores.set_index(["sample_id", "model", "target", "metric", "method"])["value"]
    for (sample, model, target), card in list(label_cards.items())[:12]:
        roi = label_run.roi(model, sample, target)
        assert card["outline"] == (None if roi is None else outline_path(roi))
        shown = tile(card, "lime_200")
        map = label_run.map(model, "lime_200", sample, target)
        levels = np.asarray(Image.open(label_report / shown["file"]))
        np.testing.assert_array_equal(levels, display.levels(map, signed=True))
        for metric, score in zip(label_run.metrics, shown["scores"], strict=True):
            value = values[sample, model, target, metric, "lime_200"]
            assert score == (None if np.isnan(value) else pytest.approx(value, rel=1e-3))
    first, second = [card for key, card in label_cards.items() if key[:2] == ("case_002", "vit")]
    assert first["outline"]
    assert second["outline"] is None  # the fixture annotates the first explained class only
    assert first["tiles"] != second["tiles"]


def test_maps_of_another_class_than_the_predicted_one_are_so_marked(tmp_path: Path) -> None:
    class ByLabel(RunFolder):
        def recipe(self) -> dict:
            return {**super().recipe(), "target": "label"}

        def _targets(self, i: int, predictions: pd.DataFrame) -> list[str]:
            return [self.labels[i]]

    path = ByLabel(tmp_path / "run", models=["densenet"], cases=9, metrics=["sparseness"]).write()
    gallery.write_gallery(Run(path), tmp_path / "page")
    found = cases_of(tmp_path / "page")["cards"]
    assert len(found) == 9
    assert all([card["target"]] == card["labels"] for card in found)
    assert any([card["target"]] != card["predicted"] for card in found)


def test_a_case_of_which_nothing_could_be_explained_is_there(tmp_path: Path) -> None:
    path = RunFolder(
        tmp_path / "run", models=["densenet"], cases=3, methods=["attention"], metrics=["sparseness"]
    ).write()
    gallery.write_gallery(Run(path), tmp_path / "page")
    found = cases_of(tmp_path / "page")["cards"]
    assert [card["target"] for card in found] == [None] * 3
    assert [card["tiles"] for card in found] == [[{"scores": [""], "note": "not possible for this model"}]] * 3


def test_an_infinite_score_is_shown_as_one() -> None:
    assert [gallery._number(v) for v in (np.inf, -np.inf, np.nan, None, 0.123456)] == ["∞", "−∞", None, "", 0.1235]
