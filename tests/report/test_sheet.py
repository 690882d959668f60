"""The gallery: what `hp.gallery` reads, asks and writes. How a sheet looks is the matter of test_sheet_drawing."""

import base64
import hashlib
import re
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import heatproof as hp
from heatproof.images import display
from heatproof.report import sheet_making
from support import files
from support.pages import parse
from support.runs import HOSTILE
from support.sheets import CLASSES, FEW, classifier, page_of, shown_levels, stored, vit, write_images


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return write_images(tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "gallery"


# ---- what is drawn ----


def test_the_maps_are_those_of_explain_in_the_display_rules(images: list[Path], out: Path) -> None:
    clf = classifier()
    sheet = hp.gallery(clf, images, out, methods=["lrp_z", "control_random", "gradcam"], seed=3)
    assert [method.name for method in sheet.methods] == ["gradcam", "lrp_z", "control_random"]  # controls last
    batch, keys = clf.read(images), [path.stem for path in images]
    levels, places = shown_levels(out), iter(range(9))
    for method, row in zip(sheet.methods, sheet.cells, strict=True):
        maps = hp.explain(clf, batch, method=method.name, keys=keys, seed=3).numpy()
        for map, cell in zip(maps, row, strict=True):
            expected = display.levels(map, signed=method.entry.signed)
            np.testing.assert_array_equal(levels[next(places)], expected)
            assert cell.limits == pytest.approx(display.robust_limits(map, signed=method.entry.signed))


def test_every_method_has_its_place_and_says_why_where_it_draws_nothing(images: list[Path], out: Path) -> None:
    sheet = hp.gallery({"cnn": classifier(), "vit": vit()}, images[:1], out, quick=True)
    assert {method.name for method in sheet.methods} == set(hp.methods())
    assert not sheet.failures
    for method, (cnn, of_vit) in zip(sheet.methods, sheet.cells, strict=True):
        refused = [cell.failure for cell in (cnn, of_vit) if cell.failure]
        assert all(
            f.expected and f.verdict in ("not for this model", "needs training images") and f.message for f in refused
        )
        assert (cnn.failure is not None) >= ("attention" in method.entry.needs), method.name
    drawn = sum(cell.map is not None for row in sheet.cells for cell in row)
    assert drawn == len(shown_levels(out)) > len(sheet.methods)
    families = [row.text for row in page_of(out).all("tr", class_="family")]
    assert families[-1].startswith("Controls")
    assert len(families) == len(set(families)) == len({entry.family for entry in hp.methods().values()})


def test_a_map_larger_than_a_picture_is_averaged_and_keeps_the_scale_of_the_whole(
    images: list[Path], out: Path
) -> None:
    clf = classifier()
    sheet = hp.gallery(clf, images[:1], out, methods=["lrp_z"], side=8)
    map = hp.explain(clf, clf.read(images[:1]), method="lrp_z")[0].numpy()
    cell = sheet.cells[0][0]
    np.testing.assert_allclose(cell.map, map.reshape(8, 4, 8, 4).mean((1, 3)), rtol=1e-4, atol=1e-7)
    assert cell.limit == pytest.approx(np.percentile(np.abs(map), 99))
    [shown] = shown_levels(out)
    np.testing.assert_array_equal(shown, display.levels(cell.map, signed=True, limits=cell.limits))
    assert not np.array_equal(shown, display.levels(cell.map, signed=True))
    grey = np.asarray(Image.open(images[0])).reshape(8, 4, 8, 4).mean((1, 3))
    assert np.abs(sheet.films[0].pixels.astype(float) - grey).max() <= 0.51


def test_the_native_map_is_shown_cell_by_cell(images: list[Path], out: Path) -> None:
    clf = vit()
    sheet = hp.gallery(clf, images[:1], out, methods=["attention_rollout"], resolution="native")
    native = hp.explain(clf, clf.read(images[:1]), method="attention_rollout", resolution="native")[0]
    assert native.shape == (4, 4)
    np.testing.assert_array_equal(sheet.cells[0][0].map, native.numpy().repeat(8, 0).repeat(8, 1))
    smooth = hp.gallery(clf, images[:1], out, methods=["attention_rollout"])
    assert len(np.unique(smooth.cells[0][0].map)) > 100


def test_the_film_is_what_the_model_sees(images: list[Path], out: Path) -> None:
    clf = classifier(image_size=20, fit="crop", short_side=32)
    film = hp.gallery(clf, images[:1], out, methods=["control_center"]).films[0]
    np.testing.assert_array_equal(film.pixels, np.asarray(Image.open(images[0]))[6:26, 6:26])


def test_predictions_and_probabilities_are_those_of_the_model(images: list[Path], out: Path) -> None:
    models = {"plain": classifier(), "labels": classifier(task="multilabel")}
    sheet = hp.gallery(models, images, out, methods=["control_center"])
    for film in sheet.films:
        clf = models[film.model]
        logits = clf(clf.read(images))[[p.stem for p in images].index(film.image)].detach()
        p = (logits.softmax(0) if film.model == "plain" else logits.sigmoid())[logits.argmax()].item()
        assert film.predicted == film.target == CLASSES[int(logits.argmax())]
        assert film.probabilities == {film.predicted: pytest.approx(p)}
        word = "predicted" if film.model == "plain" else "likeliest"
        assert film.lines == [f"{word} {film.predicted} ({p:.2f})"]


def test_target_and_contrast_by_name_and_by_index(images: list[Path], out: Path) -> None:
    clf = classifier()
    named = hp.gallery(clf, images, out, methods=["gradient"], target="nodule", against="opacity")
    maps = hp.explain(clf, clf.read(images), [2] * 3, against=1, method="gradient").numpy()
    for cell, film, map in zip(named.cells[0], named.films, maps, strict=True):
        np.testing.assert_array_equal(cell.map, map)
        assert (film.target, film.against) == ("nodule", "opacity")
        p = clf.probabilities(clf(clf.read(images)))[[path.stem for path in images].index(film.image)]
        assert film.probabilities["opacity"] == pytest.approx(p[1].item())
        assert film.lines[-1] == f"rather than opacity ({p[1].item():.2f})"
    numbered = hp.gallery(classifier(clf.module, classes=None), images, out, methods=["gradient"], target=2, against=1)
    assert [cell.map.tolist() for cell in numbered.cells[0]] == maps.tolist()
    assert numbered.films[0].target == "2"


def test_a_class_against_itself_is_said_and_nothing_is_asked(images: list[Path], out: Path) -> None:
    sheet = hp.gallery(classifier(), images[:1], out, methods=["gradient"], target="nodule", against="nodule")
    failure = sheet.cells[0][0].failure
    assert (failure.verdict, failure.message) == ("nothing to explain", "nodule cannot be explained against itself.")
    assert not sheet.failures


def test_the_same_call_writes_the_same_bytes_and_company_changes_no_map(images: list[Path], tmp_path: Path) -> None:
    clf = classifier()
    methods = [*FEW, ("lime", {"samples": 20, "segments": 6})]
    several = hp.gallery(clf, images, tmp_path / "a", methods=methods, batch_size=1)
    hp.gallery(clf, images, tmp_path / "b", methods=methods, batch_size=1)
    for name in ("gallery.png", "gallery.html", "gallery.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    alone = hp.gallery(clf, images[1:2], tmp_path / "c", methods=methods)
    for together, row in zip(several.cells, alone.cells, strict=True):
        np.testing.assert_allclose(together[1].map, row[0].map, rtol=1e-3, atol=1e-5 * np.abs(row[0].map).max())
    other = hp.gallery(clf, images, tmp_path / "d", methods=["control_random"], seed=1)
    assert not np.array_equal(other.cells[0][0].map, several.cells[-1][0].map)


def test_models_of_different_sizes_share_a_sheet(images: list[Path], out: Path) -> None:
    sheet = hp.gallery({"small": classifier(image_size=(16, 24)), "large": classifier()}, images[:2], out, methods=FEW)
    assert [cell.map.shape for cell in sheet.cells[0]] == [(16, 24), (16, 24), (32, 32), (32, 32)]
    assert [film.model for film in sheet.films] == ["small", "small", "large", "large"]


def test_quick_cuts_draws_and_steps_that_are_not_given(images: list[Path], out: Path) -> None:
    methods = ["integrated_gradients", "gradcam", ("lime", {"segments": 4}), ("rise", {"samples": 103})]
    sheet = hp.gallery(classifier(), images[:1], out, methods=methods, quick=True)
    given = {method.name: method.options for method in sheet.methods}
    assert given == {
        "integrated_gradients": {"steps": 10}, "gradcam": {}, "lime": {"samples": 100, "segments": 4},
        "rise": {"samples": 103},
    }  # fmt: skip
    content = stored(out)
    assert content["quick"] == {"samples": 100, "steps": 10}
    assert {row["method"]: row["options"].get("samples") for row in content["rows"]}["lime"] == 100
    said = [element.text for element in page_of(out).all("div", class_="said")]
    assert {"steps=10", "samples=100, segments=4", "samples=103"} <= set(said)


def test_a_method_may_stand_twice_with_other_options_and_not_with_the_same(images: list[Path], out: Path) -> None:
    methods = [("gradcam", {"layer": "conv1"}), "gradcam", ("gradcam", {})]
    sheet = hp.gallery(classifier(), images[:1], out, methods=methods)
    assert [method.remarks for method in sheet.methods] == ["layer=conv1", ""]
    assert not np.array_equal(sheet.cells[0][0].map, sheet.cells[1][0].map)


# ---- what is written ----


def test_the_page_needs_and_allows_nothing_from_elsewhere(images: list[Path], out: Path) -> None:
    hp.gallery(classifier(), images, out, methods=FEW)
    source = (out / "gallery.html").read_text(encoding="utf-8")
    assert not re.search(
        r"https?:|//[a-z]+\.|@import|\bsrc=\"(?!data:image/png;base64,)|url\((?!data:image/png)", source
    )
    page = parse(source)
    policy = next(e.attributes["content"] for e in page.all("meta") if "http-equiv" in e.attributes)
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    scripts = re.findall(r"<script>(.*?)</script>", source, re.DOTALL)
    assert rules["script-src"].split() == [sha256(script) for script in scripts]
    assert len(scripts) == 2
    assert not any(name.startswith("on") for element in page.all() for name in element.attributes)
    ids = [element.attributes["id"] for element in page.all() if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    assert all("alt" in image.attributes for image in page.all("img"))
    labels = [tile.attributes["aria-label"] for tile in page.all("div", class_="tile")]
    assert "lrp_z of second by TinyCNN" in labels


def sha256(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def test_foreign_names_are_text_everywhere(images: list[Path], out: Path) -> None:
    clf = classifier(classes=["normal", HOSTILE, '"><img src=x>'])
    sheet = hp.gallery({HOSTILE: clf}, {HOSTILE: images[0], "</style>": images[1]}, out, methods=FEW, target=HOSTILE)
    source = (out / "gallery.html").read_text(encoding="utf-8")
    assert HOSTILE not in source
    assert "<img src=x" not in source
    assert source.count("</style>") == source.count("<style>") == 3
    page = parse(source)
    names = [element.text for element in page.all("div", class_="name")]
    assert names == [HOSTILE, "</style>"]
    assert page.all("th", scope="colgroup")[0].text == HOSTILE
    assert stored(out)["columns"][0]["target"] == HOSTILE
    assert sheet.films[0].target == HOSTILE


def test_nothing_of_a_dicom_header_is_written_and_names_only_where_wanted(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (32, 32), dtype=np.uint16)
    path = tmp_path / "Doe_Jane_4711.dcm"
    files.dataset(pixels, BitsStored=12, HighBit=11).save_as(path, enforce_file_format=True)
    clf = classifier()
    named = hp.gallery(clf, [path], tmp_path / "named", methods=FEW)
    hidden = hp.gallery(clf, [path, tmp_path / "Doe_John.dcm"], tmp_path / "hidden", methods=FEW, anonymous=True)
    for folder, allowed in (("named", [b"Doe_Jane_4711"]), ("hidden", [])):
        content = b"".join((tmp_path / folder / f"gallery.{kind}").read_bytes() for kind in ("html", "json", "png"))
        for word in (b"Secret", b"ID-4711", b"19701231", str(tmp_path).encode(), b"Doe_J"):
            found = set(re.findall(re.escape(word) + rb"\w*", content))
            assert found <= set(allowed), word
    assert [film.image for film in hidden.films] == ["image 1"]
    assert [failure.image for failure in hidden.failures] == ["image 2"]
    for a, b in zip(named.cells, hidden.cells, strict=True):  # the same draws
        np.testing.assert_array_equal(a[0].map, b[0].map)


def test_the_plain_values_say_what_was_drawn_and_how(images: list[Path], out: Path) -> None:
    clf = classifier()
    sheet = hp.gallery(
        {"cnn": clf},
        images[:2],
        out,
        methods=[*FEW, "attention", ("lime", {"samples": 9})],
        seed=5,
        target="nodule",
        side=64,
    )
    content = stored(out)
    assert (content["seed"], content["side"], content["target"], content["resolution"]) == (5, 64, "nodule", "input")
    assert content["quick"] is None
    assert content["scaling"]["limit"] == "percentile 99 of the absolute values"
    assert content["environment"]["heatproof"] == hp.__version__
    assert content["environment"]["packages"]["torch"] == version("torch")
    assert "created" not in content["environment"]
    [model] = content["models"]
    assert (model["name"], model["network"], model["classes"]) == ("cnn", "TinyCNN", CLASSES)
    assert model["preprocessing"]["image_size"] == [32, 32]
    rows = {row["method"]: row for row in content["rows"]}
    assert rows["lime"]["options"] == {**hp.methods()["lime"].options, "samples": 9}
    assert rows["attention"]["cells"][0]["verdict"] == "not for this model"
    assert rows["lrp_z"]["signed"]
    assert rows["lrp_z"]["cells"][1]["limit"] == sheet.cells[[m.name for m in sheet.methods].index("lrp_z")][1].limit
    assert [column["image"] for column in content["columns"]] == ["first", "second"]


def test_a_positive_method_diverges_where_a_contrast_makes_it_negative(
    images: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = torch.linspace(-1, 3, 32 * 32).view(1, 32, 32).repeat(3, 1, 1)
    maps[0] = maps[0].abs()
    monkeypatch.setattr(sheet_making, "explain", lambda *_, **__: maps)
    contrast = hp.gallery(classifier(), images, out, methods=["rise"], target="nodule", against="normal")
    assert [cell.signed for cell in contrast.cells[0]] == [True] * 3  # one scale's kind for a row
    assert stored(out)["rows"][0]["signed"]
    alone = hp.gallery(classifier(), images, out, methods=["rise"])
    assert [cell.limits[0] for cell in alone.cells[0]] == [0.0] * 3


def test_a_method_made_of_training_images_says_that_it_needs_them(images: list[Path], out: Path) -> None:
    clf = classifier()
    given = {"references": clf.read(images), "labels": [0, 1, 2]}
    sheet = hp.gallery(clf, images[:1], out, methods=["control_average", ("control_average", given)])
    assert sheet.cells[0][0].failure.verdict == "needs training images"
    assert not sheet.failures
    expected = hp.explain(clf, clf.read(images[:1]), method="control_average", **given)[0].numpy()
    np.testing.assert_array_equal(sheet.cells[1][0].map, expected)
    assert sheet.methods[1].remarks == "references=Tensor, labels=[0, 1, 2]"
    assert [row["options"]["references"] for row in stored(out)["rows"]] == [None, "Tensor"]


def test_what_is_asked_reaches_every_call(images: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def noting(*arguments: Any, **given: Any) -> torch.Tensor:
        asked.append(given)
        return hp.explain(*arguments, **given)

    monkeypatch.setattr(sheet_making, "explain", noting)
    methods = ["gradcam", ("control_center", {})]
    hp.gallery(
        {"a": classifier(), "b": classifier()}, images, out, methods=methods, batch_size=2, seed=7, against=0, target=1
    )
    assert len(asked) == 4
    for given in asked:
        wanted = {"batch_size": 2, "seed": 7, "against": 0, "resolution": "input"}
        assert {name: given[name] for name in wanted} == wanted
        assert given["keys"] == ["first", "second", "third"]


def test_families_have_an_order_and_those_of_users_stand_before_the_controls() -> None:
    names = ["control_edges", "lime", "lrp_z", "gradient", "gradcam", "attention"]
    entries = [*(hp.methods()[name] for name in names), replace(hp.methods()["saliency"], family="my own")]
    rows = sheet_making.ordered([(entry, {}) for entry in entries], quick=False)
    assert [row.name for row in rows] == [
        "attention", "gradcam", "gradient", "lrp_z", "lime", "saliency", "control_edges",
    ]  # fmt: skip
    assert rows[5].family == "My own"


def test_a_method_that_cannot_tell_classes_says_so(images: list[Path], out: Path) -> None:
    sheet = hp.gallery(classifier(), images[:1], out, methods=["eigencam", "gradcam"])
    assert {method.name: method.remarks for method in sheet.methods} == {
        "eigencam": "the same for every class", "gradcam": "",
    }  # fmt: skip
