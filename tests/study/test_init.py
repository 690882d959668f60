"""A first recipe, written after a look at somebody's data."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image

from heatproof.errors import InputError
from heatproof.study.data import load_dataset
from heatproof.study.init import write_recipe
from heatproof.study.inspection import inspect
from heatproof.study.loading import load_recipe
from heatproof.study.runner import plan_study
from support.bright_side import write_bright_side


def write_images(folder: Path, count: int, *, colour: bool = False, size: tuple[int, int] = (20, 24)) -> list[str]:
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{i:03d}.png" for i in range(count)]
    for name in names:
        Image.fromarray(random.integers(0, 255, (*size, 3) if colour else size, dtype=np.uint8)).save(folder / name)
    return names


def written(source: Path, **options: Any) -> tuple[dict[str, Any], str, Any]:
    """The recipe as plain values, as text, and the data set that it leads to."""
    out = source.parent / "study.yaml" if source.is_file() else source / "study.yaml"
    write_recipe(source, out, **options)
    text = out.read_text()
    return yaml.safe_load(text), text, load_dataset(load_recipe(out), source.parent)


def test_a_plain_table_and_the_plan_of_its_study(tmp_path: Path) -> None:
    write_bright_side(tmp_path, (60, 20, 20))
    plain, text, dataset = written(tmp_path / "samples.csv", pretrained=False)
    assert text.startswith("# 100 images, 2 classes (left 50, right 50); 16 × 16 pixels, grey.\n")
    assert plain["data"] == {"samples": "samples.csv", "splits": "column", "test_limit": 60}
    assert {model["channels"] for model in plain["models"]} == {1}
    assert len(dataset) == 100
    plans = plan_study(tmp_path / "study.yaml", progress=False)
    assert set(plans) == {"vit", "densenet"}
    assert all(plan.cases == 20 for plan in plans.values())


def test_foreign_columns_masks_and_boxes(tmp_path: Path) -> None:
    names = write_images(tmp_path / "png", 12, colour=True)
    write_images(tmp_path / "png" / "m", 12)
    table = pd.DataFrame({
        "Image Index": names, "Diagnosis": ["sick", "well"] * 6, "Patient ID": [i // 2 for i in range(12)],
        "fold": range(12), "lesion_mask": [f"m/{name}" for name in names[:9]] + [None] * 3, "bbox": ["1 2 8 9"] * 12,
        "age": range(40, 52),
    })  # fmt: skip
    table.to_csv(tmp_path / "list.csv", index=False)
    plain, text, dataset = written(tmp_path)
    data = plain["data"]
    assert data["samples"] == "list.csv"
    assert data["root"] == "png"
    assert data["columns"] == {"image": "Image Index", "label": "Diagnosis", "patient_id": "Patient ID"}
    assert data["region_columns"] == [
        {"region": "lesion", "kind": "mask", "column": "lesion_mask"},
        {"region": "lesion", "kind": "box", "column": "bbox"},
    ]
    assert data["region"] == "lesion"
    assert data["splits"] == {"train": 0.7, "val": 0.1, "test": 0.2}
    assert "'fold'" in text
    assert "24 × 20 pixels, colour" in text
    assert dataset.samples["patient_id"].nunique() == 6
    assert dataset.region("000", "lesion", (20, 24)) is not None
    assert "iou" in text


def test_a_column_for_each_label(tmp_path: Path) -> None:
    names = write_images(tmp_path, 8)
    labels = {"Edema": [1, 0, -1, None] * 2, "Effusion": [0, 1] * 4}
    pd.DataFrame({"Path": names, "Frontal": ["yes"] * 8, **labels}).to_csv(tmp_path / "train.csv", index=False)
    plain, text, dataset = written(tmp_path / "train.csv")
    assert plain["data"]["label_columns"] == ["Edema", "Effusion"]
    assert dataset.task == "multilabel"
    assert dataset.classes == ("Edema", "Effusion")
    np.testing.assert_array_equal(dataset.targets()[:4], [[1, 0], [0, 1], [np.nan, 0], [0, 1]])
    assert text.startswith("# 8 images, 2 labels, several an image (Edema 2, Effusion 4)")
    assert "No column names the patients" in text


def test_several_labels_in_one_cell(tmp_path: Path) -> None:
    names = write_images(tmp_path, 6)
    findings = ["No Finding", "Mass|Nodule", "Mass", "Nodule", "No Finding", "Mass"]
    pd.DataFrame({"image": names, "Finding Labels": findings}).to_parquet(tmp_path / "nih.parquet")
    plain, _, dataset = written(tmp_path)
    assert plain["data"]["columns"] == {"labels": "Finding Labels"}
    assert plain["data"]["no_finding"] == "No Finding"
    assert dataset.classes == ("Mass", "Nodule")
    assert dataset.targets().sum(0).tolist() == [3, 2]


def test_class_folders(tmp_path: Path) -> None:
    for name in ("mass", "normal"):
        write_images(tmp_path / "images" / name, 4)
    recipe = tmp_path / "study.yaml"
    write_recipe(tmp_path / "images", recipe)
    plain = yaml.safe_load(recipe.read_text())
    assert plain["data"]["folder"] == "images"
    assert plain["name"] == "images"
    assert "# No masks or boxes were found" in recipe.read_text()
    assert len(load_dataset(load_recipe(recipe), tmp_path)) == 8
    assert plain["models"][0]["source"] == "hf:google/vit-base-patch16-224"


def test_a_column_with_few_values_is_the_label_where_none_is_called_so(tmp_path: Path) -> None:
    names = write_images(tmp_path, 8)
    pd.DataFrame({"image": names, "tumour": ["yes", "no"] * 4}).to_csv(tmp_path / "a.csv", index=False)
    plain, text, _ = written(tmp_path)
    assert plain["data"]["columns"] == {"label": "tumour"}
    assert "The column 'tumour' was taken for the label" in text


def test_what_cannot_be_made_out_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    names = write_images(tmp_path, 8)
    pd.DataFrame({"image": names, "age": range(8)}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(InputError, match="no column is called label, class or the like, and 0 columns could be it"):
        inspect(tmp_path)
    pd.DataFrame({"image": ["x.png"] * 4, "label": list("abab")}).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(InputError, match=r"several tables \(a\.csv, b\.csv\): say which"):
        inspect(tmp_path)
    with pytest.raises(InputError, match="no column whose cells are files"):
        inspect(tmp_path / "b.csv")
    with pytest.raises(InputError, match="no such table"):
        inspect(tmp_path / "c.csv")
    (tmp_path / "study.yaml").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        write_recipe(tmp_path / "a.csv", tmp_path / "study.yaml")
    assert (tmp_path / "study.yaml").read_text() == "mine"


def test_a_broken_image_is_named_in_the_recipe(tmp_path: Path) -> None:
    names = write_images(tmp_path, 6)
    (tmp_path / names[2]).write_bytes(b"none")
    pd.DataFrame({"image": names, "label": list("ababab")}).to_csv(tmp_path / "a.csv", index=False)
    _, text, _ = written(tmp_path)
    assert "# Cannot be read: 002.png" in text


def test_a_table_of_regions_beside_the_images(tmp_path: Path) -> None:
    write_bright_side(tmp_path, (6, 2, 2))
    rows = [("train000", "lung"), ("train001", "lung"), ("train001", "lesion")]
    table = pd.DataFrame(rows, columns=["sample_id", "region"]).assign(kind="box", data="1 1 5 5")
    table.to_csv(tmp_path / "regions.csv", index=False)
    plain, text, dataset = written(tmp_path)
    assert plain["data"]["regions"] == "regions.csv"
    assert plain["data"]["region"] == "lung"
    assert "(or lesion)" in text
    assert dataset.region("train001", "lesion", (16, 16)).sum() == 16
