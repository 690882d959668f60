"""Phantom radiographs as DICOM files: computed radiography, with invented identities for tests of de-identification."""

from pathlib import Path
from typing import Any

import numpy as np

from heatproof.datasets.phantom.anatomy import Array
from heatproof.datasets.phantom.randomness import generator

FAMILY_NAMES = (
    "Abendroth",
    "Bellweather",
    "Corvane",
    "Dunmarrow",
    "Eskeland",
    "Fenwhistle",
    "Gaultierre",
    "Hollowmere",
)
GIVEN_NAMES = {"F": ("Alba", "Celestine", "Ottilie", "Romy"), "M": ("Anselm", "Caspian", "Leopold", "Tibor")}


def write_dicom(path: Path, pixels: Array, bits: int, seed: int, patient: int, number: int) -> None:
    """Store `pixels` in [0, 1] with `bits` (9 to 16) a pixel; read back through its window they are the same.

    Stored values fill most of the range but not all, which the window tells. Half of the patients' files are
    MONOCHROME1, where the largest value is black.
    """
    import pydicom
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

    def uid(what: str, *key: int) -> str:
        return str(generate_uid(entropy_srcs=["heatproof phantom", what, *map(str, (seed, *key))]))

    random = generator("header", seed, patient)
    inverted = bool(random.random() < 0.5)
    span = int(2**bits * 0.85)
    lowest = int(random.integers(1, 2**bits - span))
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID, data.SOPInstanceUID = ComputedRadiographyImageStorage, uid("image", patient, number)
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.StudyInstanceUID, data.SeriesInstanceUID = uid("study", patient, number), uid("series", patient, number)
    for keyword, value in _identity(random, patient, number).items():
        setattr(data, keyword, value)
    data.Modality, data.Manufacturer, data.ImageType = "CR", "Heatproof phantom", ["ORIGINAL", "PRIMARY"]
    data.BodyPartExamined, data.ViewPosition, data.PatientOrientation = "CHEST", "PA", ["L", "F"]
    data.SeriesNumber = data.InstanceNumber = 1
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, bits, bits - 1
    data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    # a linear window maps lowest to 0 and lowest + span to 1 (PS3.3 C.11.2.1.2.1)
    data.WindowCenter, data.WindowWidth = lowest + (span + 1) / 2, span + 1
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = 0, 1, "US"
    stored = lowest + np.rint((1 - pixels if inverted else pixels) * span)
    data.PixelData = stored.astype("<u2").tobytes()
    data["PixelData"].VR = "OW"
    data.save_as(path, enforce_file_format=True)


def _identity(random: np.random.Generator, patient: int, number: int) -> dict[str, Any]:
    """A person who does not exist, and one of the person's examinations."""
    sex = str(random.choice(["F", "M"]))
    family, given = random.choice(FAMILY_NAMES), random.choice(GIVEN_NAMES[sex])
    born, day = random.integers(1930, 2000), random.integers(1, 28, 2)
    year = 2015 + number % 10
    date = f"{year}{random.integers(1, 13):02d}{day[1]:02d}"
    return {
        "PatientName": f"{family}^{given}",
        "PatientID": f"PHANTOM-{patient:06d}",
        "PatientBirthDate": f"{born}{random.integers(1, 13):02d}{day[0]:02d}",
        "PatientSex": sex,
        "PatientAge": f"{year - born:03d}Y",
        "PatientAddress": f"{random.integers(1, 200)} Nowhere Lane, Phantomville",
        "StudyDate": date,
        "SeriesDate": date,
        "ContentDate": date,
        "StudyTime": f"{random.integers(7, 19):02d}{random.integers(60):02d}00",
        "ContentTime": "120000",
        "StudyID": f"S{number + 1}",
        "AccessionNumber": f"ACC{patient:06d}{number:02d}",
        "ReferringPhysicianName": f"{random.choice(FAMILY_NAMES)}^Dr",
        "InstitutionName": "Phantom General Hospital",
        "StationName": "PHANTOMCR1",
    }
