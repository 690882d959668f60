"""MURA: its stand-in, tables written by hand, and folders that are not as they should be."""

import numpy as np
import pytest

import heatproof.datasets.adapters.mura  # noqa: F401 - registers the adapter
from heatproof.datasets.adapters.registry import ADAPTERS, load_public
from heatproof.datasets.check import check_dataset
from heatproof.datasets.standins import mura as standin
from heatproof.datasets.standins.registry import write_standin
from heatproof.errors import InputError

SIZE, SEED = 64, 4
HEIGHT, WIDTH = 80, 64
TRAIN = [
    "MURA-v1.1/train/XR_SHOULDER/patient00001/study1_positive/image1.png",
    "MURA-v1.1/train/XR_SHOULDER/patient00001/study1_positive/image2.png",
    "MURA-v1.1/train/XR_ELBOW/patient00001/study1_negative/image1.png",
]
VALID = ["MURA-v1.1/valid/XR_WRIST/patient11185/study2_positive/image1.png"]
TABLES = {
    "train_image_paths.csv": TRAIN,
    "valid_image_paths.csv": VALID,
    "train_labeled_studies.csv": [
        "MURA-v1.1/train/XR_SHOULDER/patient00001/study1_positive/,1",
        "MURA-v1.1/train/XR_ELBOW/patient00001/study1_negative/,0",
    ],
    "valid_labeled_studies.csv": ["MURA-v1.1/valid/XR_WRIST/patient11185/study2_positive/,1"],
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("mura") / "made"
    write_standin("mura", place, patients=14, size=SIZE, seed=SEED)
    return place


@pytest.fixture
def listing(tmp_path):
    touch(tmp_path, *TRAIN, *VALID)
    for name, lines in TABLES.items():
        table(tmp_path, name, lines)
    return tmp_path


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def table(root, name, lines):
    (root / "MURA-v1.1" / name).write_text("\n".join(lines) + "\n")


def test_the_stand_in_keeps_patients_apart(made):
    data = load_public("mura", made)
    assert data.classes == ("negative", "positive")
    # every second of fourteen patients has two images; every third is of the validation set
    assert data.samples["split"].value_counts().to_dict() == {"train": 15, "val": 6}
    assert data.samples.groupby("patient_id")["split"].nunique().eq(1).all()
    assert data.samples["patient_id"].nunique() == 14
    assert set(data.samples["body_part"]) == {"elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist"}
    expected = {f"patient{n + 1:05d}": "positive" if standin.abnormal(n) else "negative" for n in range(14)}
    assert dict(zip(data.samples["patient_id"], data.samples["label"], strict=True)) == expected


def test_roi_masks_are_carried_back_to_the_stored_image(made):
    data = load_public("mura", made, rois=str(made / "224_mask_annot_from_dr" / "mura"), valid="test")
    cases = [(5, 1), (5, 2), (8, 1)]  # of the validation set, with a gap: patient and image
    assert len(data.regions) == len(cases)
    assert check_dataset(data).ok
    # of 80 x 64 pixels, enlarged to 320 x 256, the model sees the middle 224 x 224
    seen = np.zeros((HEIGHT, WIDTH), dtype=bool)
    seen[12:68, 4:60] = True
    for patient, number in cases:
        lesion = standin.draw(patient, number, SIZE, SEED).lesion & seen
        rows, columns = np.flatnonzero(lesion.any(axis=1)), np.flatnonzero(lesion.any(axis=0))
        expected = np.zeros_like(lesion)
        expected[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        mine = data.samples["image"].str.endswith(f"patient{patient + 1:05d}/study1_positive/image{number}.png")
        sample = data.samples["sample_id"][mine].item()
        assert data.row(sample)["split"] == "test"
        np.testing.assert_array_equal(data.region(sample, "roi", (HEIGHT, WIDTH), label="positive"), expected)


@pytest.mark.parametrize("inside", [False, True])
def test_tables_written_by_hand(listing, inside):
    top = listing / "MURA-v1.1"
    data = load_public("mura", top if inside else listing)
    columns = ["sample_id", "image", "label", "patient_id", "split", "study", "body_part"]
    shoulder, elbow = "train/XR_SHOULDER/patient00001/study1_positive", "train/XR_ELBOW/patient00001/study1_negative"
    wrist = "valid/XR_WRIST/patient11185/study2_positive"
    assert data.samples[columns].to_numpy().tolist() == [
        [
            f"{shoulder}/image1",
            f"{top}/{shoulder}/image1.png",
            "positive",
            "patient00001",
            "train",
            shoulder,
            "shoulder",
        ],
        [
            f"{shoulder}/image2",
            f"{top}/{shoulder}/image2.png",
            "positive",
            "patient00001",
            "train",
            shoulder,
            "shoulder",
        ],
        [f"{elbow}/image1", f"{top}/{elbow}/image1.png", "negative", "patient00001", "train", elbow, "elbow"],
        [f"{wrist}/image1", f"{top}/{wrist}/image1.png", "positive", "patient11185", "val", wrist, "wrist"],
    ]
    assert any("labels are those of studies" in note for note in data.notes)


def test_some_body_parts(listing):
    data = load_public("mura", listing, body_parts=["wrist", "elbow"])
    assert data.samples["body_part"].tolist() == ["elbow", "wrist"]
    with pytest.raises(InputError, match="body_parts: unknown part 'knee'"):
        load_public("mura", listing, body_parts=["knee"])
    with pytest.raises(InputError, match="valid must be 'val' or 'test'"):
        load_public("mura", listing, valid="valid")


def test_roi_masks_of_one_name_in_two_body_parts_are_left_out(listing):
    again = "MURA-v1.1/valid/XR_HAND/patient11185/study2_positive/image1.png"
    touch(listing, again, "rois/patient11185_study2_positive_image1.png")
    data = load_public("mura", listing, rois=str(listing / "rois"))
    assert data.regions["sample_id"].tolist() == ["valid/XR_WRIST/patient11185/study2_positive/image1"]
    assert data.regions["data"].tolist() == [
        f"{listing}/rois/patient11185_study2_positive_image1.png#fit=crop&short_side=256"
    ]
    table(listing, "valid_image_paths.csv", [*VALID, again])
    table(
        listing,
        "valid_labeled_studies.csv",
        [*TABLES["valid_labeled_studies.csv"], "MURA-v1.1/valid/XR_HAND/patient11185/study2_positive/,1"],
    )
    data = load_public("mura", listing, rois=str(listing / "rois"))
    assert data.regions.empty
    assert any("fits several images, left out: patient11185_study2_positive_image1" in note for note in data.notes)


def test_images_that_are_missing(listing):
    (listing / TRAIN[1]).unlink()
    with pytest.raises(InputError, match=f"1 of 4 images are missing: {TRAIN[1]}"):
        load_public("mura", listing)
    assert len(load_public("mura", listing, skip_faulty=True)) == 3


def test_tables_that_are_missing_or_of_another_form(listing):
    table(listing, "train_labeled_studies.csv", ["a,b,c"])
    with pytest.raises(InputError, match="2 cells a row are expected .study, label, no header., got 3"):
        load_public("mura", listing)
    (listing / "MURA-v1.1/train_labeled_studies.csv").unlink()
    with pytest.raises(InputError, match="Missing tables: MURA-v1.1/train_labeled_studies.csv"):
        load_public("mura", listing)
    with pytest.raises(InputError, match="Missing tables: train_image_paths.csv, train_labeled_studies.csv"):
        load_public("mura", listing / "MURA-v1.1" / "train")


def test_paths_with_another_prefix(listing):
    table(listing, "train_image_paths.csv", [path.replace("v1.1", "v1.0") for path in TRAIN])
    with pytest.raises(InputError, match="'MURA-v1.0/train/.*expected are paths that begin with MURA-v1.1/"):
        load_public("mura", listing)
    table(listing, "train_image_paths.csv", ["path", *TRAIN])
    with pytest.raises(InputError, match="Image paths of another form in 1 .*'path'"):
        load_public("mura", listing)


def test_labels_that_are_missing_or_contradict(listing):
    table(listing, "valid_labeled_studies.csv", [TABLES["train_labeled_studies.csv"][0]])
    with pytest.raises(
        InputError, match="1 studies that the tables of labels do not name.*valid/XR_WRIST/patient11185"
    ):
        load_public("mura", listing)
    table(listing, "valid_labeled_studies.csv", [TABLES["valid_labeled_studies.csv"][0].replace(",1", ",0")])
    with pytest.raises(
        InputError, match="1 studies whose label in the table is not that of their folder: valid/XR_WRIST"
    ):
        load_public("mura", listing)
    assert len(load_public("mura", listing, skip_faulty=True)) == 3


def test_a_body_part_that_the_data_set_does_not_have(listing):
    touch(listing, "MURA-v1.1/train/XR_KNEE/patient1/study1_positive/image1.png")
    with pytest.raises(InputError, match="MURA-v1.1/train holds 'XR_KNEE', which the data set does not have"):
        load_public("mura", listing)


def test_what_is_said_of_it():
    assert set(ADAPTERS["mura"].meanings) == {"body_parts", "valid", "rois"}
