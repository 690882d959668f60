"""Duke-Breast-Cancer-MRI: its stand-in, tables written by hand, and folders that are not as they should be."""

import numpy as np
import pytest

import heatproof.datasets.adapters.duke_breast_mri  # noqa: F401 - registers the adapter
from heatproof.datasets.adapters.registry import ADAPTERS, load_public
from heatproof.datasets.check import check_dataset
from heatproof.datasets.standins import duke_breast_mri as standin
from heatproof.datasets.standins.registry import write_standin
from heatproof.errors import InputError
from heatproof.images.read import read_image

SIZE, SEED = 64, 6
MAPPING, BOXES = "Breast-Cancer-MRI-filepath_filename-mapping.csv", "Annotation_Boxes.csv"
BOX_COLUMNS = "Patient ID,Start Row,End Row,Start Column,End Column,Start Slice,End Slice"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("duke") / "made"
    write_standin("duke_breast_mri", place, patients=3, size=SIZE, seed=SEED)
    return place


@pytest.fixture
def listing(tmp_path):
    """Nine slices of each of two patients, as empty files below a manifest; those of the second one have a digit less."""
    rows = ["original_path_and_filename,sop_instance_UID,descriptive_path,classic_path"]
    for patient in ("Breast_MRI_001", "Breast_MRI_002"):
        for number in range(1, 10):
            classic = f"Duke-Breast-Cancer-MRI/{patient}/1.2/3.4/1-{number:03d}.dcm"
            rows.append(f"DICOM_Images/{patient}/pre/{patient}_pre_{number:03d}.dcm,9.{number},x/y.dcm,{classic}")
            stored = classic.replace("1-00", "1-0") if patient.endswith("2") else classic
            file = tmp_path / "manifest-1654812109500" / stored
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        rows.append(f"DICOM_Images/{patient}/post_1/{patient}_post_1_001.dcm,9.0,x/y.dcm,{classic}")
    lines(tmp_path / MAPPING, rows)
    lines(tmp_path / BOXES, [BOX_COLUMNS, "Breast_MRI_001,10,20,30,45,4,6", "Breast_MRI_002,1,2,3,4,8,9"])
    return tmp_path


def lines(path, rows):
    path.write_text("\n".join(rows) + "\n")


def test_the_stand_in_has_slices_and_boxes_as_drawn(made):
    data = load_public("duke_breast_mri", made)
    assert data.classes == ("negative", "positive")
    assert set(data.samples["patient_id"]) == {"Breast_MRI_001", "Breast_MRI_002", "Breast_MRI_003"}
    for number in (1, 2, 3):
        volume = standin.draw(number, SIZE, SEED)
        first, end = volume.lesion[0]
        mine = data.samples[data.samples["patient_id"] == f"Breast_MRI_{number:03d}"]
        slices = mine.groupby("label")["slice"].agg(list).to_dict()
        assert slices["positive"] == list(range(first + 1, end + 1))
        assert slices["negative"] == [s for s in range(1, 25) if s <= first - 4 or s > end + 6]
        sample = mine["sample_id"][mine["label"] == "positive"].iloc[0]
        image = read_image(data.row(sample)["image"])
        assert image.size == (SIZE, SIZE)
        region = data.region(sample, "lesion", image.size, label="positive")
        np.testing.assert_array_equal(region, standin.lesion(volume))
        assert image.pixels[region].mean() > image.pixels[~region].mean()
        assert not data.has_region(mine["sample_id"][mine["label"] == "negative"].iloc[0], "lesion")


def test_another_sequence_and_fewer_patients(made):
    data = load_public("duke_breast_mri", made, sequence="post_1", last_patient=2)
    assert set(data.samples["patient_id"]) == {"Breast_MRI_001", "Breast_MRI_002"}
    wider = load_public("duke_breast_mri", made, margin=1)
    assert len(wider) > len(load_public("duke_breast_mri", made))


def test_the_ready_slices(made):
    data = load_public("duke_breast_mri", made / "png_out")
    series = load_public("duke_breast_mri", made)
    assert set(zip(data.samples["sample_id"], data.samples["label"], strict=True)) == set(
        zip(series.samples["sample_id"], series.samples["label"], strict=True)
    )
    assert data.regions.empty
    assert set(data.samples["patient_id"]) == {"Breast_MRI_001", "Breast_MRI_002", "Breast_MRI_003"}
    assert set(load_public("duke_breast_mri", made / "png_out", last_patient=1).samples["patient_id"]) == {
        "Breast_MRI_001"
    }


