"""CP-CHILD: its stand-in, a listing written by hand, and folders that are not as they should be."""

import numpy as np
import pytest

import heatproof.datasets.adapters.cp_child  # noqa: F401 - registers the adapter
from heatproof.datasets.adapters.registry import ADAPTERS, load_public
from heatproof.datasets.check import check_dataset
from heatproof.datasets.standins import cp_child as standin
from heatproof.datasets.standins.registry import write_standin
from heatproof.errors import InputError

SIZE, SEED = 64, 2
FILES = [
    "CP-CHILD-A/Train/Non-Polyp/1 (1).jpg",
    "CP-CHILD-A/Train/Polyp/1 (1).jpg",
    "CP-CHILD-A/Test/Non-Polyp/1 (2).jpg",
    "CP-CHILD-A/Test/Polyp/1 (2).jpg",
    "CP-CHILD-B/Train/Non-Polyp/1 (1).jpg",
    "CP-CHILD-B/Train/Polyp/1 (1).jpg",
    "CP-CHILD-B/Test/Non-Polyp/1 (2).jpg",
    "CP-CHILD-B/Test/Polyp/1 (2).jpg",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("cp_child") / "made"
    write_standin("cp_child", place, patients=24, size=SIZE, seed=SEED)
    return place


@pytest.fixture
def listing(tmp_path):
    touch(tmp_path / "set", *FILES)
    return tmp_path / "set"


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_the_stand_in(made):
    data = load_public("cp_child", made)
    assert data.classes == ("non-polyp", "polyp")
    assert data.samples.groupby(["part", "split", "label"]).size().to_dict() == {
        (part, split, label): count
        for part, count in (("A", 4), ("B", 2))
        for split in ("train", "test")
        for label in ("non-polyp", "polyp")
    }
    assert data.regions.empty
    assert len(load_public("cp_child", made, part="B")) == 8


def test_roi_masks_are_carried_back_to_the_stored_image(made):
    data = load_public("cp_child", made, rois=str(made / "224_mask_annot_from_dr" / "cpchild"))
    polyps = [patient for patient in range(0, 24, 2) if patient // 2 in (3, 4, 9, 10)]
    assert len(data.regions) == len(polyps)
    assert check_dataset(data).ok
    for patient in polyps:
        lesion = standin.draw(patient, SIZE, SEED).lesion
        rows, columns = np.flatnonzero(lesion.any(axis=1)), np.flatnonzero(lesion.any(axis=0))
        expected = np.zeros_like(lesion)
        expected[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        sample = f"A/test/polyp/1 ({patient // 2 + 1})"
        np.testing.assert_array_equal(data.region(sample, "roi", (SIZE, SIZE), label="polyp"), expected)


def test_a_listing_written_by_hand(listing):
    data = load_public("cp_child", listing)
    columns = ["sample_id", "image", "label", "split", "part"]
    assert data.samples[columns].to_numpy().tolist() == [
        ["A/train/non-polyp/1 (1)", f"{listing}/CP-CHILD-A/Train/Non-Polyp/1 (1).jpg", "non-polyp", "train", "A"],
        ["A/train/polyp/1 (1)", f"{listing}/CP-CHILD-A/Train/Polyp/1 (1).jpg", "polyp", "train", "A"],
        ["A/test/non-polyp/1 (2)", f"{listing}/CP-CHILD-A/Test/Non-Polyp/1 (2).jpg", "non-polyp", "test", "A"],
        ["A/test/polyp/1 (2)", f"{listing}/CP-CHILD-A/Test/Polyp/1 (2).jpg", "polyp", "test", "A"],
        ["B/train/non-polyp/1 (1)", f"{listing}/CP-CHILD-B/Train/Non-Polyp/1 (1).jpg", "non-polyp", "train", "B"],
        ["B/train/polyp/1 (1)", f"{listing}/CP-CHILD-B/Train/Polyp/1 (1).jpg", "polyp", "train", "B"],
        ["B/test/non-polyp/1 (2)", f"{listing}/CP-CHILD-B/Test/Non-Polyp/1 (2).jpg", "non-polyp", "test", "B"],
        ["B/test/polyp/1 (2)", f"{listing}/CP-CHILD-B/Test/Polyp/1 (2).jpg", "polyp", "test", "B"],
    ]
    assert data.samples["patient_id"].tolist() == data.samples["sample_id"].tolist()
    assert any("names no patients and has no validation set" in note for note in data.notes)
    assert any("A 4 of 8,000, B 4 of 1,500" in note for note in data.notes)


def test_folders_written_otherwise_are_the_same(tmp_path):
    touch(tmp_path, *(name.replace("Non-Polyp", "non_polyp").replace("Train", "TRAIN") for name in FILES))
    assert len(load_public("cp_child", tmp_path)) == 8


def test_roi_masks_are_of_part_a(listing):
    touch(listing.parent / "rois", "1 (2).png", "1 (1).png")
    rois = str(listing.parent / "rois")
    with pytest.raises(InputError, match=r"1 of the ROI masks are named after no image that is here: 1 \(1\)"):
        load_public("cp_child", listing, rois=rois)
    data = load_public("cp_child", listing, rois=rois, skip_faulty=True)
    assert data.regions[["sample_id", "region", "label", "data"]].to_numpy().tolist() == [
        ["A/test/polyp/1 (2)", "roi", "polyp", f"{rois}/1 (2).png#fit=resize"]
    ]
    assert any("read as of the test set of part A" in note for note in data.notes)
    with pytest.raises(InputError, match="read as of part A"):
        load_public("cp_child", listing, part="B", rois=rois)


def test_folders_that_are_missing_or_too_many(listing):
    (listing / "CP-CHILD-B").rename(listing.parent / "elsewhere")
    with pytest.raises(InputError, match="CP-CHILD-B has no folder 'Train' and no 'Test'"):
        load_public("cp_child", listing)
    assert len(load_public("cp_child", listing, part="A")) == 4
    (listing / "CP-CHILD-A/Test/Polyp/1 (2).jpg").unlink()
    with pytest.raises(InputError, match="CP-CHILD-A/Test/Polyp holds no pictures"):
        load_public("cp_child", listing, part="A")
    touch(listing, "CP-CHILD-A/Train/Adenoma/a.jpg")
    with pytest.raises(InputError, match="CP-CHILD-A/Train holds 'Adenoma' beside Non-Polyp and Polyp"):
        load_public("cp_child", listing, part="A")


def test_what_is_said_of_it(listing):
    assert set(ADAPTERS["cp_child"].meanings) == {"part", "rois"}
    with pytest.raises(InputError, match="part must be 'A' or 'B' or 'both', got 'C'"):
        load_public("cp_child", listing, part="C")
