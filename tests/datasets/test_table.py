"""Sample and region tables written by hand, each fault one clear error."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from heatproof.datasets.table import load_table
from heatproof.errors import ImageError, InputError


@pytest.fixture
def folder(tmp_path):
    """Three images, one mask on the first, boxes on the second, nothing on the third."""
    (tmp_path / "images").mkdir()
    for name in "abc":
        Image.fromarray(np.full((4, 6), 50, dtype=np.uint8)).save(tmp_path / "images" / f"{name}.png")
    mask = np.zeros((4, 6), dtype=np.uint8)
    mask[0, :2] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return tmp_path


def write(path, text):
    path.write_text(text)
    return path


PLAIN = (
    "image,label,patient_id,split,age\nimages/a.png,x,p1,train,40\nimages/b.png,y,p2,val,\nimages/c.png,x,p3,test,7\n"
)


def test_a_plain_table(folder):
    data = load_table(write(folder / "samples.csv", PLAIN))
    assert data.name == "samples"
    assert data.samples["sample_id"].tolist() == ["images/a", "images/b", "images/c"]
    assert data.samples["image"].tolist() == [str(folder / "images" / f"{name}.png") for name in "abc"]
    assert data.classes == ("x", "y")
    assert data.notes == ()
    np.testing.assert_array_equal(data.samples["age"], [40, np.nan, 7])
    assert data.row("images/b")["label"] == "y"
    assert data.root == folder
    train = data.subset("train")
    assert train.samples["sample_id"].tolist() == ["images/a"]
    assert (train.classes, len(train), len(data)) == (("x", "y"), 1, 3)


def test_foreign_names_and_regions_in_columns(folder):
    text = (
        "file,finding,person,label,lesion_mask,boxes\n"
        "images/a.png,x,p1,7,mask.png,3 1 5 3\nimages/b.png,y,p1,8,,0 0 1 1;5 3 6 4\nimages/c.png,x,p2,9,,\n"
    )
    data = load_table(
        write(folder / "theirs.csv", text),
        columns={"image": "file", "label": "finding", "patient_id": "person"},
        region_columns=[
            {"region": "lesion", "kind": "mask", "column": "lesion_mask"},
            {"region": "lesion", "kind": "box", "column": "boxes"},
        ],
        classes=["y", "x"],
        name="theirs",
    )
    assert data.classes == ("y", "x")
    assert data.samples.columns.tolist() == ["sample_id", "image", "label", "patient_id", "split", "label_in_table"]
    assert data.samples["label_in_table"].tolist() == [7, 8, 9]
    expected = np.zeros((4, 6), dtype=bool)
    expected[0, :2] = expected[1:3, 3:5] = True  # mask and box of one region are united
    np.testing.assert_array_equal(data.region("images/a", "lesion", (4, 6)), expected)
    expected = np.zeros((4, 6), dtype=bool)
    expected[0, 0] = expected[3, 5] = True
    np.testing.assert_array_equal(data.region("images/b", "lesion", (4, 6)), expected)
    assert data.region("images/c", "lesion", (4, 6)) is None
    assert (data.has_region("images/b", "lesion"), data.has_region("images/c", "lesion")) == (True, False)


def test_a_region_table_keeps_empty_apart_from_not_annotated(folder):
    samples = write(folder / "samples.csv", PLAIN)
    (folder / "marks").mkdir()
    regions = (
        "sample_id,region,kind,data,reader\n"
        "images/a,lesion,mask,../mask.png,r1\nimages/a,lung,box,1 1 2 2,\nimages/b,lesion,box,,r1\n"
    )
    data = load_table(samples, write(folder / "marks" / "regions.csv", regions))
    np.testing.assert_array_equal(data.region("images/a", "lesion", (4, 6)).sum(), 2)
    np.testing.assert_array_equal(np.argwhere(data.region("images/a", "lung", (4, 6))), [[1, 1]])
    assert data.has_region("images/b", "lesion")
    np.testing.assert_array_equal(data.region("images/b", "lesion", (4, 6)), np.zeros((4, 6)))
    assert data.region("images/c", "lesion", (4, 6)) is None
    assert data.regions["reader"].tolist() == ["r1", None, "r1"]
    assert data.subset("val").regions["sample_id"].tolist() == ["images/b"]


def test_parquet_is_read_like_csv_whatever_it_is_called(folder):
    frame = pd.DataFrame(
        {"image": ["images/a.png", "images/b.png"], "label": [1.0, 0.0], "patient_id": [10, 11], "n": [3, 4]}
    )
    frame.to_parquet(folder / "samples.table")
    data = load_table(folder / "samples.table")
    assert data.samples["label"].tolist() == ["1", "0"]
    assert data.samples["patient_id"].tolist() == ["10", "11"]
    assert data.samples["n"].tolist() == [3, 4]


@pytest.mark.parametrize("index", [[7, 7], pd.Index(["q", "r"], name="sample_id")])
def test_a_parquet_file_may_have_any_index(folder, index):
    frame = pd.DataFrame({"image": ["images/a.png", "images/b.png"], "x": [1, 0], "boxes": ["0 0 1 1", None]}, index)
    frame.to_parquet(folder / "samples.parquet")
    column = {"region": "lesion", "kind": "box", "column": "boxes"}
    data = load_table(folder / "samples.parquet", label_columns=["x"], region_columns=[column])
    ids = ["q", "r"] if "q" in index else ["images/a", "images/b"]
    assert data.samples["sample_id"].tolist() == ids
    assert data.samples.index.tolist() == [0, 1]
    assert [data.has_region(sample, "lesion") for sample in ids] == [True, False]
    np.testing.assert_array_equal(data.targets(), [[1], [0]])


def test_labels_and_ids_stay_text(folder):
    text = "sample_id,image,label\n007,images/a.png,NA\n1e3,images/b.png,None\n"
    data = load_table(write(folder / "samples.csv", text))
    assert data.samples["sample_id"].tolist() == ["007", "1e3"]
    assert data.samples["label"].tolist() == ["NA", "None"]


def test_root_moves_relative_paths_and_leaves_absolute_ones(folder):
    (folder / "tables").mkdir()
    text = f"image,label\na.png,x\n{folder}/images/b.png,y\n"
    data = load_table(write(folder / "tables" / "samples.csv", text), root=folder / "images")
    assert data.samples["image"].tolist() == [str(folder / "images" / "a.png"), str(folder / "images" / "b.png")]
    assert data.samples["sample_id"].tolist() == ["a", "b"]


def test_frames_of_one_file_are_different_samples(folder):
    text = "image,label\nscans/s.v2.dcm#frame=1,x\nscans/s.v2.dcm#frame=2&window=1,y\nscans/a#1.png,y\n"
    data = load_table(write(folder / "s.csv", text))
    assert data.samples["sample_id"].tolist() == ["scans/s.v2#frame=1", "scans/s.v2#frame=2&window=1", "scans/a#1"]
    assert data.samples["image"][0] == str(folder / "scans" / "s.v2.dcm#frame=1")


def test_a_sample_stands_for_an_unknown_patient_and_the_notes_say_so(folder):
    data = load_table(write(folder / "s.csv", "image,label\nimages/a.png,x\nimages/b.png,y\n"))
    assert data.samples["patient_id"].tolist() == ["images/a", "images/b"]
    assert data.notes == ("No patient_id: every image counts as a patient of its own.",)
    data = load_table(write(folder / "s.csv", "image,label,patient_id\nimages/a.png,x,p\nimages/b.png,y,\n"))
    assert data.samples["patient_id"].tolist() == ["p", "images/b"]
    assert data.notes == ("1 images without patient_id count as patients of their own.",)


def test_undecided_splits_are_none(folder):
    data = load_table(write(folder / "s.csv", "image,label\nimages/a.png,x\n"))
    assert data.samples["split"].isna().all()
    assert data.with_splits(pd.Series(["test"])).subset("test").samples["sample_id"].tolist() == ["images/a"]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("image,finding\na.png,x\n", {}, r"no column 'label' .*columns=.*Known: finding, image"),
        ("image,label\na.png,x\n", {"columns": {"lable": "label"}}, "unknown name 'lable'. Did you mean 'label'"),
        ("image,label\na.png,x\n", {"columns": {"label": "lable"}}, "no column 'lable'.*Did you mean 'label'"),
        ("image,label\na.png,x\nb.png,\n", {}, "'label' is empty in row 2"),
        ("image,label\n,x\n", {}, "'image' is empty in row 1"),
        ("image,label\na.png,x\na.jpg,x\nb.png,x\n", {}, "same sample_id: a. "),
        ("sample_id,image,label\n1,a.png,x\n1,b.png,x\n", {}, "same sample_id: 1. "),
        ("image,label\na.png,x\nb.png,z\n", {"classes": ["x", "y"]}, r"not in classes \['x', 'y'\]: b \(z\)"),
        ("image,label\na.png,x\n", {"classes": ["x", "x"]}, "distinct names"),
        ("image,label\na.png,x\n", {"classes": "xy"}, "distinct names"),
        ("image,label,split\na.png,x,tset\n", {}, "Sample 'a' has the unknown split 'tset'. Did you mean 'test'"),
        ("image,label\n", {}, "no rows"),
        ("", {}, "cannot be read as a CSV or Parquet"),
        ('image,label\n"a.png,x\n', {}, "cannot be read as a CSV or Parquet"),
        (
            "image,label\na.png,x\n",
            {"region_columns": [{"region": "r", "kind": "msk", "column": "image"}]},
            "Did you mean 'mask'",
        ),
        (
            "image,label\na.png,x\n",
            {"region_columns": [{"region": "r", "kind": "mask", "column": "m"}]},
            "no column 'm'",
        ),
        ("image,label\na.png,x\n", {"region_columns": [{"region": "r", "kind": "mask"}]}, "needs the key 'column'"),
        ("image,label\na.png,x\n", {"region_columns": [{"regoin": "r"}]}, "Did you mean 'region'"),
    ],
)
def test_faults_of_a_sample_table(tmp_path, text, options, message):
    with pytest.raises(InputError, match=message):
        load_table(write(tmp_path / "samples.csv", text), **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample_id,region,kind\na,r,box\n", "no column 'data'"),
        ("sample_id,region,kind,data\nimages/q,r,box,1 1 2 2\n", "not in the sample table: images/q"),
        (
            "sample_id,region,kind,data\nimages/a,r,polygone,1 1 2 2\n",
            "unknown kind 'polygone'. Did you mean 'polygon'. Known: box, mask, polygon, rle",
        ),
        ("sample_id,region,kind,data\nimages/a,r,mask,\n", "has no data"),
        ("sample_id,region,kind,data\nimages/a,,box,1 1 2 2\n", "'region' is empty in row 1"),
    ],
)
def test_faults_of_a_region_table(folder, text, message):
    samples = write(folder / "samples.csv", PLAIN)
    with pytest.raises(InputError, match=message):
        load_table(samples, write(folder / "regions.csv", text))


def test_missing_table_and_unknown_sample(folder):
    with pytest.raises(InputError, match="nowhere.csv: no such table"):
        load_table(folder / "nowhere.csv")
    data = load_table(write(folder / "samples.csv", PLAIN))
    with pytest.raises(InputError, match="no sample 'images/A'. Did you mean"):
        data.row("images/A")
    with pytest.raises(InputError, match="no sample"):
        data.region("zzz", "lesion", (4, 6))


def test_a_region_of_another_size_or_outside_is_an_image_error(folder):
    samples = write(folder / "samples.csv", PLAIN)
    regions = "sample_id,region,kind,data\nimages/a,lesion,mask,mask.png\nimages/b,lesion,box,7 0 9 2\n"
    data = load_table(samples, write(folder / "regions.csv", regions))
    with pytest.raises(ImageError, match=r"mask\.png: the mask has 4 x 6 pixels .* its image 40 x 60"):
        data.region("images/a", "lesion", (40, 60))
    with pytest.raises(ImageError, match="lies outside its image"):
        data.region("images/b", "lesion", (4, 6))


def test_the_chest_manifest(shared):
    data = load_table(
        shared / "chest" / "manifest.csv",
        columns={"image": "image", "label": "label", "patient_id": "patient"},
        region_columns=[
            {"region": "lesion", "kind": "mask", "column": "lesion_mask"},
            {"region": "lesion", "kind": "box", "column": "boxes"},
            {"region": "lung", "kind": "mask", "column": "lung_mask"},
        ],
    )
    assert data.samples["label"].value_counts().to_dict() == {"pneumonia": 81, "normal": 56, "covid19": 42}
    assert data.samples["patient_id"].nunique() == 143
    assert {"view", "sex", "age", "source", "licence"} <= set(data.samples)
    counts = data.regions.groupby(["region", "kind"]).size().to_dict()
    assert counts == {("lesion", "mask"): 32, ("lesion", "box"): 32, ("lung", "mask"): 64}
    (box,) = data.regions[data.regions["kind"] == "box"].head(1).itertuples()
    x0, y0, x1, y1 = (float(v) for v in box.data.split(";")[0].split())
    with Image.open(data.row(box.sample_id)["image"]) as picture:
        found = data.region(box.sample_id, "lesion", (picture.height, picture.width))
    assert found[int((y0 + y1) / 2), int((x0 + x1) / 2)]
    assert not found[int(y1) + 2, int(x1) + 2]
