"""The RSNA pneumonia challenge: the stand-in, listings as they are documented, and folders that are something else."""

import numpy as np
import pytest

from heatproof.datasets.adapters.registry import ADAPTERS, load_public
from heatproof.datasets.adapters.rsna_pneumonia import rsna_pneumonia
from heatproof.datasets.check import check_dataset
from heatproof.datasets.standins.chest_pictures import draw_chest
from heatproof.datasets.standins.rsna_pneumonia import name_of, write_rsna_pneumonia
from heatproof.errors import InputError

SEED, SIZE = 2, (64, 64)

LABELS = """\
patientId,x,y,width,height,Target
0004cfab,,,,,0
00436515,264.0,152.0,213.0,379.0,1
00436515,562.0,152.0,256.0,453.0,1
003d8fa0,,,,,0
"""
DETAILS = """\
patientId,class
0004cfab,No Lung Opacity / Not Normal
00436515,Lung Opacity
00436515,Lung Opacity
003d8fa0,Normal
"""


@pytest.fixture
def folder(tmp_path):
    """The data set by hand; its images are empty files, as indexing opens none."""
    (tmp_path / "stage_2_train_labels.csv").write_text(LABELS)
    (tmp_path / "stage_2_detailed_class_info.csv").write_text(DETAILS)
    (tmp_path / "stage_2_train_images").mkdir()
    for name in ("0004cfab", "00436515", "003d8fa0"):
        (tmp_path / f"stage_2_train_images/{name}.dcm").touch()
    return tmp_path


def test_the_stand_in(tmp_path):
    write_rsna_pneumonia(tmp_path, patients=8, size=SIZE[0], seed=SEED)
    data = load_public("rsna_pneumonia", tmp_path)
    assert data.samples["label"].value_counts().to_dict() == {"pneumonia": 4, "no pneumonia": 4}
    assert data.samples["patient_id"].tolist() == [name_of(patient) for patient in range(8)]
    assert data.samples["split"].isna().all()
    assert check_dataset(data).failures.empty
    several = load_public("rsna_pneumonia", tmp_path, label="class")
    assert several.samples["label"].value_counts().to_dict() == {
        "Lung Opacity": 4,
        "Normal": 2,
        "No Lung Opacity / Not Normal": 2,
    }
    for patient in range(8):
        finding = {0: "opacity", 2: "nodule"}.get(patient % 4)
        shown = [finding] if finding else ["cardiomegaly"] * (patient % 4 == 3)
        region = data.region(name_of(patient), "lesion", SIZE, label="pneumonia")
        drawn = draw_chest(patient, 0, shown, SIZE[0], SEED).lesions.get(finding, np.zeros(SIZE, dtype=bool))
        # a box about each part: the same rows and columns, and no pixel left out
        np.testing.assert_array_equal(region.any(axis=0), drawn.any(axis=0))
        np.testing.assert_array_equal(region.any(axis=1), drawn.any(axis=1))
        assert not (drawn & ~region).any()
    opacity = draw_chest(0, 0, ["opacity"], SIZE[0], SEED).lesions["opacity"]  # one part: its box alone
    rows, columns = np.nonzero(opacity)
    expected = np.zeros(SIZE, dtype=bool)
    expected[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] = True
    np.testing.assert_array_equal(data.region(name_of(0), "lesion", SIZE), expected)


def test_the_tables_by_hand(folder):
    data = load_public("rsna_pneumonia", folder)
    columns = ["sample_id", "image", "patient_id", "label"]
    place = folder / "stage_2_train_images"
    assert list(data.samples[columns].itertuples(index=False, name=None)) == [
        ("0004cfab", str(place / "0004cfab.dcm"), "0004cfab", "no pneumonia"),
        ("00436515", str(place / "00436515.dcm"), "00436515", "pneumonia"),
        ("003d8fa0", str(place / "003d8fa0.dcm"), "003d8fa0", "no pneumonia"),
    ]
    assert data.classes == ("no pneumonia", "pneumonia")
    assert data.regions.astype(object).values.tolist() == [
        ["0004cfab", "lesion", "pneumonia", None, "box", ""],
        ["00436515", "lesion", "pneumonia", None, "box", "264 152 477 531"],
        ["00436515", "lesion", "pneumonia", None, "box", "562 152 818 605"],
        ["003d8fa0", "lesion", "pneumonia", None, "box", ""],
    ]
    assert data.notes[0] == "No official splits."


def test_the_detailed_classes(folder):
    data = load_public("rsna_pneumonia", folder, label="class")
    assert data.samples["label"].tolist() == ["No Lung Opacity / Not Normal", "Lung Opacity", "Normal"]
    assert data.classes == ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")
    assert set(data.regions["label"]) == {"Lung Opacity"}
    with pytest.raises(InputError, match="label must be 'target' or 'class', got 'finding'"):
        load_public("rsna_pneumonia", folder, label="finding")


@pytest.mark.parametrize(
    ("file", "old", "new", "expected"),
    [
        ("labels", "003d8fa0,,,,,0", "003d8fa0,,,,,1", "1 images of .* have Target 1 and no box: 003d8fa0"),
        ("labels", "003d8fa0,,,,,0", "003d8fa0,1,2,3,4,1", "are 'Lung Opacity' in one table and not .*: 003d8fa0"),
        ("labels", "562.0,152.0,256.0,453.0,1", ",,,,0", "1 images have rows that contradict one another: 00436515"),
        ("details", "00436515,Lung Opacity\n00436515,Lung Opacity\n", "", "1 images are missing in .*: 00436515"),
        ("details", "003d8fa0,Normal", "003d8fa0,Normal\nffff,Normal", "1 images are in .* but not in .*: ffff"),
    ],
)
def test_tables_that_do_not_agree(folder, file, old, new, expected):
    name = {"labels": "stage_2_train_labels.csv", "details": "stage_2_detailed_class_info.csv"}[file]
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new))
    for label in ("target", "class"):
        with pytest.raises(InputError, match=expected):
            load_public("rsna_pneumonia", folder, label=label)
        data = load_public("rsna_pneumonia", folder, label=label, skip_faulty=True)
        assert len(data) == (3 if "ffff" in new else 2)


def test_half_a_download(folder):
    (folder / "stage_2_train_images/003d8fa0.dcm").unlink()
    with pytest.raises(InputError, match="1 of 3 images are missing: stage_2_train_images/003d8fa0.dcm"):
        load_public("rsna_pneumonia", folder)
    (folder / "stage_2_detailed_class_info.csv").unlink()
    with pytest.raises(InputError, match="stage_2_detailed_class_info.csv is expected in"):
        load_public("rsna_pneumonia", folder)


def test_other_tables(folder):
    (folder / "stage_2_train_labels.csv").write_text(LABELS.replace("patientId", "image"))
    with pytest.raises(InputError, match=r"the columns \['patientId'\] are missing"):
        load_public("rsna_pneumonia", folder)
    (folder / "stage_2_train_labels.csv").write_text(LABELS)
    (folder / "stage_2_detailed_class_info.csv").write_text(DETAILS.replace(",Normal", ",Healthy"))
    with pytest.raises(InputError, match="the column 'class' holds 'Healthy'. Expected are Normal, No Lung Opacity"):
        load_public("rsna_pneumonia", folder)


def test_every_option_has_a_meaning():
    entry = ADAPTERS["rsna_pneumonia"]
    assert entry.function is rsna_pneumonia
    assert set(entry.meanings) == set(entry.options)
