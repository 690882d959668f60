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
    assert check.regions.to_dict("index") == {
        "lesion": {"annotated": 4, "empty": 1},
        "lung": {"annotated": 3, "empty": 0},
    }


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
    assert check.regions.to_dict("index") == {
        "lesion": {"annotated": 64, "empty": 0},
        "lung": {"annotated": 64, "empty": 0},
    }
