"""The NIH's ChestX-ray14: the stand-in, listings as they are documented, and folders that are something else."""

import numpy as np
import pytest

from heatproof.datasets.adapters.nih_chestxray14 import FINDINGS
from heatproof.datasets.adapters.registry import ADAPTERS, load_public
from heatproof.datasets.check import check_dataset
from heatproof.datasets.standins.chest_pictures import draw_chest, findings_of
from heatproof.datasets.standins.nih_chestxray14 import write_nih_chestxray14
from heatproof.errors import InputError

SEED, SIZE = 5, (64, 64)
DRAWN_AS = {
    "Infiltration": "opacity",
    "Effusion": "effusion",
    "Cardiomegaly": "cardiomegaly",
    "Pneumothorax": "pneumothorax",
}

# headers and rows as they are published, the odd commas included
ENTRIES = """\
Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,\
OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],
00000001_000.png,Cardiomegaly,0,1,57,M,PA,2682,2749,0.14300000000000002,0.14300000000000002,
00000001_001.png,Cardiomegaly|Emphysema,1,1,58,M,PA,2894,2729,0.14300000000000002,0.14300000000000002,
00000002_000.png,No Finding,0,2,80,M,PA,2500,2048,0.171,0.171,
00013118_008.png,Atelectasis|Infiltration,8,13118,69,M,PA,2500,2048,0.168,0.168,
"""
BOXES = """\
Image Index,Finding Label,Bbox [x,y,w,h],,,
00013118_008.png,Atelectasis,225.084745762712,547.019216763771,86.7796610169491,79.1864406779661,,,
00013118_008.png,Infiltrate,100.5,200,50,60.25,,,
"""
NAMES = ("00000001_000.png", "00000001_001.png", "00000002_000.png", "00013118_008.png")


@pytest.fixture
def folder(tmp_path):
    """The data set by hand; its images are empty files, as indexing opens none."""
    (tmp_path / "Data_Entry_2017.csv").write_text(ENTRIES)
    (tmp_path / "BBox_List_2017.csv").write_text(BOXES)
    (tmp_path / "train_val_list.txt").write_text("00000001_000.png\n00000001_001.png\n00000002_000.png\n")
    (tmp_path / "test_list.txt").write_text("00013118_008.png")  # the published lists end without a line break
    for number, name in enumerate(NAMES):
        place = tmp_path / f"images_{1 + number // 2:03d}/images"
        place.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    return tmp_path


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    root = tmp_path_factory.mktemp("nih")
    write_nih_chestxray14(root, patients=24, size=SIZE[0], seed=SEED)
    return load_public("nih_chestxray14", root)


def test_the_stand_in(standin):
    assert standin.classes == FINDINGS
    assert standin.task == "multilabel"
    # patients have one, two or three images in turn; the last 6 of 24 are the test
    assert standin.samples["split"].value_counts().to_dict() == {"train": 36, "test": 12}
    assert standin.samples.groupby("patient_id")["split"].nunique().max() == 1
    assert standin.samples["patient_id"].nunique() == 24
    assert check_dataset(standin).failures.empty


