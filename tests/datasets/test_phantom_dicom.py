"""The phantom's DICOM files: valid, the same picture as the PNG files, and identifying nobody but in their headers."""

import re

import numpy as np
import pydicom
import pytest
from pydicom.pixels import apply_modality_lut, apply_windowing, pixel_array

from heatproof.datasets.check import check_dataset
from heatproof.datasets.phantom import Scanners, Shortcut, make_phantom
from heatproof.images.read import read_image

OPTIONS = {"patients": 8, "images_per_patient": 2, "size": 48, "classes": ["nodule", "normal"]}

# type 1 (with a value) and type 2 (may be empty) of the CR Image IOD: PS3.3 A.2.3 and the modules that it names
TYPE_1 = (
    "StudyInstanceUID SeriesInstanceUID SOPClassUID SOPInstanceUID Modality SamplesPerPixel PhotometricInterpretation "
    "Rows Columns BitsAllocated BitsStored HighBit PixelRepresentation PixelData"
).split()
TYPE_2 = (
    "PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime ReferringPhysicianName StudyID "
    "AccessionNumber SeriesNumber Manufacturer InstanceNumber PatientOrientation ContentDate ContentTime "
    "BodyPartExamined ViewPosition"
).split()
IDENTIFYING = (
    "PatientName PatientID PatientBirthDate PatientAddress AccessionNumber ReferringPhysicianName InstitutionName"
).split()


@pytest.fixture(scope="module", params=[12, 16])
def data(request, tmp_path_factory):
    return make_phantom(tmp_path_factory.mktemp("dicom") / "x", **OPTIONS, format="dicom", bits=request.param)


@pytest.fixture
def files(data):
    return [pydicom.dcmread(path) for path in data.samples["image"]]


def test_required_elements_are_there_and_well_formed(files):
    for file in files:
        assert all(file[name].value not in (None, "") for name in TYPE_1)
        assert all(name in file for name in TYPE_2)
        with pydicom.config.strict_reading():
            for element in file:  # checks each value against its representation
                pydicom.dataelem.DataElement(element.tag, element.VR, element.value)
        assert file.file_meta.MediaStorageSOPInstanceUID == file.SOPInstanceUID
        assert file.SOPClassUID.name == "Computed Radiography Image Storage"
        assert file.HighBit == file.BitsStored - 1
        assert len(file.PixelData) == file.Rows * file.Columns * 2
        assert all(pydicom.uid.UID(uid).is_valid for uid in (file.StudyInstanceUID, file.SeriesInstanceUID))


def test_the_picture_is_that_of_the_png_file(data, files, tmp_path):
    """As our reader shows it, and as pydicom does."""
    png = make_phantom(tmp_path / "png", **OPTIONS, bits=16)
    for file, ours, theirs in zip(files, data.samples["image"], png.samples["image"], strict=True):
        expected, found = read_image(theirs).pixels, read_image(ours)
        half_a_step = 0.5 / (0.85 * 2**file.BitsStored - 1) + 0.5 / 65535 + 1e-6
        np.testing.assert_allclose(found.pixels, expected, atol=half_a_step)
        assert (found.bits, found.format) == (file.BitsStored, "dicom")
        shown = apply_windowing(apply_modality_lut(pixel_array(file), file), file) / (2**file.BitsStored - 1)
        shown = 1 - shown if file.PhotometricInterpretation == "MONOCHROME1" else shown
        np.testing.assert_allclose(shown, expected, atol=half_a_step)


def test_both_kinds_of_grey_occur_and_the_window_matters(files):
    kinds = {file.PhotometricInterpretation for file in files}
    assert kinds == {"MONOCHROME1", "MONOCHROME2"}
    for file in files:
        stored = pixel_array(file)
        assert stored.min() > 0
        assert stored.max() < 2**file.BitsStored - 1
    assert len({file.WindowCenter for file in files}) > 2
    assert any(len(np.unique(pixel_array(file))) > 400 for file in files)  # more than 8 bits


def test_patients_keep_their_identity_and_images_have_their_own(files):
    people = [
        tuple(str(file[name].value) for name in ("PatientName", "PatientID", "PatientBirthDate")) for file in files
    ]
    assert people[::2] == people[1::2]
    assert len(set(people)) == OPTIONS["patients"]
    for name in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "AccessionNumber"):
        assert len({file[name].value for file in files}) == len(files)
    for file in files:
        age = int(file.StudyDate[:4]) - int(file.PatientBirthDate[:4])
        assert file.PatientAge == f"{age:03d}Y"
        assert 15 <= age <= 100


def test_no_identity_is_outside_the_files(data, files):
    written = "\n".join((data.root / name).read_text() for name in ("samples.csv", "regions.csv"))
    written += "\n".join(path.as_posix() for path in data.root.rglob("*"))
    for file in files:
        for name in IDENTIFYING:
            value = str(file[name].value)
            assert value
            assert not [word for word in re.split(r"\^", value) if word in written]


def test_everything_else_goes_with_dicom_too(tmp_path):
    data = make_phantom(
        tmp_path / "x", patients=6, size=64, task="multilabel", format="dicom",
        shortcut=Shortcut("nodule", rate=1.0, strength=0.0, text="AP"), scanners=Scanners(),
    )  # fmt: skip
    assert check_dataset(data).ok
    for row in data.samples.itertuples():
        letters = data.region(row.sample_id, "marker", (64, 64))
        assert read_image(row.image).pixels[letters].max() > 0.8
