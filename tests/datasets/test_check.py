"""Every bad file is a named row, and the good ones are counted."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from heatproof.datasets.check import check_dataset
from heatproof.datasets.table import load_table
from support.files import write_dicom


@pytest.fixture
def data(tmp_path):
    """Six samples: good, good (boxes), truncated, missing, multi-frame, mask of another size."""
    random = np.random.default_rng(0)
    for name in "abcf":
        Image.fromarray(random.integers(0, 255, (8, 8), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "c.png").read_bytes()[:60])
    frames = np.zeros((3, 8, 8), dtype=np.uint8)
    write_dicom(tmp_path / "e.dcm", frames[0], NumberOfFrames=3, PixelData=frames.tobytes())
    Image.fromarray(np.eye(8, dtype=np.uint8)).save(tmp_path / "good_mask.png")
    Image.fromarray(np.eye(9, dtype=np.uint8)).save(tmp_path / "bad_mask.png")
    (tmp_path / "samples.csv").write_text(
        "sample_id,image,label,patient_id,split\n"
        "a,a.png,x,1,train\nb,b.png,y,1,train\nc,c.png,x,2,val\nd,d.png,x,3,test\ne,e.dcm,y,4,test\nf,f.png,y,5,\n"
    )
    (tmp_path / "regions.csv").write_text(
        "sample_id,region,kind,data\n"
        "a,lesion,mask,good_mask.png\na,lesion,box,\nb,lesion,box,\nb,lung,box,0 0 99 99\n"
        "c,lesion,mask,good_mask.png\nd,lung,box,1 2 3\nf,lesion,mask,bad_mask.png\nf,lung,mask,no_mask.png\n"
    )
    return load_table(tmp_path / "samples.csv", tmp_path / "regions.csv")


def test_bad_files_are_rows_and_nothing_else_is_lost(data):
    check = check_dataset(data)
    rows = check.failures[["sample_id", "stage"]].apply(tuple, axis=1).tolist()
    assert rows == [("c", "image"), ("d", "image"), ("d", "box"), ("e", "image"), ("f", "mask"), ("f", "mask")]
    assert set(check.failures["error"]) == {"ImageError"}
    expected = [
        "c.png: the PNG is truncated",
        "d.png: no such file",
        "A box is four numbers",
        "e.dcm: a multi-frame DICOM of 3 frames",
        "bad_mask.png: the mask has 9 x 9 pixels",
        "no_mask.png: no such file",
    ]
    for message, start in zip(check.failures["message"], expected, strict=True):
        assert message.startswith(start)
    assert not check.ok


def test_counts(data):
    check = check_dataset(data)
    expected = pd.DataFrame(
        {"train": [1, 1], "val": [1, 0], "test": [1, 1], "none": [0, 1]}, index=pd.Index(["x", "y"], name="label")
    )
    pd.testing.assert_frame_equal(check.counts, expected.rename_axis("split", axis=1))
    assert check.patients.to_dict() == {"none": 1, "test": 2, "train": 1, "val": 1}
    # lesion: a (8 pixels), b (empty), c, f (unknown: unreadable); lung: b, d, f
    assert check.regions.reset_index().to_dict("records") == [
        {"region": "lesion", "label": "", "kinds": "box, mask", "readers": 1, "annotated": 4, "empty": 1},
        {"region": "lung", "label": "", "kinds": "box, mask", "readers": 1, "annotated": 3, "empty": 0},
    ]


def test_a_clean_set_is_ok(data):
    check = check_dataset(data.subset("train"))
    assert check.ok
    assert check.failures.columns.tolist() == ["sample_id", "stage", "error", "message"]
    assert check.counts.to_dict() == {"train": {"x": 1, "y": 1}}


def test_the_chest_radiographs_are_all_readable(shared):
    data = load_table(
        shared / "chest" / "manifest.csv",
        columns={"patient_id": "patient"},
        region_columns=[
            {"region": "lesion", "kind": "mask", "column": "lesion_mask"},
            {"region": "lesion", "kind": "box", "column": "boxes"},
            {"region": "lung", "kind": "mask", "column": "lung_mask"},
        ],
    )
    check = check_dataset(data)
    assert check.ok
    assert check.regions[["kinds", "annotated", "empty"]].to_dict("index") == {
        "lesion": {"kinds": "box, mask", "annotated": 64, "empty": 0},
        "lung": {"kinds": "mask", "annotated": 64, "empty": 0},
    }
    assert check.notes == ()


def test_labels_are_counted_a_split_and_regions_a_label(tmp_path):
    Image.fromarray(np.zeros((4, 6), dtype=np.uint8)).save(tmp_path / "black.png")
    (tmp_path / "samples.csv").write_text(
        "sample_id,image,patient_id,split,Edema,Mass\n"
        "a,black.png,1,train,1,-1\nb,b.png,1,train,0,\nc,c.png,2,test,1,1\nd,d.png,3,,0,0\n"
    )
    for name in "bcd":
        Image.fromarray(np.full((4, 6), 9, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "regions.csv").write_text(
        "sample_id,region,label,reader,kind,data\n"
        "a,lesion,Edema,r1,box,0 0 2 2\na,lesion,Edema,r2,polygon,0 0 2 0 2 2\na,lesion,Mass,r1,rle,\n"
        "c,lesion,Edema,r3,rle,[24]\nc,lesion,Mass,r1,rle,[20]\nd,lung,,,box,0 0 1 1\n"
    )
    data = load_table(tmp_path / "samples.csv", tmp_path / "regions.csv", label_columns=["Edema", "Mass"], blank="zero")
    check = check_dataset(data)
    expected = {
        "train positive": [1, 0], "train negative": [1, 1], "train unknown": [0, 1],
        "test positive": [1, 1], "test negative": [0, 0], "test unknown": [0, 0],
        "none positive": [0, 0], "none negative": [1, 1], "none unknown": [0, 0],
    }  # fmt: skip
    pd.testing.assert_frame_equal(check.counts, pd.DataFrame(expected, pd.Index(["Edema", "Mass"], name="label")))
    assert check.regions.reset_index().to_dict("records") == [
        {"region": "lesion", "label": "Edema", "kinds": "box, polygon, rle", "readers": 3, "annotated": 2, "empty": 1},
        {"region": "lesion", "label": "Mass", "kinds": "rle", "readers": 1, "annotated": 2, "empty": 1},
        {"region": "lung", "label": "", "kinds": "box", "readers": 1, "annotated": 1, "empty": 0},
    ]
    assert check.failures[["sample_id", "stage"]].to_numpy().tolist() == [["c", "rle"]]
    assert check.failures["message"][0].startswith("The run lengths add up to 20 pixels, the image has 4 x 6 = 24")


def test_what_is_seldom_meant_is_noted_and_no_failure(tmp_path):
    for name in "abcd":
        Image.fromarray(np.full((4, 6), 9, dtype=np.uint8)).save(tmp_path / f"{name}.png")
    Image.fromarray(np.zeros((4, 6), dtype=np.uint8)).save(tmp_path / "black.png")
    (tmp_path / "samples.csv").write_text("image,label,patient_id\na.png,x,1\nb.png,x,2\nc.png,y,3\nd.png,y,4\n")
    (tmp_path / "regions.csv").write_text(
        "sample_id,region,kind,data\n"
        "a,lesion,mask,black.png\nb,lesion,mask,a.png\nc,lesion,box,-1 0 3 2\nd,lesion,box,\n"
        "a,lung,mask,black.png\na,lung,rle,g01\nb,lung,polygon,0 0 9 0 9 9 0 9\nc,lung,box,0 0 6 4\n"
    )
    check = check_dataset(load_table(tmp_path / "samples.csv", tmp_path / "regions.csv"))
    assert check.ok
    assert check.notes == (
        "Region 'lesion', 1 of 4 images: a mask has no pixel, so it counts as empty (a).",
        "Region 'lung', 1 of 3 images: a mask has no pixel, so it counts as empty (a).",
        "Region 'lesion', 1 of 4 images: it covers the whole image (b).",
        "Region 'lung', 2 of 3 images: it covers the whole image (b, c).",
        "Region 'lesion', 1 of 4 images: it sticks out of the image and is cut there (c).",
        "Region 'lung', 1 of 3 images: it sticks out of the image and is cut there (b).",
    )
    assert check.regions[["annotated", "empty"]].to_dict("index") == {
        "lesion": {"annotated": 4, "empty": 2},
        "lung": {"annotated": 3, "empty": 0},
    }


def test_a_region_of_which_a_part_cannot_be_read_is_not_counted_as_empty(tmp_path):
    Image.fromarray(np.full((4, 6), 9, dtype=np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "samples.csv").write_text("image,label,patient_id\na.png,x,1\n")
    (tmp_path / "regions.csv").write_text("sample_id,region,kind,data\na,lesion,box,\na,lesion,box,9 9 10 10\n")
    check = check_dataset(load_table(tmp_path / "samples.csv", tmp_path / "regions.csv"))
    assert check.regions[["annotated", "empty"]].to_numpy().tolist() == [[1, 0]]
    assert check.failures["stage"].tolist() == ["box"]
