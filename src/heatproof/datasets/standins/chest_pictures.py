"""Chest radiographs for the stand-ins: the phantom's, with findings in turn, and the files that they are stored in."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from heatproof.datasets.phantom.anatomy import Array, Mask, draw_anatomy
from heatproof.datasets.phantom.findings import DRAWN
from heatproof.datasets.phantom.radiograph import Radiograph, draw_radiograph
from heatproof.datasets.phantom.randomness import generator

FINDINGS = tuple(DRAWN)


def findings_of(patient: int, number: int = 0) -> tuple[str, ...]:
    """What a patient's image shows: one of the findings in turn, or after the last nothing; sometimes two of them."""
    turn = (patient + number) % (len(FINDINGS) + 1)
    first = FINDINGS[turn : turn + 1]
    return (*first, FINDINGS[(turn + 1) % len(FINDINGS)]) if first and patient % 4 == 3 else first


def draw_chest(patient: int, number: int, findings: Sequence[str], size: int, seed: int) -> Radiograph:
    """The radiograph number `number` of a patient, `[size, size]`; its lesions are those that have a pixel."""
    anatomy = draw_anatomy(generator("anatomy", seed, patient))
    own = {name: generator(name, seed, patient, number) for name in findings}
    drawn = draw_radiograph(anatomy, own, size, generator("film", seed, patient, number))
    return replace(drawn, lesions={name: mask for name, mask in drawn.lesions.items() if mask.any()})


def enlarged(picture: NDArray[Any], side: int) -> NDArray[Any]:
    """A square picture with `side` pixels a side, by repeating its own.

    Example:
        >>> enlarged(np.array([[1, 2], [3, 4]]), 4).tolist()
        [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]
    """
    places = np.arange(side) * len(picture) // side
    return picture[np.ix_(places, places)]


def bounding_box(mask: Mask) -> tuple[int, int, int, int]:
    """x, y, width and height of the smallest box about a mask that is not empty.

    Example:
        >>> bounding_box(np.array([[False, False, False], [False, True, True]]))
        (1, 1, 2, 1)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y


def column_runs(mask: Mask) -> list[int]:
    """Lengths of the runs outside (first) and inside, in turn, down the columns from left to right.

    Example:
        >>> column_runs(np.array([[False, True, False], [True, True, False]]))
        [1, 3, 2]
    """
    flat = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    return [int(length) for length in np.diff([0, *edges, mask.size])]


def write_picture(path: Path, pixels: Array) -> None:
    """Store pixels in [0, 1] as a grey PNG or JPEG of 8 bits, by the suffix; its folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(_bytes(pixels)).save(path, quality=95)  # PNG knows no quality and passes over it


def write_radiograph(path: Path, pixels: Array, **header: Any) -> None:
    """Store pixels in [0, 1] as a DICOM file of 8 bits; `header` holds DICOM keywords; its folders are made."""
    import pydicom
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

    path.parent.mkdir(parents=True, exist_ok=True)
    stored = _bytes(pixels)
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.SOPClassUID = data.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    for keyword in ("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"):
        setattr(data, keyword, generate_uid(entropy_srcs=["heatproof stand-in", keyword, path.name]))
    data.Modality, data.BodyPartExamined, data.ViewPosition = "CR", "CHEST", "PA"
    data.PatientName, data.Manufacturer = "Stand-in", "Heatproof phantom"
    for keyword, value in header.items():
        setattr(data, keyword, value)
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    data.SamplesPerPixel, data.PixelRepresentation, data.PhotometricInterpretation = 1, 0, "MONOCHROME2"
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.PixelData = stored.tobytes() + b"\0" * (stored.size % 2)  # of even length, as the standard asks
    data["PixelData"].VR = "OB"
    data.save_as(path, enforce_file_format=True)


def _bytes(pixels: Array) -> NDArray[np.uint8]:
    return np.asarray(np.rint(pixels * 255), dtype=np.uint8)
