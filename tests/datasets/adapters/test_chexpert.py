"""CheXpert and CheXlocalize: the stand-in, listings as they are documented, and folders that are something else."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from heatproof.datasets.adapters.chexpert import OBSERVATIONS, chexpert
from heatproof.datasets.adapters.registry import ADAPTERS, load_public
from heatproof.datasets.check import check_dataset
from heatproof.datasets.standins.chest_pictures import draw_chest, findings_of
from heatproof.datasets.standins.chexpert import write_chexpert
from heatproof.errors import InputError

SEED, SIZE = 3, (64, 64)
DRAWN_AS = {
    "Lung Opacity": "opacity",
    "Lung Lesion": "nodule",
    "Pleural Effusion": "effusion",
    "Cardiomegaly": "cardiomegaly",
    "Pneumothorax": "pneumothorax",
}

# the header of https://github.com/rajpurkarlab/cheXlocalize/blob/master/sample/valid.csv
HEADER = (
    "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,Support Devices"
)
TRAIN = (
    "CheXpert-v1.0-small/train/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,1.0,,,,,,,,,0.0,,,,1.0",
    "CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg,Female,87,Frontal,AP,"
    ",,-1.0,1.0,,-1.0,-1.0,,-1.0,,-1.0,,1.0,",
    "CheXpert-v1.0-small/train/patient00002/study1/view2_lateral.jpg,Female,83,Lateral,,,,,1.0,,,-1.0,,,,,,1.0,",
)
VALID = (
    "CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP,"
    "0.0,1.0,1.0,1.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0.0",
)
TEST = ("test/patient64741/study1/view1_frontal.jpg,0,1,1,1,0,0,0,0,0,0,0,0,0,1",)
TEST_HEADER = "Path," + HEADER.split(",", 5)[5]
TASKS = (
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Lesion", "Airspace Opacity", "Edema", "Consolidation"),
    *("Atelectasis", "Pneumothorax", "Pleural Effusion", "Support Devices"),
)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def touch(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


@pytest.fixture
def folder(tmp_path):
    """The small version by hand; its images are empty files, as indexing opens none."""
    place = tmp_path / "CheXpert-v1.0-small"
    write(place / "train.csv", HEADER, *TRAIN)
    write(place / "valid.csv", HEADER, *VALID)
    touch(tmp_path, *(row.partition(",")[0] for row in (*TRAIN, *VALID)))
    return tmp_path


@pytest.fixture
def release(tmp_path):
    """CheXlocalize by hand, with images of 2 x 3 pixels."""
    root = tmp_path / "release"
    write(root / "CheXpert/test_labels.csv", TEST_HEADER, *TEST)
    touch(root / "CheXpert", "val/patient64541/study1/view1_frontal.jpg", "test/patient64741/study1/view1_frontal.jpg")
    for short, name in (("val", "patient64541_study1_view1_frontal"), ("test", "patient64741_study1_view1_frontal")):
        counts = {task: "123" if task in ("Cardiomegaly", "Airspace Opacity") else "6" for task in TASKS}
        segments = {task: {"size": [2, 3], "counts": text} for task, text in counts.items()}
        contour = [[0, 0], [1, 0], [1, 2], [0, 2]]
        drawn = {"img_size": [2, 3], "Airspace Opacity": [contour]}
        write(root / f"CheXlocalize/gt_segmentations_{short}.json", json.dumps({name: segments}))
        write(root / f"CheXlocalize/gt_annotations_{short}.json", json.dumps({name: drawn}))
    return root


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    root = tmp_path_factory.mktemp("chexpert")
    write_chexpert(root, patients=20, size=SIZE[0], seed=SEED)
    return root


def test_the_stand_in(standin):
    data = load_public("chexpert", standin, chexlocalize=standin / "chexlocalize")
    assert data.classes == OBSERVATIONS
    assert data.task == "multilabel"
    # 12, 4 and 4 patients; every third has a lateral view, in train every other one a second study
    assert data.samples["split"].value_counts().to_dict() == {"train": 22, "val": 6, "test": 5}
    assert data.samples.groupby("patient_id")["split"].nunique().max() == 1
    assert data.samples.groupby("split")["patient_id"].nunique().to_dict() == {"train": 12, "val": 4, "test": 4}
    assert check_dataset(data).failures.empty
    frontal = load_public("chexpert", standin, view="frontal")
    assert frontal.samples["split"].value_counts().to_dict() == {"train": 18, "val": 4}
    assert frontal.regions.empty
    assert "No test split and no regions: both come with CheXlocalize." in frontal.notes


@pytest.mark.parametrize("segmentations", ["rle", "polygon"])
def test_regions_of_the_stand_in_are_the_pixels_that_were_drawn(standin, segmentations):
    data = load_public("chexpert", standin, chexlocalize=standin / "chexlocalize", segmentations=segmentations)
    assert check_dataset(data).failures.empty
    seen = set()
    for index in range(12, 20):
        number = 64541 + index - 12 if index < 16 else 64741 + index - 16
        sample = f"patient{number}/study1/view1_frontal"
        lesions = draw_chest(index, 0, findings_of(index), SIZE[0], SEED).lesions
        for label, finding in DRAWN_AS.items():
            region = data.region(sample, "lesion", SIZE, label=label)
            if not lesions:
                assert region is None
                continue
            expected = ndimage.binary_fill_holes(lesions.get(finding, np.zeros(SIZE, dtype=bool)))
            np.testing.assert_array_equal(region, expected)
            seen |= {label} if expected.any() else set()
    assert {"Lung Opacity", "Lung Lesion", "Cardiomegaly"} <= seen


def test_the_small_version_by_hand(folder):
    data = load_public("chexpert", folder)
    columns = ["sample_id", "image", "patient_id", "split", "view", "labels"]
    place = folder / "CheXpert-v1.0-small"
    expected = [
        ("patient00001/study1/view1_frontal", "train/patient00001/study1/view1_frontal.jpg", "patient00001", "train"),
        ("patient00002/study2/view1_frontal", "train/patient00002/study2/view1_frontal.jpg", "patient00002", "train"),
        ("patient00002/study1/view2_lateral", "train/patient00002/study1/view2_lateral.jpg", "patient00002", "train"),
        ("patient64541/study1/view1_frontal", "valid/patient64541/study1/view1_frontal.jpg", "patient64541", "val"),
    ]
    said = [
        ("frontal", "No Finding|Support Devices"),
        ("frontal", "Lung Opacity|Fracture"),
        ("lateral", "Lung Opacity|Fracture"),
        ("frontal", "Enlarged Cardiomediastinum|Cardiomegaly|Lung Opacity"),
    ]
    rows = [
        (name, str(place / image), patient, split, *labels)
        for (name, image, patient, split), labels in zip(expected, said, strict=True)
    ]
    assert list(data.samples[columns].itertuples(index=False, name=None)) == rows
    assert data.samples["Age"].tolist() == [68, 87, 83, 73]
    assert np.isnan(data.samples["label_Cardiomegaly"][1])
    assert data.samples["label_Edema"].tolist()[::2] == [0, 0]
    inside = load_public("chexpert", place)
    assert inside.samples["image"].tolist() == data.samples["image"].tolist()


def test_uncertain_and_blank_cells_and_the_choice_of_classes(folder):
    data = load_public(
        "chexpert", folder, classes=["Edema", "Cardiomegaly"], uncertain={"Edema": "one"}, blank="ignore"
    )
    assert data.classes == ("Edema", "Cardiomegaly")
    np.testing.assert_array_equal(data.targets(), [[np.nan, np.nan], [1, np.nan], [np.nan, np.nan], [0, 1]])
    assert any(
        "Uncertain cells" in note and "Edema 1 counted as 1, Cardiomegaly 1 unknown" in note for note in data.notes
    )


def test_views(folder):
    lateral = load_public("chexpert", folder, view="lateral", uncertain="zero")
    assert lateral.samples["sample_id"].tolist() == ["patient00002/study1/view2_lateral"]
    assert lateral.samples["label_Consolidation"].tolist() == [0]
    with pytest.raises(InputError, match="view must be 'all' or 'frontal' or 'lateral', got 'side'"):
        load_public("chexpert", folder, view="side")


def test_chexlocalize_by_hand(folder, release):
    data = load_public("chexpert", folder, chexlocalize=release)
    assert data.samples["split"].tolist() == ["train", "train", "train", "val", "test"]
    # the segmentations fit images of full size only
    images = dict(zip(data.samples["sample_id"], data.samples["image"], strict=True))
    assert images["patient64541/study1/view1_frontal"] == str(
        release / "CheXpert/val/patient64541/study1/view1_frontal.jpg"
    )
    test = "patient64741/study1/view1_frontal"
    assert images[test] == str(release / f"CheXpert/test/{test}.jpg")
    assert data.row(test)["labels"] == "Enlarged Cardiomediastinum|Cardiomegaly|Lung Opacity|Support Devices"
    assert len(data.regions) == 20
    for label, expected in (
        ("Cardiomegaly", [[0, 1, 0], [1, 0, 0]]),
        ("Lung Opacity", [[0, 1, 0], [1, 0, 0]]),
        ("Edema", [[0, 0, 0], [0, 0, 0]]),
    ):
        np.testing.assert_array_equal(data.region(test, "lesion", (2, 3), label=label), expected)
    assert data.region(test, "lesion", (2, 3), label="Fracture") is None
    drawn = load_public("chexpert", folder, chexlocalize=release / "CheXlocalize", segmentations="polygon")
    np.testing.assert_array_equal(drawn.region(test, "lesion", (2, 3), label="Lung Opacity"), [[1, 0, 0], [1, 0, 0]])
    assert not drawn.region(test, "lesion", (2, 3), label="Edema").any()
    polygon = drawn.regions.set_index(["sample_id", "label"]).loc[(test, "Lung Opacity"), "data"]
    assert polygon == "[[0, 0, 1, 0, 1, 2, 0, 2]]"


def test_run_lengths_as_they_are_published(folder, release):
    file = release / "CheXlocalize/gt_segmentations_val.json"
    # of https://github.com/rajpurkarlab/cheXlocalize/blob/master/sample/gt_segmentations_val.json: nothing there
    empty = {"size": [2320, 2828], "counts": "PVWX6"}
    write(file, json.dumps({"patient64541_study1_view1_frontal": dict.fromkeys(TASKS, empty)}))
    data = load_public("chexpert", folder, chexlocalize=release)
    region = data.region("patient64541/study1/view1_frontal", "lesion", (2320, 2828), label="Edema")
    assert region is not None
    assert not region.any()


def test_the_full_version_keeps_its_own_validation_images(folder, release):
    (folder / "CheXpert-v1.0-small").rename(folder / "any name")
    place = folder / "any name"
    for table in ("train.csv", "valid.csv"):
        write(place / table, (place / table).read_text().replace("v1.0-small", "v1.0").rstrip("\n"))
    data = load_public("chexpert", place, chexlocalize=release)
    image = data.row("patient64541/study1/view1_frontal")["image"]
    assert image == str(place / "valid/patient64541/study1/view1_frontal.jpg")


def test_paths_with_another_prefix(folder):
    table = folder / "CheXpert-v1.0-small/train.csv"
    write(table, HEADER, TRAIN[0].replace("CheXpert-v1.0-small/", "data/chexpert/"), *TRAIN[1:])
    with pytest.raises(
        InputError, match="train.csv: 1 of 3 paths do not read like .*: data/chexpert/train/patient00001"
    ):
        load_public("chexpert", folder)


def test_tables_of_two_versions(folder):
    write(folder / "CheXpert-v1.0-small/valid.csv", HEADER, VALID[0].replace("-small", ""))
    with pytest.raises(InputError, match="name images of CheXpert-v1.0 and of CheXpert-v1.0-small"):
        load_public("chexpert", folder)


def test_half_a_download(folder):
    missing = folder / "CheXpert-v1.0-small/train/patient00002/study2/view1_frontal.jpg"
    missing.unlink()
    with pytest.raises(InputError, match="1 of 4 images are missing: CheXpert-v1.0-small/train/patient00002/study2"):
        load_public("chexpert", folder)
    data = load_public("chexpert", folder, skip_faulty=True)
    assert "patient00002/study2/view1_frontal" not in set(data.samples["sample_id"])
    assert any(note.startswith("Left out: 1 of 4 images are missing") for note in data.notes)
    (folder / "CheXpert-v1.0-small/valid.csv").unlink()
    with pytest.raises(InputError, match="valid.csv is expected in .*CheXpert-v1.0-small and not there"):
        load_public("chexpert", folder)
    (folder / "CheXpert-v1.0-small/train.csv").unlink()
    with pytest.raises(
        InputError, match="expected train.csv or CheXpert-v1.0/train.csv or CheXpert-v1.0-small/train.csv"
    ):
        load_public("chexpert", folder)


def test_other_folders(folder, tmp_path):
    write(folder / "CheXpert-v1.0/train.csv", HEADER, *TRAIN)
    with pytest.raises(InputError, match="more than once"):
        load_public("chexpert", folder)
    parts = tmp_path / "chexpertchestxrays-u20210408"
    write(parts / "CheXpert-v1.0 batch 1 (validate & csv)/train.csv", HEADER, *TRAIN)
    with pytest.raises(InputError, match=r"in its parts \(CheXpert-v1.0 batch 1 \(validate & csv\)\)"):
        load_public("chexpert", parts)


def test_a_renamed_column(folder):
    write(folder / "CheXpert-v1.0-small/train.csv", HEADER.replace("Edema", "Oedema"), *TRAIN)
    with pytest.raises(InputError, match=r"train.csv: the columns \['Edema'\] are missing, it has .*'Oedema'"):
        load_public("chexpert", folder)


def test_another_folder_than_that_of_chexlocalize(folder, release):
    with pytest.raises(InputError, match="chexlocalize: .* does not hold CheXlocalize/gt_segmentations_val.json"):
        load_public("chexpert", folder, chexlocalize=folder / "CheXpert-v1.0-small")
    (release / "CheXlocalize/gt_segmentations_test.json").unlink()
    with pytest.raises(InputError, match="gt_segmentations_test.json is expected in"):
        load_public("chexpert", folder, chexlocalize=release)


def test_segmentations_of_images_that_no_table_names(folder, release):
    file = release / "CheXlocalize/gt_segmentations_val.json"
    file.write_text(file.read_text().replace("patient64541", "patient64999"))
    expected = "gt_segmentations_val.json annotates 1 images that the table of val does not name: patient64999/study1"
    with pytest.raises(InputError, match=expected):
        load_public("chexpert", folder, chexlocalize=release)
    data = load_public("chexpert", folder, chexlocalize=release, skip_faulty=True)
    assert set(data.regions["sample_id"]) == {"patient64741/study1/view1_frontal"}
    assert len(data) == 5


@pytest.mark.parametrize("text", ["[]", "{", '{"patient64541_study1_view1_frontal": {"Edema": "123"}}'])
def test_damaged_segmentations(folder, release, text):
    write(release / "CheXlocalize/gt_segmentations_val.json", text)
    with pytest.raises(InputError, match="gt_segmentations_val.json: expected is an object by image"):
        load_public("chexpert", folder, chexlocalize=release)


def test_run_lengths_that_do_not_fit_their_image(standin):
    """What only the image can tell becomes a row of the check, not a failure of the index."""
    data = load_public("chexpert", standin, chexlocalize=standin / "chexlocalize")
    damaged = data.regions.assign(data=data.regions["data"].str.replace("[64, 64]", "[64, 63]", regex=False))
    failures = check_dataset(replace(data, regions=damaged)).failures
    assert set(failures["stage"]) == {"rle"}
    assert len(failures) == len(damaged)


def test_every_option_has_a_meaning():
    entry = ADAPTERS["chexpert"]
    assert entry.function is chexpert
    assert set(entry.meanings) == set(entry.options)
