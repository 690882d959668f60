"""VinDr-CXR: the stand-in, listings as they are documented, and folders that are something else."""

import numpy as np
import pytest

from heatproof.datasets.adapters.registry import ADAPTERS, load_public
from heatproof.datasets.adapters.vindr_cxr import LABELS, vindr_cxr
from heatproof.datasets.check import check_dataset
from heatproof.datasets.standins.chest_pictures import draw_chest, findings_of
from heatproof.datasets.standins.vindr_cxr import name_of, read_box, write_vindr_cxr
from heatproof.errors import InputError

SEED, SIZE = 4, (64, 64)
DRAWN_AS = {"Lung Opacity": "opacity", "Nodule/Mass": "nodule", "Cardiomegaly": "cardiomegaly"}

NAMES = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,Enlarged PA,"
    "ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,Pleural thickening,"
    "Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,Tuberculosis,Other diseases,"
    "No finding"
)


def cells(*present):
    return ",".join(str(int(name in present)) for name in NAMES.split(","))


LABELS_TRAIN = [
    f"image_id,rad_id,{NAMES}",
    f"aa,R10,{cells('Cardiomegaly', 'Pneumonia')}",
    f"aa,R8,{cells('Cardiomegaly')}",
    f"aa,R9,{cells('No finding')}",
    f"bb,R1,{cells('No finding')}",
    f"bb,R2,{cells('No finding')}",
    f"bb,R3,{cells('No finding')}",
]
LABELS_TEST = [f"image_id,{NAMES.replace('Other diseases', 'Other disease')}", f"cc,{cells('ILD', 'Other diseases')}"]
BOXES_TRAIN = [
    "image_id,rad_id,class_name,x_min,y_min,x_max,y_max",
    "aa,R10,Cardiomegaly,0,1,2,3",
    "aa,R10,Pneumonia,,,,",
    "aa,R8,Cardiomegaly,1,1,3.5,3",
    "aa,R9,No finding,,,,",
    *(f"bb,R{reader},No finding,,,," for reader in (1, 2, 3)),
]
BOXES_TEST = ["image_id,class_name,x_min,y_min,x_max,y_max", "cc,ILD,0,0,1,1", "cc,ILD,2,2,4,4", "cc,Other disease,,,,"]
TABLES = {
    "image_labels_train.csv": LABELS_TRAIN,
    "image_labels_test.csv": LABELS_TEST,
    "annotations_train.csv": BOXES_TRAIN,
    "annotations_test.csv": BOXES_TEST,
}
IMAGES = ("train/aa.dicom", "train/bb.dicom", "test/cc.dicom")


@pytest.fixture
def folder(tmp_path):
    """The data set by hand; its images are empty files, as indexing opens none."""
    for part in ("annotations", "train", "test"):
        (tmp_path / part).mkdir()
    for name, lines in TABLES.items():
        (tmp_path / "annotations" / name).write_text("\n".join(lines) + "\n")
    for image in IMAGES:
        (tmp_path / image).touch()
    return tmp_path


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    root = tmp_path_factory.mktemp("vindr")
    write_vindr_cxr(root, patients=16, size=SIZE[0], seed=SEED)
    return root


def test_the_stand_in(standin):
    data = load_public("vindr_cxr", standin)
    assert data.classes == LABELS
    assert data.samples["split"].value_counts().to_dict() == {"train": 12, "test": 4}
    assert check_dataset(data).failures.empty
    assert set(data.regions["reader"].dropna()) == {"R8", "R9", "R10"}
    # of train, the third reader overlooks what every other image shows
    for readers, counted in (("union", 1), ("majority", 1), ("intersection", 0)):
        labels = load_public("vindr_cxr", standin, readers=readers)
        assert labels.row(name_of(3))["label_Cardiomegaly"] == counted
        assert labels.row(name_of(0))["label_Lung Opacity"] == 1


