"""The stored values of one frame of a DICOM file, whatever they are compressed with."""

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof.errors import ImageError, InputError
from heatproof.images.codestream import Shape, declared_shape
from heatproof.images.dicom_header import NATIVE, Header

# transfer syntaxes (PS3.6 A)
_EXPLICIT = "1.2.840.10008.1.2.1"
_RLE = "1.2.840.10008.1.2.5"
_JPEG_DCT = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")  # baseline, extended (8 or 12 bits)
_JPEG_LS = ("1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81")
_JPEG_OTHER = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70", *_JPEG_LS)  # lossless, lossless SV1
_JPEG_2000 = tuple(f"1.2.840.10008.1.2.4.{n}" for n in (90, 91, 201, 202, 203))  # plain, high throughput

_SECONDS = 120  # for GDCM to decode one frame


def stored_values(header: Header, frame: int | None, path: object) -> NDArray[Any]:
    """The stored values of a frame (from 1; None: the only one), `[H, W]`, or `[H, W, 3]` in RGB.

    Compressed data are decoded by pylibjpeg (JPEG 2000, RLE), Pillow (JPEG with 8 bits) or GDCM (the other kinds of
    JPEG). GDCM runs in a process of its own, which damaged data may end without harm.

    Raises:
        ImageError: truncated, damaged or contradictory data; a compression that nothing here decodes.
    """
    index = (frame or 1) - 1
    try:
        with _unheard():
            return _decoded(header, index)
    except ImageError:
        raise
    except InputError as error:
        raise ImageError(f"{path}: {error}") from None
    except BaseException as error:  # the RLE decoder is written in Rust, whose panics are no Exceptions
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ImageError(
                f"{path}: the pixel data cannot be decoded ({type(error).__name__}). Copy or export it again."
            ) from None
        raise


@contextmanager
def _unheard() -> Iterator[None]:
    """Keep the tracebacks that pydicom logs for each frame it cannot decode out of the log; the caller says it once."""
    thread = threading.get_ident()

    def elsewhere(record: logging.LogRecord) -> bool:
        return record.thread != thread

    log = logging.getLogger("pydicom.pixels.decoders.base")
    log.addFilter(elsewhere)
    try:
        yield
    finally:
        log.removeFilter(elsewhere)


def _decoded(header: Header, index: int) -> NDArray[Any]:
    from pydicom.encaps import get_frame

    if header.syntax in NATIVE:
        return _aligned(_array(header, index), header.high_bit, header.stored)
    if header.syntax == _RLE:
        return _aligned(_array(header, index, decoding_plugin="pylibjpeg"), header.high_bit, header.stored)
    if header.syntax not in (*_JPEG_DCT, *_JPEG_OTHER, *_JPEG_2000):
        raise InputError(
            f"its compression ({_name(header.syntax)}) cannot be decoded here. Store it as JPEG, JPEG-LS, JPEG 2000, "
            "RLE or uncompressed."
        )
    stream = get_frame(header.pixel_data, index, number_of_frames=header.frames, extended_offsets=header.offsets)
    declared = _agreed_shape(stream, header)
    if header.syntax in _JPEG_2000:
        return _array(header, index, decoding_plugin="pylibjpeg")
    if header.syntax in _JPEG_DCT and declared.bits == 8:
        return _array(header, index, decoding_plugin="pillow", bits_allocated=8, bits_stored=8)
    container, bits = 8 if declared.bits <= 8 else 16, min(declared.bits, header.stored)
    plain = replace(
        header,
        syntax=_EXPLICIT,
        pixel_data=_by_gdcm(stream, declared, container, header),
        frames=1,
        planar=0,
        photometric="YBR_FULL" if header.photometric == "YBR_FULL_422" else header.photometric,
        allocated=container,
        stored=bits,
    )
    return _aligned(_array(plain, 0), bits - 1, bits)


def _array(header: Header, index: int, **options: Any) -> NDArray[Any]:
    """One frame as pydicom decodes it; colour becomes RGB."""
    from pydicom.pixels import get_decoder

    if header.photometric.startswith("YBR_FULL") and header.allocated != 8:
        raise InputError(f"{header.photometric} in {header.allocated} bits is not supported. Convert it to RGB.")
    description: dict[str, Any] = {
        "rows": header.rows,
        "columns": header.columns,
        "samples_per_pixel": header.samples,
        "planar_configuration": header.planar,
        "number_of_frames": header.frames,
        "bits_allocated": header.allocated,
        "bits_stored": header.stored,
        "pixel_representation": int(header.signed),
        "photometric_interpretation": header.photometric,
        "pixel_keyword": "PixelData",
        "pixel_vr": header.pixel_vr,
    }
    if header.offsets is not None:
        description["extended_offsets"] = header.offsets
    if header.syntax in (*NATIVE, _RLE):
        description["correct_unused_bits"] = False  # pydicom does not look at HighBit
    decoder = get_decoder(header.syntax)
    pixels, found = decoder.as_array(header.pixel_data, index=index, **description | options)
    if header.samples == 3 and found["photometric_interpretation"] != "RGB":
        raise InputError(f"{header.photometric} does not go with its compression ({_name(header.syntax)}).")
    return np.asarray(pixels)


def _aligned(values: NDArray[Any], high_bit: int, stored: int) -> NDArray[Any]:
    """Only the stored bits, with their sign: what lies beside them may be overlays (PS3.5 8.1.1)."""
    bits = 8 * values.dtype.itemsize
    return np.asarray((values << (bits - 1 - high_bit)) >> (bits - stored))


def _agreed_shape(stream: bytes, header: Header) -> Shape:
    """The shape that the codestream declares, once it has been found to agree with the header.

    Decoders allocate what the codestream says.
    """
    expected = (header.rows, header.columns, header.samples)
    declared = declared_shape(stream)
    if declared is None:
        raise InputError(f"the compressed pixel data are no {_name(header.syntax)}. Copy or export the file again.")
    if declared[:3] != expected or not 1 <= declared.bits <= header.allocated:
        raise InputError(
            f"the compressed pixel data say {declared}, the DICOM header (rows, columns, samples) {expected} in "
            f"{header.allocated} bits. The file is damaged: copy or export it again."
        )
    return declared


def _by_gdcm(stream: bytes, declared: Shape, container: int, header: Header) -> bytes:
    """The decoded frame, by pixel, in words of `container` bits."""
    if header.syntax in _JPEG_LS and (declared.bits in (6, 7) or (header.signed and declared.bits < 8)):
        raise InputError(f"JPEG-LS of {declared.bits} bits is decoded wrongly by GDCM. Store it uncompressed.")
    numbers = (*declared[:3], container, declared.bits)
    script = str(Path(__file__).with_name("gdcm_frame.py"))
    command = [sys.executable, "-P", script, *map(str, numbers), header.photometric, header.syntax]
    try:
        done = subprocess.run(command, input=stream, capture_output=True, timeout=_SECONDS, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise InputError(f"GDCM needs more than {_SECONDS} s for the frame. Is it damaged? Export it again.") from None
    if done.returncode != 0 or 8 * len(done.stdout) != header.rows * header.columns * header.samples * container:
        raise InputError(
            f"the compressed pixel data are damaged (GDCM ended with code {done.returncode}). Copy or export it again."
        )
    return done.stdout


def _name(syntax: str) -> str:
    from pydicom.uid import UID_dictionary

    return str(UID_dictionary.get(syntax, ("unknown transfer syntax",))[0])
