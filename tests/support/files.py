"""Small image files written straight from their specifications, so that no reader is its own oracle."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

PATIENT = "Doe^Jane^Secret"


def png_bytes(rows: bytes, width: int, height: int, depth: int, colour: int, extra: bytes = b"") -> bytes:
    """A PNG of raw filter-less scanlines (each already led by its filter byte); `extra` goes before the pixel data."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = png_part(b"IHDR", header) + extra + png_part(b"IDAT", zlib.compress(rows)) + png_part(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def png_part(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def grey16_png(values: np.ndarray, extra: bytes = b"") -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    return png_bytes(rows, values.shape[1], values.shape[0], 16, 0, extra)


def dataset(pixels: np.ndarray, **elements: Any) -> Any:
    """A minimal uncompressed DICOM data set with an identifying header; keywords set or (None) remove elements."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid(entropy_srcs=["heatproof"])
    data.PatientName, data.PatientID, data.PatientBirthDate = PATIENT, "ID-4711", "19701231"
    data.Rows, data.Columns = pixels.shape[:2]
    data.SamplesPerPixel = 1 if pixels.ndim == 2 else pixels.shape[2]
    data.PhotometricInterpretation = "MONOCHROME2" if pixels.ndim == 2 else "RGB"
    if pixels.ndim == 3:
        data.PlanarConfiguration = 0
    data.BitsAllocated = data.BitsStored = pixels.dtype.itemsize * 8
    data.HighBit = data.BitsAllocated - 1
    data.PixelRepresentation = int(pixels.dtype.kind == "i")
    data.PixelData = pixels.tobytes()
    data["PixelData"].VR = "OW"
    for name, value in elements.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    return data


def write_dicom(path: Path, pixels: np.ndarray, **elements: Any) -> Path:
    dataset(pixels, **elements).save_as(path, enforce_file_format=True)
    return path
