"""Class folders on disk."""

import numpy as np
import pytest
from PIL import Image

from heatproof.datasets.folder import load_folder
from heatproof.errors import InputError


def make(root, *files):
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(path, format="PNG")
    return root


def test_class_folders(tmp_path):
    data = load_folder(make(tmp_path / "set", "normal/a.png", "ill/b.png", "ill/deep/c", "ill/.hidden"))
    found = data.samples.set_index("sample_id")["label"].to_dict()
    assert found == {"normal/a": "normal", "ill/b": "ill", "ill/deep/c": "ill"}
    assert data.samples["split"].isna().all()
    assert (data.name, data.classes, data.root) == ("set", ("ill", "normal"), tmp_path / "set")
    assert data.samples["patient_id"].tolist() == data.samples["sample_id"].tolist()
    assert data.notes == ("No patient_id: every image counts as a patient of its own.",)
    assert data.row("ill/b")["image"] == str(tmp_path / "set" / "ill" / "b.png")
    assert data.regions.empty
    assert not data.has_region("ill/b", "lesion")


def test_class_folders_under_splits(tmp_path):
    data = load_folder(make(tmp_path, "train/x/1.png", "train/y/2.png", "val/x/1.png", "test/z/4.png"))
    found = data.samples.set_index("sample_id")[["label", "split"]].apply(tuple, axis=1).to_dict()
    assert found == {
        "train/x/1": ("x", "train"),
        "train/y/2": ("y", "train"),
        "val/x/1": ("x", "val"),
        "test/z/4": ("z", "test"),
    }
    assert data.classes == ("x", "y", "z")


def test_an_empty_class_folder_is_still_a_class(tmp_path):
    (make(tmp_path, "x/1.png") / "y").mkdir()
    assert load_folder(tmp_path).classes == ("x", "y")


def test_faults(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no class folders"):
        load_folder(make(tmp_path / "flat", "a.png"))
    with pytest.raises(InputError, match=r"\['ill'\] stand beside \['train'\]"):
        load_folder(make(tmp_path / "mixed", "train/x/a.png", "ill/b.png"))
    with pytest.raises(InputError, match="differ in their suffix only: x/a"):
        load_folder(make(tmp_path / "twins", "x/a.png", "x/a.jpg"))
    (tmp_path / "void" / "x").mkdir(parents=True)
    with pytest.raises(InputError, match="hold no files"):
        load_folder(tmp_path / "void")