@pytest.mark.parametrize("folder", ["", "png_out"])
def test_roi_masks_are_carried_back_to_the_stored_image(made, folder):
    data = load_public("duke_breast_mri", made / folder, rois=str(made / "224_mask_annot_from_dr" / "duke"))
    marked = data.regions[data.regions["region"] == "roi"]["sample_id"].tolist()
    assert len(marked) == 3
    assert check_dataset(data).ok
    for sample in marked:
        volume = standin.draw(int(sample.partition("/")[0][-3:]), SIZE, SEED)
        region = data.region(sample, "roi", (SIZE, SIZE), label="positive")
        np.testing.assert_array_equal(region, standin.lesion(volume))


def test_tables_written_by_hand(listing):
    data = load_public("duke_breast_mri", listing, margin=2)
    one = f"{listing}/manifest-1654812109500/Duke-Breast-Cancer-MRI/Breast_MRI_001/1.2/3.4"
    two = f"{listing}/manifest-1654812109500/Duke-Breast-Cancer-MRI/Breast_MRI_002/1.2/3.4"
    # patient 1: slices 4 and 5 lie in the box; 1 and 2 are two before it, 9 is more than two after its last slice
    assert data.samples[["sample_id", "image", "label", "patient_id", "slice"]].to_numpy().tolist() == [
        ["Breast_MRI_001/1-001", f"{one}/1-001.dcm", "negative", "Breast_MRI_001", 1],
        ["Breast_MRI_001/1-002", f"{one}/1-002.dcm", "negative", "Breast_MRI_001", 2],
        ["Breast_MRI_001/1-004", f"{one}/1-004.dcm", "positive", "Breast_MRI_001", 4],
        ["Breast_MRI_001/1-005", f"{one}/1-005.dcm", "positive", "Breast_MRI_001", 5],
        ["Breast_MRI_001/1-009", f"{one}/1-009.dcm", "negative", "Breast_MRI_001", 9],
        *([f"Breast_MRI_002/1-00{n}", f"{two}/1-0{n}.dcm", "negative", "Breast_MRI_002", n] for n in range(1, 7)),
        ["Breast_MRI_002/1-008", f"{two}/1-08.dcm", "positive", "Breast_MRI_002", 8],
    ]
    assert data.regions[["sample_id", "region", "label", "kind", "data"]].to_numpy().tolist() == [
        ["Breast_MRI_001/1-004", "lesion", "positive", "box", "30 10 45 20"],
        ["Breast_MRI_001/1-005", "lesion", "positive", "box", "30 10 45 20"],
        ["Breast_MRI_002/1-008", "lesion", "positive", "box", "3 1 4 2"],
    ]
    assert any(note.endswith("left out: 6.") for note in data.notes)


def test_series_without_annotation(listing):
    lines(listing / BOXES, [BOX_COLUMNS, "Breast_MRI_001,10,20,30,45,4,6"])
    with pytest.raises(InputError, match="1 patients have series but no box in Annotation_Boxes: Breast_MRI_002"):
        load_public("duke_breast_mri", listing)
    data = load_public("duke_breast_mri", listing, skip_faulty=True)
    assert set(data.samples["patient_id"]) == {"Breast_MRI_001"}
    assert len(load_public("duke_breast_mri", listing, last_patient=1)) == len(data)


def test_a_box_without_series(listing):
    with (listing / BOXES).open("a") as file:
        file.write("Breast_MRI_003,1,2,3,4,5,6\n")
    with pytest.raises(InputError, match="1 patients have a box but no series 'pre' in .*: Breast_MRI_003"):
        load_public("duke_breast_mri", listing)
    assert len(load_public("duke_breast_mri", listing, last_patient=2)) == len(
        load_public("duke_breast_mri", listing, skip_faulty=True)
    )