def test_regions_of_the_stand_in_are_the_boxes_of_its_readers(standin):
    data = load_public("vindr_cxr", standin)
    seen = set()
    for patient in range(16):
        lesions = draw_chest(patient, 0, findings_of(patient), SIZE[0], SEED).lesions
        places = {0, 1, 2} if patient < 12 else {0}
        for label, finding in DRAWN_AS.items():
            if finding not in lesions:
                assert data.region(name_of(patient), "lesion", SIZE, label=label) is None
                continue
            marked = {}
            for place in places:
                x0, y0, x1, y1 = read_box(lesions[finding], place, SIZE[0])
                marked[place] = np.zeros(SIZE, dtype=bool)
                if not (place == 2 and patient % 2):
                    marked[place][y0:y1, x0:x1] = True
            votes = sum(mask.astype(int) for mask in marked.values())
            for readers, needed in (("union", 1), ("majority", len(places) // 2 + 1), ("intersection", len(places))):
                region = data.region(name_of(patient), "lesion", SIZE, label=label, readers=readers)
                np.testing.assert_array_equal(region, votes >= needed)
            seen.add(label)
    assert seen == set(DRAWN_AS)


def test_the_tables_by_hand(folder):
    data = load_public("vindr_cxr", folder)
    columns = ["sample_id", "image", "split", "labels"]
    assert list(data.samples[columns].itertuples(index=False, name=None)) == [
        ("aa", str(folder / "train/aa.dicom"), "train", "Cardiomegaly"),
        ("bb", str(folder / "train/bb.dicom"), "train", "No finding"),
        ("cc", str(folder / "test/cc.dicom"), "test", "ILD|Other diseases"),
    ]
    assert data.regions.astype(object).values.tolist() == [
        ["aa", "lesion", "Cardiomegaly", "R10", "box", "0 1 2 3"],
        ["aa", "lesion", "Cardiomegaly", "R8", "box", "1 1 3.5 3"],
        ["aa", "lesion", "Cardiomegaly", "R9", "box", ""],
        ["cc", "lesion", "ILD", None, "box", "0 0 1 1"],
        ["cc", "lesion", "ILD", None, "box", "2 2 4 4"],
    ]
    majority = data.region("aa", "lesion", (3, 4), readers="majority")
    np.testing.assert_array_equal(majority, [[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0]])
    assert "No patient_id: every image counts as a patient of its own." in data.notes


@pytest.mark.parametrize(
    ("readers", "expected"),
    [("union", "Cardiomegaly|Pneumonia|No finding"), ("majority", "Cardiomegaly"), ("intersection", "")],
)
def test_readers(folder, readers, expected):
    assert load_public("vindr_cxr", folder, readers=readers).row("aa")["labels"] == expected
    with pytest.raises(InputError, match="readers must be 'union' or 'intersection' or 'majority', got 'mean'"):
        load_public("vindr_cxr", folder, readers="mean")


def test_classes_and_an_empty_cell(folder):
    text = (folder / "annotations/image_labels_test.csv").read_text()
    (folder / "annotations/image_labels_test.csv").write_text(text.replace("cc,0,", "cc,,"))
    data = load_public("vindr_cxr", folder, classes=["ILD", "Aortic enlargement"])
    np.testing.assert_array_equal(data.targets(), [[0, 0], [0, 0], [1, np.nan]])
    assert any("Aortic enlargement 1 unknown" in note for note in data.notes)


def test_a_reader_in_the_table_of_the_test_and_the_parent_folder(folder, tmp_path_factory):
    lines = [
        BOXES_TEST[0].replace("image_id", "image_id,rad_id"),
        *(row.replace("cc,", "cc,R0,") for row in BOXES_TEST[1:]),
    ]
    (folder / "annotations/annotations_test.csv").write_text("\n".join(lines) + "\n")
    parent = tmp_path_factory.mktemp("vindr-cxr")
    folder.rename(parent / "1.0.0")
    data = load_public("vindr_cxr", parent)
    assert data.regions["reader"].tolist() == ["R10", "R8", "R9", "R0", "R0"]
    assert data.row("cc")["image"] == str(parent / "1.0.0/test/cc.dicom")


def test_half_a_download(folder):
    (folder / "train/bb.dicom").unlink()
    with pytest.raises(InputError, match="1 of 3 images are missing: train/bb.dicom"):
        load_public("vindr_cxr", folder)
    assert load_public("vindr_cxr", folder, skip_faulty=True).samples["sample_id"].tolist() == ["aa", "cc"]
    (folder / "annotations/annotations_test.csv").unlink()
    with pytest.raises(InputError, match="annotations_test.csv is expected in"):
        load_public("vindr_cxr", folder)
    (folder / "annotations/image_labels_train.csv").unlink()
    with pytest.raises(InputError, match="expected annotations/image_labels_train.csv or 1.0.0/annotations"):
        load_public("vindr_cxr", folder)


@pytest.mark.parametrize(
    ("table", "old", "new", "expected"),
    [
        ("image_labels_train.csv", "rad_id", "rad_ID", r"the columns \['rad_id'\] are missing"),
        ("image_labels_test.csv", "Other disease", "Other", r"the columns \['Other diseases'\] are missing"),
        ("image_labels_test.csv", "cc,0,", "cc,2,", "row 1 .* holds other labels than 0 and 1"),
        ("annotations_train.csv", "class_name", "class", r"the columns \['class_name'\] are missing"),
        ("annotations_train.csv", "rad_id,", "reader,", r"the columns \['rad_id'\] are missing"),
        ("annotations_train.csv", "R8,Cardiomegaly", "R8,Big heart", "unknown class_name 'Big heart'"),
        ("annotations_train.csv", "0,1,2,3", "0,1,2,", "row 1 .* holds a part of a box"),
        ("annotations_test.csv", "cc,", "dd,", "annotates 1 images that image_labels_test.csv does not name: dd"),
    ],
)
def test_other_tables(folder, table, old, new, expected):
    text = (folder / "annotations" / table).read_text()
    assert old in text
    (folder / "annotations" / table).write_text(text.replace(old, new))
    with pytest.raises(InputError, match=expected):
        load_public("vindr_cxr", folder)


def test_every_option_has_a_meaning():
    entry = ADAPTERS["vindr_cxr"]
    assert entry.function is vindr_cxr
    assert set(entry.meanings) == set(entry.options)
