"""What the adapters share: files that are not there, tables as given out, and where they lie."""

import pandas as pd
import pytest

from heatproof.datasets.adapters.official import folder_with, read_official, region_rows
from heatproof.datasets.adapters.registry import not_there
from heatproof.datasets.region_table import REGION_COLUMNS
from heatproof.errors import InputError


@pytest.mark.parametrize("count", [3, 30])
def test_missing_files_are_found_in_folders_of_few_and_of_many(tmp_path, count):
    names = [f"part/{number}.png" for number in range(count)]
    (tmp_path / "part").mkdir()
    for name in names[1:]:
        (tmp_path / name).touch()
    elsewhere = tmp_path / "other/a.png"
    named = [*names, "nowhere/x.png", str(elsewhere)]
    ids = [f"id {name}" for name in named]
    (problem,) = not_there(named, tmp_path / ".", ids, "images")
    assert problem.message == f"3 of {count + 2} images are missing: part/0.png, nowhere/x.png, {elsewhere}."
    assert problem.samples == {"id part/0.png", "id nowhere/x.png", f"id {elsewhere}"}
    (tmp_path / "other").mkdir()
    for path in (tmp_path / names[0], elsewhere):
        path.touch()
    (problem,) = not_there(named, tmp_path, ids, "images")
    assert problem.samples == {"id nowhere/x.png"}
    assert not_there(names, tmp_path, names, "images") == []


def test_a_folder_or_one_within_it(tmp_path):
    with pytest.raises(InputError, match="expected t.csv or a/t.csv or b/t.csv, which is not there"):
        folder_with(tmp_path, "t.csv", ("a", "b"))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/t.csv").touch()
    assert folder_with(tmp_path, "t.csv", ("a", "b")) == "b/"
    (tmp_path / "t.csv").touch()
    assert folder_with(tmp_path, "t.csv", ("a",)) == ""
    with pytest.raises(InputError, match=r"more than once \(t.csv, b/t.csv\)"):
        folder_with(tmp_path, "t.csv", ("a", "b"))


def test_tables(tmp_path):
    with pytest.raises(InputError, match="t.csv is expected in .* and not there"):
        read_official(tmp_path / "t.csv", ("a",))
    (tmp_path / "t.csv").write_text("a, b\n1, 2\n")
    assert read_official(tmp_path / "t.csv", ("a", "b")).to_dict("list") == {"a": ["1"], "b": [" 2"]}
    with pytest.raises(InputError, match=r"the columns \['c'\] are missing, it has \['a', 'b'\]"):
        read_official(tmp_path / "t.csv", ("a", "c"))


def test_rows_of_regions_take_no_notice_of_an_index():
    rows = region_rows(pd.Series(["x", "y"], index=[7, 8]), pd.Series(["A", "B"], index=[8, 7]), "box", ["", ""])
    assert list(rows.columns) == list(REGION_COLUMNS)
    assert rows[["sample_id", "label", "reader"]].to_numpy().tolist() == [["x", "A", None], ["y", "B", None]]
    assert region_rows([], None, "rle", []).empty