def test_numbers_that_make_no_box(listing):
    lines(listing / BOXES, [BOX_COLUMNS, "Breast_MRI_001,20,10,30,45,4,6", "Breast_MRI_002,1,2,3,4,x,9"])
    with pytest.raises(InputError, match="numbers that make no box.*Breast_MRI_001, Breast_MRI_002"):
        load_public("duke_breast_mri", listing)
    lines(
        listing / BOXES,
        [BOX_COLUMNS, "Someone,1,2,3,4,5,6", "Breast_MRI_001,1,2,3,4,5,6", "Breast_MRI_002,1,2,3,4,5,6"],
    )
    with pytest.raises(InputError, match="patients not called Breast_MRI_<number>: Someone"):
        load_public("duke_breast_mri", listing)


def test_half_a_download(listing):
    place = listing / "manifest-1654812109500/Duke-Breast-Cancer-MRI/Breast_MRI_001/1.2/3.4"
    (place / "1-004.dcm").unlink()
    with pytest.raises(InputError, match=r"1 of \d+ slices are missing: manifest-1654812109500/.*/1-004.dcm"):
        load_public("duke_breast_mri", listing)
    data = load_public("duke_breast_mri", listing, skip_faulty=True)
    assert data.regions["sample_id"].tolist() == ["Breast_MRI_001/1-005", "Breast_MRI_002/1-008"]


def test_tables_that_are_missing_or_have_other_columns(listing):
    text = (listing / BOXES).read_text()
    (listing / BOXES).write_text(text.replace("Start Slice", "First Slice"))
    with pytest.raises(InputError, match="no column 'Start Slice' .Annotation_Boxes.csv has it"):
        load_public("duke_breast_mri", listing)
    (listing / BOXES).unlink()
    with pytest.raises(InputError, match="the table Annotation_Boxes.csv or Annotation_Boxes.xlsx is missing"):
        load_public("duke_breast_mri", listing)


def test_paths_of_another_form(listing):
    text = (listing / MAPPING).read_text()
    (listing / MAPPING).write_text(text.replace(",Duke-Breast-Cancer-MRI/Breast_MRI_002", ",Duke/Breast_MRI_002"))
    with pytest.raises(
        InputError, match="10 classic paths do not begin with Duke-Breast-Cancer-MRI/: Duke/Breast_MRI_002"
    ):
        load_public("duke_breast_mri", listing)
    (listing / MAPPING).write_text(text.replace("001_pre_001.dcm", "001_pre_first.dcm"))
    with pytest.raises(
        InputError, match="1 paths are not .*: DICOM_Images/Breast_MRI_001/pre/Breast_MRI_001_pre_first.dcm"
    ):
        load_public("duke_breast_mri", listing)
    (listing / MAPPING).write_text(text)
    with pytest.raises(InputError, match="names no series 'post', only post_1, pre"):
        load_public("duke_breast_mri", listing, sequence="post")


def test_a_folder_that_holds_neither_series_nor_slices(listing, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        InputError, match="No folder Duke-Breast-Cancer-MRI with the series and none called pos and neg"
    ):
        load_public("duke_breast_mri", tmp_path / "empty")


def test_ready_slices_written_by_hand(tmp_path):
    for name in ("pos/1-087-351.png", "neg/1-005-12.png", "neg/scan.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="not named <file>-<patient's number>: neg/scan.png"):
        load_public("duke_breast_mri", tmp_path)
    data = load_public("duke_breast_mri", tmp_path, skip_faulty=True)
    assert data.samples[["sample_id", "image", "label", "patient_id"]].to_numpy().tolist() == [
        ["Breast_MRI_012/1-005", f"{tmp_path}/neg/1-005-12.png", "negative", "Breast_MRI_012"],
        ["Breast_MRI_351/1-087", f"{tmp_path}/pos/1-087-351.png", "positive", "Breast_MRI_351"],
    ]


def test_what_is_said_of_it(listing):
    assert set(ADAPTERS["duke_breast_mri"].meanings) == {"sequence", "margin", "last_patient", "rois"}
    with pytest.raises(InputError, match="margin must be a whole number, at least 1, got 0"):
        load_public("duke_breast_mri", listing, margin=0)


@pytest.mark.parametrize("content", [b"Patient ID,Start Row", b"PK\x03\x04 cut off"])
def test_an_excel_file_that_is_none(listing, content):
    (listing / BOXES).unlink()
    (listing / "Annotation_Boxes.xlsx").write_bytes(content)
    with pytest.raises(InputError, match="Annotation_Boxes.xlsx: cannot be read as a table"):
        load_public("duke_breast_mri", listing)