def test_regions_of_the_stand_in_are_boxes_about_the_pixels_that_were_drawn(standin):
    seen = set()
    for patient in range(18, 24):
        lesions = draw_chest(patient, 0, findings_of(patient), SIZE[0], SEED).lesions
        for label, finding in DRAWN_AS.items():
            region = standin.region(f"{patient + 1:08d}_000", "lesion", SIZE, label=label)
            if finding not in lesions:
                assert region is None
                continue
            rows, columns = np.nonzero(lesions[finding])
            expected = np.zeros(SIZE, dtype=bool)
            expected[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
            np.testing.assert_array_equal(region, expected)
            seen.add(label)
    assert {"Infiltration", "Cardiomegaly"} <= seen
    assert set(standin.regions["sample_id"]) <= set(standin.subset("test").samples["sample_id"])


def test_the_tables_by_hand(folder):
    data = load_public("nih_chestxray14", folder)
    columns = ["sample_id", "image", "patient_id", "split", "labels"]
    assert list(data.samples[columns].itertuples(index=False, name=None)) == [
        ("00000001_000", str(folder / "images_001/images/00000001_000.png"), "1", "train", "Cardiomegaly"),
        ("00000001_001", str(folder / "images_001/images/00000001_001.png"), "1", "train", "Cardiomegaly|Emphysema"),
        ("00000002_000", str(folder / "images_002/images/00000002_000.png"), "2", "train", ""),
        (
            "00013118_008",
            str(folder / "images_002/images/00013118_008.png"),
            "13118",
            "test",
            "Atelectasis|Infiltration",
        ),
    ]
    assert data.samples["Patient Age"].tolist() == [57, 58, 80, 69]
    assert not [column for column in data.samples if column.startswith("Unnamed")]
    assert data.regions.astype(object).values.tolist() == [
        ["00013118_008", "lesion", "Atelectasis", None, "box", "225.0847458 547.0192168 311.8644068 626.2056574"],
        ["00013118_008", "lesion", "Infiltration", None, "box", "100.5 200 150.5 260.25"],
    ]
    assert "No validation split: the official list joins train and val. Split it by patient." in data.notes


def test_images_in_one_folder_and_the_later_table(folder):
    for name in ("images_001", "images_002"):
        (folder / "images").mkdir(exist_ok=True)
        for path in sorted((folder / name / "images").iterdir()):
            path.rename(folder / "images" / path.name)
        (folder / name / "images").rmdir()
    (folder / "Data_Entry_2017.csv").rename(folder / "Data_Entry_2017_v2020.csv")
    data = load_public("nih_chestxray14", folder)
    assert data.samples["image"].tolist() == [str(folder / "images" / name) for name in NAMES]


def test_half_a_download(folder):
    (folder / "images_002/images/00000002_000.png").unlink()
    with pytest.raises(InputError, match="1 of 4 images are missing: .*00000002_000.png"):
        load_public("nih_chestxray14", folder)
    assert len(load_public("nih_chestxray14", folder, skip_faulty=True)) == 3
    for name, expected in (
        ("BBox_List_2017.csv", "BBox_List_2017.csv is expected in"),
        ("test_list.txt", "test_list.txt is expected in .*: it is the official split"),
        ("Data_Entry_2017.csv", "expected Data_Entry_2017.csv or Data_Entry_2017_v2020.csv, which is not there"),
    ):
        (folder / name).unlink()
        with pytest.raises(InputError, match=expected):
            load_public("nih_chestxray14", folder)


def test_no_folder_of_images(folder):
    for name in ("images_001", "images_002"):
        (folder / name).rename(folder / f"resized_{name}")
    with pytest.raises(InputError, match="expected images/ or images_001/images/ and so on, of which none is there"):
        load_public("nih_chestxray14", folder)


def test_renamed_columns(folder):
    (folder / "Data_Entry_2017.csv").write_text(ENTRIES.replace("Finding Labels", "labels"))
    with pytest.raises(InputError, match=r"the columns \['Finding Labels'\] are missing"):
        load_public("nih_chestxray14", folder)
    (folder / "Data_Entry_2017.csv").write_text(ENTRIES)
    (folder / "BBox_List_2017.csv").write_text(BOXES.replace("Bbox [x,y,w,h],,,", "x,y,w,h,,,"))
    with pytest.raises(InputError, match=r"BBox_List_2017.csv: the columns \['Bbox \[x', 'h\]'\] are missing"):
        load_public("nih_chestxray14", folder)


def test_lists_of_another_version(folder):
    (folder / "test_list.txt").write_text("00013118_009.png\n")
    expected = "1 images of the lists of splits are not in .*: 00013118_009.png.* 1 images of .* are in neither"
    with pytest.raises(InputError, match=expected):
        load_public("nih_chestxray14", folder)
    assert set(load_public("nih_chestxray14", folder, skip_faulty=True).samples["split"]) == {"train"}


def test_a_box_of_an_image_that_is_not_there(folder):
    (folder / "BBox_List_2017.csv").write_text(BOXES.replace("00013118_008", "00013118_999"))
    with pytest.raises(
        InputError, match="BBox_List_2017.csv annotates 1 images that Data_Entry_2017.csv does not name"
    ):
        load_public("nih_chestxray14", folder)
    assert load_public("nih_chestxray14", folder, skip_faulty=True).regions.empty


def test_a_box_without_numbers(folder):
    (folder / "BBox_List_2017.csv").write_text(BOXES.replace("100.5", "left"))
    with pytest.raises(InputError, match=r"'left' stands in the column 'Bbox \[x', row 2"):
        load_public("nih_chestxray14", folder)


def test_a_finding_that_the_data_set_does_not_have(folder):
    (folder / "Data_Entry_2017.csv").write_text(ENTRIES.replace("Emphysema", "Covid"))
    with pytest.raises(InputError, match=r"00000001_001 \(Covid\)"):
        load_public("nih_chestxray14", folder)


def test_every_option_has_a_meaning():
    entry = ADAPTERS["nih_chestxray14"]
    assert set(entry.meanings) == set(entry.options)
