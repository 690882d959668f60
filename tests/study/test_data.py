"""The images of a study: which are left out, split and explained."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

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
    rows, _ = data.check_files(dataset)
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


# --- several labels an image ---


def several(tmp_path: Path, rows: list[str], regions: list[str] = [], **changes: Any) -> Any:  # noqa: B006
    """The recipe and data set of a multi-label table whose images are all in the test split."""
    tmp_path.mkdir(exist_ok=True)
    header = "sample_id,image,patient_id,split,Edema,Mass"
    lines = [
        f"{row.split(',')[0]},{row.split(',')[0]}.png,{row.split(',')[0]},test,{row.split(',', 1)[1]}" for row in rows
    ]
    (tmp_path / "samples.csv").write_text("\n".join([header, *lines]) + "\n")
    (tmp_path / "regions.csv").write_text("\n".join(["sample_id,region,label,kind,data", *regions]) + "\n")
    plain = tiny(tmp_path)
    plain["data"] = {
        "samples": str(tmp_path / "samples.csv"),
        "label_columns": ["Edema", "Mass"],
        **({"regions": str(tmp_path / "regions.csv"), "region": "lesion"} if regions else {}),
        **changes,
    }
    recipe = parse_recipe(plain)
    return recipe, data.load_dataset(recipe, tmp_path)


def test_a_recipe_says_how_labels_are_read(tmp_path: Path) -> None:
    rows = ["a,1,-1", "b,,0", "c,-1,1"]
    _, dataset = several(
        tmp_path, rows, uncertain={"Edema": "one", "Mass": "zero"}, blank="zero", classes=["Mass", "Edema"]
    )
    assert (dataset.task, dataset.classes) == ("multilabel", ("Mass", "Edema"))
    assert dataset.targets().tolist() == [[0, 1], [0, 0], [1, 1]]
    (tmp_path / "text.csv").write_text('image,findings\na.png,"x,y"\nb.png,none\nc.png,\n')
    text = {"label_columns": None, "columns": {"labels": "findings"}, "label_separator": ",", "no_finding": "none"}
    _, dataset = several(tmp_path, rows, **text, blank="zero", samples=str(tmp_path / "text.csv"))
    assert dataset.samples["labels"].tolist() == ["x|y", "", ""]
    with pytest.raises(InputError, match="uncertain must be 'zero' or 'one' or 'ignore', got 'zeros'"):
        several(tmp_path, rows, uncertain="zeros")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"readers": "mean"}, "data.readers: Input should be 'union', 'intersection' or 'majority', got 'mean'"),
        ({"readers": "majority", "region": None}, "readers says how the readers of a region count; give region too"),
        ({"samples": None, "folder": "x", "uncertain": "zero", "label_separator": ""},
         "only a sample table \\(samples:\\) has region_columns, label_separator, uncertain, not folder:"),
    ],
)  # fmt: skip
def test_options_that_have_no_place_in_a_recipe(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    plain = tiny(tmp_path)
    plain["data"] |= changes
    with pytest.raises(InputError, match=message):
        parse_recipe(plain)


def test_equal_shares_of_labels_where_an_image_counts_for_each_of_its_own(tmp_path: Path) -> None:
    rows = [f"e{i},1,0" for i in range(6)] + [f"b{i},1,1" for i in range(3)]
    regions = [f"e{i},lesion,Edema,box,0 0 1 1" for i in range(6)]  # so these are the first of Edema
    recipe, dataset = several(tmp_path, rows, regions, test_limit=4)
    # Edema: e; Mass: b, which is a second Edema; so Mass: b; Mass: b
    assert sorted(name[0] for name in data.choose_explained(dataset, recipe)) == ["b", "b", "b", "e"]
    # none: n; Edema: e; Mass: b; none: n; Mass: b; none: n; Mass: b
    rows += [f"n{i},0,-1" for i in range(4)]
    recipe, dataset = several(tmp_path, rows, regions, test_limit=7)
    assert sorted(name[0] for name in data.choose_explained(dataset, recipe)) == ["b", "b", "b", "e", "n", "n", "n"]
    recipe, dataset = several(tmp_path, rows, regions, test_limit=12)
    assert len(data.choose_explained(dataset, recipe)) == 12


def test_an_image_that_is_met_again_is_not_counted_twice() -> None:
    # A: a (also of B); C: f; A: b, the first of three with one each; B: a again is passed over, so B still has one: e
    assert data.equal_shares({"A": "abcd", "B": "ae", "C": "fg"}, 4) == set("afbe")


def test_an_image_annotated_for_the_label_comes_first(tmp_path: Path) -> None:
    rows = [*(f"x{i},1,1" for i in range(8)), *(f"n{i},0,-1" for i in range(8))]
    regions = [
        "x5,lesion,Edema,box,0 0 1 1",
        "x2,lesion,Mass,box,0 0 1 1",
        "x7,lung,Mass,box,0 0 1 1",
        "n3,lesion,,box,",  # annotated as empty
    ]
    recipe, dataset = several(tmp_path, rows, regions, test_limit=3)
    # first without a label: n3; Edema (counts for Mass too): x5; then one more without, Edema or Mass
    chosen = data.choose_explained(dataset, recipe)
    assert {"n3", "x5"} <= set(chosen)
    swapped = [region.replace("Mass", "?").replace("Edema", "Mass").replace("?", "Edema") for region in regions]
    recipe, dataset = several(tmp_path, rows, swapped, test_limit=3)
    assert {"n3", "x2"} <= set(data.choose_explained(dataset, recipe))


def test_a_bad_annotation_of_any_kind_costs_its_region_only(tmp_path: Path) -> None:
    for name in "abc":
        Image.fromarray(np.full((4, 6), 50, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    regions = ["a,lesion,Edema,polygon,1 1 2 2", "b,lesion,,rle,[20]", "c,lesion,Mass,rle,[24]", "a,lung,,box,0 0 2 2"]
    _, dataset = several(tmp_path, ["a,1,0", "b,0,1", "c,1,1"], regions)
    rows, _ = data.check_files(dataset)
    assert [(row["sample_id"], row["stage"]) for row in rows] == [("a", "polygon"), ("b", "rle")]
    kept = data.without_bad_files(dataset, pd.DataFrame(rows))
    assert kept.samples["sample_id"].tolist() == ["a", "b", "c"]
    assert kept.regions[["sample_id", "region"]].to_numpy().tolist() == [["c", "lesion"], ["a", "lung"]]


def test_several_labels_are_split_and_checked(tmp_path: Path) -> None:
    rows = [f"s{i:02},{int(i % 2 == 0)},{int(i % 5 == 0)}" for i in range(60)]
    fractions = {"train": 0.5, "val": 0.2, "test": 0.3}
    recipe, dataset = several(tmp_path, rows, splits=fractions)
    found = data.split(dataset, recipe).samples
    positives = found.groupby("split")[["label_Edema", "label_Mass"]].sum()
    assert positives["label_Edema"].to_dict() == {"train": 15, "val": 6, "test": 9}
    assert positives["label_Mass"].to_dict() == {"train": 6, "val": 2, "test": 4}
    recipe, dataset = several(tmp_path, [row[: row.rindex(",")] + ",0" for row in rows], splits=fractions)
    with pytest.raises(InputError, match="Classes without a training image that has it: Mass"):
        data.split(dataset, recipe)
