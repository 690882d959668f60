"""Small image files written straight from their specifications, so that no reader is its own oracle."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

PATIENT = "Doe^Jane^Secret"


def png_bytes(
    rows: bytes, width: int, height: int, depth: int, colour: int, extra: bytes = b"", interlaced: bool = False
) -> bytes:
    """A PNG of raw scanlines, each already led by its filter byte; `extra` goes before the pixel data."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
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


def lut(entries: Any, first: int, bits: int, signed: bool = False) -> list[Any]:
    """The one item of a modality or VOI LUT sequence."""
    import pydicom

    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "SS" if signed else "US", [len(entries) % 2**16, first, bits])
    item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return [item]


def jpeg_of(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=97)
    return stream.getvalue()


def jpeg_12_bit(levels: np.ndarray) -> bytes:
    """JPEG extended (T.81, sequential DCT with Huffman codes) of 12 bits: blocks of 8 x 8 pixels of constant `levels`.

    All quantisers are 8, so the only coefficient of a block, (level - 2048) * 64 / 8, is stored as level - 2048.
    """

    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">HH", 0xFF00 | marker, len(body) + 2) + body

    bits, before = "", 0
    for level in levels.ravel().tolist():
        difference, before = level - 2048 - before, level - 2048
        size = abs(difference).bit_length()
        bits += f"{size:04b}"  # the codes of the 13 sizes are four bits long
        if size:
            bits += f"{difference if difference > 0 else difference + 2**size - 1:0{size}b}"
        bits += "0"  # end of block
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\x00")
    rows, columns = 8 * levels.shape[0], 8 * levels.shape[1]
    return (
        b"\xff\xd8"
        + segment(0xDB, bytes([0, *[8] * 64]))
        + segment(0xC1, struct.pack(">BHHB3B", 12, rows, columns, 1, 1, 0x11, 0))
        + segment(0xC4, bytes([0x00, 0, 0, 0, 13, *[0] * 12, *range(13)]))
        + segment(0xC4, bytes([0x10, 1, *[0] * 15, 0]))
        + segment(0xDA, bytes([1, 1, 0x00, 0, 63, 0]))
        + scan
        + b"\xff\xd9"
    )


def encapsulated(path: Path, streams: bytes | list[bytes], pixels: np.ndarray, syntax: str, **elements: Any) -> Path:
    """A DICOM file of compressed frames, which are taken as they are."""
    from pydicom import uid
    from pydicom.encaps import encapsulate

    data = dataset(pixels, **elements)
    data.file_meta.TransferSyntaxUID = getattr(uid, syntax)
    data.PixelData = encapsulate([streams] if isinstance(streams, bytes) else streams)
    data["PixelData"].VR = "OB"
    data.save_as(path, enforce_file_format=True)
    return path


def gdcm_compressed(path: Path, syntax: str, near: int = 0) -> Path:
    """The same DICOM file as GDCM compresses it, beside it; `syntax` is one of GDCM's names, `near` JPEG-LS's error."""
    import gdcm

    reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
    reader.SetFileName(str(path))
    assert reader.Read()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, syntax)))
    change.SetInput(reader.GetImage())
    if near:
        codec = gdcm.JPEGLSCodec()
        codec.SetLossless(False)
        codec.SetLossyError(near)
        change.SetUserCodec(codec)
    assert change.Change()
    found = path.with_name(f"{path.stem}-{syntax}.dcm")
    writer.SetFileName(str(found))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()
    return found
