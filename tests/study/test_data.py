"""The images of a study: which are left out, split and explained."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from heatproof.errors import InputError
from heatproof.study import data
from heatproof.study.loading import parse_recipe
from support.studies import recipe as tiny
from support.studies import write_data


def with_table(tmp_path: Path, change: Any, **changes: Any) -> Any:
    """The recipe and data set of a tiny study whose table `change` has edited."""
    table = write_data(tmp_path)
    change(table).to_csv(tmp_path / "samples.csv", index=False)
    plain = tiny(tmp_path)
    plain["data"] |= changes
    recipe = parse_recipe(plain)
    return recipe, data.load_dataset(recipe, tmp_path)


def test_the_limit_takes_equal_shares_and_annotated_images_first(tmp_path: Path) -> None:
    def fewer_masks(table: pd.DataFrame) -> pd.DataFrame:
        lacking = table["split"].eq("test") & ~table["sample_id"].isin(["test002", "test007", "test009", "test005"])
        return table.assign(mask=table["mask"].where(~lacking))

    recipe, dataset = with_table(tmp_path, fewer_masks, test_limit=5)
    chosen = data.choose_explained(dataset, recipe)
    labels = dataset.samples.set_index("sample_id").loc[chosen, "label"]
    # left: test000, 002, 004, 006, 008; right: the odd ones; three of left (the first class), two of right
    assert labels.value_counts().to_dict() == {"left": 3, "right": 2}
    assert "test002" in chosen
    assert set(chosen) & {"test001", "test003"} == set()
    assert chosen == sorted(chosen)
    assert data.choose_explained(dataset, recipe) == chosen


def test_the_choice_depends_on_the_seed_but_not_on_the_order_of_the_table(tmp_path: Path) -> None:
    recipe, dataset = with_table(tmp_path, lambda table: table.assign(mask=None, other=1), test_limit=4, region=None)
    chosen = set(data.choose_explained(dataset, recipe))
    backwards, turned = with_table(tmp_path / "b", lambda table: table[::-1], test_limit=4, region=None)
    assert set(data.choose_explained(turned, backwards)) == chosen
    others = [set(data.choose_explained(dataset, recipe.model_copy(update={"seed": seed}))) for seed in range(1, 6)]
    assert any(other != chosen for other in others)


def test_without_a_limit_all_test_images_are_explained(tmp_path: Path) -> None:
    recipe, dataset = with_table(tmp_path, lambda table: table)
    assert data.choose_explained(dataset, recipe) == [f"test{i:03d}" for i in range(10)]


def test_bad_images_go_and_bad_masks_cost_the_region_only(tmp_path: Path) -> None:
    _, dataset = with_table(tmp_path, lambda table: table)
    (tmp_path / "images" / "train003.png").write_bytes(b"not an image")
    (tmp_path / "images" / "test004.png").unlink()
    (tmp_path / "masks" / "test002.png").write_bytes((tmp_path / "images" / "test002.png").read_bytes()[:60])
    rows = data.check_files(dataset)
    assert sorted((row["sample_id"], row["stage"]) for row in rows) == [
        ("test002", "mask"), ("test004", "image"), ("train003", "image"),
    ]  # fmt: skip
    assert all(set(row) == set(data.FAILURE_COLUMNS) and row["error"] == "ImageError" for row in rows)
    kept = data.without_bad_files(dataset, pd.DataFrame(rows))
    assert set(dataset.samples["sample_id"]) - set(kept.samples["sample_id"]) == {"train003", "test004"}
    assert set(dataset.regions["sample_id"]) - set(kept.regions["sample_id"]) == {"train003", "test004", "test002"}
    assert not kept.has_region("test002", "bright")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.assign(split=t["split"].replace("val", "train")), "The split 'val' is empty"),
        (lambda t: t.assign(split=t["split"].replace("test", "val")), "The split 'test' is empty"),
        (lambda t: t.assign(patient_id=t["patient_id"].replace("test-p0", "train-p0")),
         r"Patients in more than one split: train-p0 \(test, train\)"),
        (lambda t: t[(t["split"] != "train") | (t["label"] != "right")], "Classes without training images: right"),
        (lambda t: t.assign(split=t["split"].where(t["sample_id"] != "val001")), None),
    ],
)  # fmt: skip
def test_splits_that_cannot_be_worked_with_are_refused(tmp_path: Path, change: Any, message: str | None) -> None:
    recipe, dataset = with_table(tmp_path, change, splits="column")
    with pytest.raises(InputError, match=message or "No split for val001"):
        data.split(dataset, recipe)


def test_fractions_split_whole_patients_and_need_no_column(tmp_path: Path) -> None:
    fractions = {"train": 0.5, "val": 0.2, "test": 0.3}
    recipe, dataset = with_table(tmp_path, lambda table: table.drop(columns="split"), splits=fractions)
    found = data.split(dataset, recipe).samples
    assert found.groupby("patient_id")["split"].nunique().max() == 1
    shares = found["split"].value_counts(normalize=True)
    assert {name: round(share, 1) for name, share in shares.items()} == fractions


def test_a_region_or_target_that_does_not_exist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sample has a region 'brigth'. Did you mean 'bright'"):
        with_table(tmp_path, lambda table: table, region="brigth")
    recipe = parse_recipe({**tiny(tmp_path), "target": "lefd"})
    with pytest.raises(InputError, match="target: 'lefd' is neither.*Did you mean 'left'"):
        data.load_dataset(recipe, tmp_path)


def test_no_folder_of_this_machine_in_the_sample_table(tmp_path: Path) -> None:
    def elsewhere(table: pd.DataFrame) -> pd.DataFrame:
        return table.assign(note="/elsewhere/secret/a.png", age=range(len(table)))

    _, dataset = with_table(tmp_path, elsewhere)
    table = data.sample_table(dataset, ["test001"])
    assert list(table["image"][:2]) == ["images/train000.png", "images/train001.png"]
    assert set(table["note"]) == {"a.png"}
    assert table.loc[table["explained"], "sample_id"].tolist() == ["test001"]
    assert str(tmp_path) not in table.to_csv()
