"""The gallery where something is missing or wrong: what is said, what is lost and what is not; and the regions."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import heatproof as hp
from heatproof.errors import InputError, UnsupportedModelError
from heatproof.report import sheet_making
from support.sheets import FEW, classifier, page_of, shown_levels, stored, write_images


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    return write_images(tmp_path)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "gallery"


# ---- what fails ----


def test_a_method_that_fails_on_one_image_loses_that_map_only(
    images: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def failing(*arguments: Any, method: str, keys: list[str], **options: Any) -> torch.Tensor:
        asked.append((method, keys))
        if "second" in keys and method != "control_random":
            raise {"gradcam": InputError("No map. Say why."), "lrp_z": RuntimeError("out of <memory>")}[method]
        return hp.explain(*arguments, method=method, keys=keys, **options)

    monkeypatch.setattr(sheet_making, "explain", failing)
    clf = classifier()
    sheet = hp.gallery(clf, images, out, methods=FEW)
    assert [[cell.map is None for cell in row] for row in sheet.cells] == [[False, True, False]] * 2 + [[False] * 3]
    assert [(f.method, f.image, f.verdict) for f in sheet.failures] == [
        ("gradcam", "second", "failed: InputError"),
        ("lrp_z", "second", "failed: RuntimeError"),
    ]
    assert asked[-1] == ("control_random", ["first", "second", "third"])  # no other call than this one where none fails
    whole = hp.explain(clf, clf.read(images), method="gradcam")
    np.testing.assert_allclose(sheet.cells[0][2].map, whole[2].numpy(), rtol=1e-3, atol=1e-6)
    refused = [cell.text for cell in page_of(out).all("td", class_="refused")]
    assert refused == ["failed: InputError No map.", "failed: RuntimeError out of <memory>"]


def test_an_unsupported_method_is_asked_once_and_said_once(
    images: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def unsupported(*_: Any, method: str, **__: Any) -> torch.Tensor:
        calls.append(method)
        raise UnsupportedModelError("It needs legs. Use another.")

    monkeypatch.setattr(sheet_making, "explain", unsupported)
    sheet = hp.gallery({"a": classifier(), "b": classifier()}, images, out, methods=["gradcam"])
    assert calls == ["gradcam", "gradcam"]
    assert not sheet.failures
    refused = page_of(out).all("td", class_="refused")
    assert [(cell.attributes["colspan"], cell.text) for cell in refused] == [
        ("3", "not for this model It needs legs.")
    ] * 2
    assert stored(out)["rows"][0]["cells"][4]["message"] == "It needs legs. Use another."


def test_a_mistake_in_a_method_is_not_drawn_over(
    images: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistaken(*_: Any, **__: Any) -> torch.Tensor:
        raise KeyError("a mistake")

    monkeypatch.setattr(sheet_making, "explain", mistaken)
    with pytest.raises(KeyError):
        hp.gallery(classifier(), images, out, methods=["gradcam"])
    assert not out.exists()


def test_a_map_without_a_scale_says_so(images: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.zeros(3, 32, 32)
    maps[1, :2], maps[1, 2:4], maps[2] = torch.nan, 1.0, torch.nan
    monkeypatch.setattr(sheet_making, "explain", lambda *_, **__: maps)
    sheet = hp.gallery(classifier(), images, out, methods=["gradcam"])
    captions = [cell.caption for cell in sheet.cells[0]]
    assert captions == ["constant map (0)", "0 to 1.0, 64 pixels undefined (grey)", "no finite value"]
    levels = shown_levels(out)
    assert (levels[0] == 255).all()
    assert (levels[2] == 255).all()
    assert [set(np.unique(part)) for part in (levels[1][:2], levels[1][2:4], levels[1][4:])] == [{255}, {254}, {0}]
    assert stored(out)["rows"][0]["cells"][0]["note"] == "constant map (0)"


def test_an_empty_class_activation_map_warns_on_the_sheet_alone(
    images: list[Path], out: Path, recwarn: pytest.WarningsRecorder
) -> None:
    clf = classifier()
    with torch.no_grad():
        clf.module.head.weight.copy_(torch.tensor([[1.0], [-1.0], [-2.0]]).expand(3, 8))
    sheet = hp.gallery(clf, images, out, methods=["gradcam"], target="nodule")
    assert {cell.caption for cell in sheet.cells[0]} == {"constant map (0)"}
    assert not [warning for warning in recwarn if "zero everywhere" in str(warning.message)]


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_drawn(images: list[Path], out: Path) -> None:
    images[1].write_bytes(b"nothing")
    sheet = hp.gallery(
        {"a": classifier(), "b": classifier()}, [*images, images[0].with_name("gone.png")], out, methods=FEW
    )
    assert [film.image for film in sheet.films] == ["first", "third"] * 2
    assert [(f.image, f.verdict) for f in sheet.failures] == [
        ("second", "the file cannot be read"), ("gone", "the file cannot be read"),
    ]  # fmt: skip
    assert "no such file" in sheet.failures[1].message
    listed = [item.text for item in page_of(out).all("section")[0].all("li")]
    assert listed == ["second: the file cannot be read", "gone: the file cannot be read"]
    assert [entry["image"] for entry in stored(out)["unread"]] == ["second", "gone"]
    with pytest.raises(InputError, match="None of the images can be shown"):
        hp.gallery(classifier(), [images[1]], out, methods=FEW)


def test_an_image_that_one_model_cannot_take_is_left_to_the_other(images: list[Path], out: Path) -> None:
    Image.fromarray(np.zeros((48, 100), np.uint8)).save(images[1])
    models = {"whole": classifier(), "crop": classifier(image_size=(32, 64), fit="crop", short_side=32)}
    sheet = hp.gallery(models, images[:2], out, methods=["control_center"])
    assert [(film.model, film.image) for film in sheet.films] == [
        ("whole", "first"),
        ("whole", "second"),
        ("crop", "second"),
    ]
    assert [(f.model, f.image, f.verdict) for f in sheet.failures] == [
        ("crop", "first", "the image does not fit the model")
    ]


# ---- what is refused ----


def test_bad_arguments_are_refused_before_any_work(
    images: list[Path], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def worked(*_: Any, **__: Any) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setattr(sheet_making, "explain", worked)
    clf = classifier()
    for arguments, message in (
        ({"methods": ["gradcm"]}, "Unknown explainer 'gradcm'. Did you mean 'gradcam'"),
        ({"methods": "gradcam"}, "methods must be a list of at least one name, got 'gradcam'"),
        ({"methods": []}, "methods must be a list of at least one name"),
        ({"methods": [("gradcam", {"layr": "x"})]}, "gradcam has no option 'layr'. Did you mean 'layer'"),
        ({"images": []}, "at least one model and one image, got 1 and 0"),
        ({"models": {}}, "at least one model and one image, got 0 and 3"),
        ({"models": [clf]}, "models must be a model or models by name"),
        ({"images": images[0]}, "images must be a list of files"),
        ({"images": [images[0], Path("elsewhere") / "first.png"]}, "Several images have the same name"),
        ({"images": {str(i): images[0] for i in range(25)}}, "24 at most, got 25 × 1"),
        ({"target": "noddle"}, "target: the model has no class 'noddle'. Did you mean 'nodule'"),
        ({"against": "noddle"}, "against: the model has no class 'noddle'"),
        ({"target": 3}, "targets must lie in 0..2"),
        ({"resolution": "full"}, "resolution must be 'input' or 'native', got 'full'"),
        ({"side": 0}, "side must be a whole number, at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be a positive integer or None, got 0"),
        ({"regions": out / "none.csv"}, "no such table"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            hp.gallery(**{"models": clf, "images": images, "out": out, "methods": FEW, **arguments})
        assert not out.exists()


def test_a_model_in_training_mode_is_an_error_and_not_a_sheet_of_errors(images: list[Path], out: Path) -> None:
    clf = classifier()
    clf.module.train()
    with pytest.raises(InputError, match="training mode"):
        hp.gallery(clf, images, out, methods=FEW)


def test_a_folder_of_other_things_is_left_alone_and_an_earlier_gallery_is_replaced(
    images: list[Path], out: Path
) -> None:
    clf = classifier()
    hp.gallery(clf, images, out, methods=FEW)
    hp.gallery(clf, images[:1], out, methods=FEW)
    assert len(stored(out)["columns"]) == 1
    (out / ".hidden").write_text("of a file manager")
    hp.gallery(clf, images[:1], out, methods=FEW)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=re.escape("holds other things (notes.txt)")):
        hp.gallery(clf, images, out, methods=FEW)
    assert len(stored(out)["columns"]) == 1
    with pytest.raises(InputError, match="is a file"):
        hp.gallery(clf, images, out / "notes.txt", methods=FEW)


def test_nothing_leaks(images: list[Path], out: Path) -> None:
    clf = classifier()
    before = {name: value.clone() for name, value in clf.module.state_dict().items()}
    state = torch.get_rng_state()
    hp.gallery(clf, images, out, methods=[*FEW, "vargrad", "guided_backprop"])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in clf.module.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in clf.module.parameters())
    assert not any(part._forward_hooks or part._backward_hooks for part in clf.module.modules())


def test_a_model_whose_values_are_undefined_is_refused(images: list[Path], out: Path) -> None:
    clf = classifier()
    with torch.no_grad():
        clf.module.head.bias.fill_(torch.nan)
    with pytest.raises(InputError, match="values are NaN or infinite"):
        hp.gallery(clf, images[:1], out, methods=["gradient"])


# ---- regions ----


def region_table(folder: Path, rows: list[tuple[str, str, str, str]], label: list[str] | None = None) -> Path:
    frame = pd.DataFrame(rows, columns=["sample_id", "region", "kind", "data"])
    frame = frame if label is None else frame.assign(label=label)
    frame.to_csv(folder / "regions.csv", index=False)
    return folder / "regions.csv"


def test_regions_go_the_way_of_their_image(images: list[Path], out: Path, tmp_path: Path) -> None:
    mask = np.zeros((48, 40), np.uint8)
    mask[:24, :20] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    rows = [
        ("images/second", "lesion", "mask", "mask.png"),
        ("first", "lesion", "box", "8 4 16 12"),
        ("third", "lesion", "box", ""),
    ]
    table = region_table(tmp_path, rows)
    sheet = hp.gallery(classifier(), images, out, methods=FEW, regions=table)
    first, second, third = (film.region for film in sheet.films)
    expected = np.zeros((32, 32), bool)
    expected[4:12, 8:16] = True
    np.testing.assert_array_equal(first, expected)
    assert second[:16, :16].all()
    assert second.sum() == 16 * 16
    assert third is not None
    assert not third.any()
    assert sheet.notes[-2] == "White line: lesion."
    paths = {path.attributes["id"]: path.attributes["d"] for path in page_of(out).all("path")}
    assert set(paths) == {"outline-0", "outline-1"}
    points = {tuple(map(float, point.split())) for point in re.split("[MLZ]", paths["outline-0"]) if point}
    assert {x for x, _ in points} == {8, 16} or {(8.5, 4), (8, 4.5)} <= points
    assert [column["region"] for column in stored(out)["columns"]] == [True, True, False]


def test_which_region_is_said_where_there_are_several(images: list[Path], out: Path, tmp_path: Path) -> None:
    table = region_table(tmp_path, [("first", "lesion", "box", "1 1 9 9"), ("first", "lung", "box", "0 0 32 16")])
    lung = hp.gallery(classifier(), images[:1], out, methods=FEW, regions=table, region="lung")
    assert lung.films[0].region.sum() == 32 * 16
    for changes, message in (
        ({}, "holds several regions: lesion, lung. Say which"),
        ({"region": "longue"}, "has no region 'longue'. Did you mean 'lung'"),
        ({"regions": None, "region": "lung"}, "region 'lung' is one of a region table, and none is given"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            hp.gallery(classifier(), images[:1], out, methods=FEW, **{"regions": table, **changes})


def test_regions_of_other_images_are_an_error_and_ends_that_two_share_are_nobodys(
    images: list[Path], out: Path, tmp_path: Path
) -> None:
    table = region_table(tmp_path, [("a/first", "lesion", "box", "1 1 9 9"), ("b/first", "lesion", "box", "0 0 9 9")])
    with pytest.raises(InputError, match="none of its samples is one of the images.*the first is 'a/first'"):
        hp.gallery(classifier(), images[:1], out, methods=FEW, regions=table)
    named = hp.gallery(classifier(), {"a/first": images[0]}, out, methods=FEW, regions=table)
    assert named.films[0].region.sum() == 64


def test_a_region_that_cannot_be_read_costs_its_outline_alone(images: list[Path], out: Path, tmp_path: Path) -> None:
    table = region_table(tmp_path, [("first", "lesion", "mask", "gone.png"), ("second", "lesion", "box", "1 1 9 9")])
    sheet = hp.gallery({"a": classifier(), "b": classifier()}, images[:2], out, methods=FEW, regions=table)
    assert [film.region is None for film in sheet.films] == [True, False] * 2
    assert [(f.image, f.verdict) for f in sheet.failures] == [("first", "the region cannot be read")]
    assert str(tmp_path) not in (out / "gallery.html").read_text(encoding="utf-8")


def test_with_several_labels_the_region_of_the_explained_one_is_drawn(
    images: list[Path], out: Path, tmp_path: Path
) -> None:
    rows = [("first", "lesion", "box", "0 0 4 4"), ("first", "lesion", "box", "8 8 16 16")]
    table = region_table(tmp_path, rows, label=["opacity", "nodule"])
    areas = {}
    for task in ("multilabel", "multiclass"):
        for target in ("opacity", "nodule", "normal"):
            given = {"methods": ["control_center"], "regions": table, "target": target}
            region = hp.gallery(classifier(task=task), images[:1], out, **given).films[0].region
            areas[task, target] = None if region is None else int(region.sum())
    assert areas == {
        ("multilabel", "opacity"): 16, ("multilabel", "nodule"): 64, ("multilabel", "normal"): None,
        ("multiclass", "opacity"): 80, ("multiclass", "nodule"): 80, ("multiclass", "normal"): 80,
    }  # fmt: skip
