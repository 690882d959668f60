"""DICOM to the picture that a viewer would show: the greyscale pipeline of PS3.3 C.11 and PS3.4 N.2.

Only the elements listed here are read from a file: no identifying one is ever parsed, so none can reach a message.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from heatproof.errors import ImageError
from heatproof.images.codestream import declared_shape
from heatproof.images.raw import RawImage, check_pixel_count, grey_if_equal

_DESCRIPTION = [
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleIntercept", "RescaleSlope", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PresentationLUTShape"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")),
    *(f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
]
_GREY = ("MONOCHROME1", "MONOCHROME2")


def read_dicom(path: str | Path) -> RawImage:
    """Read a single-frame DICOM image as it would be shown.

    Grey: stored value, modality LUT or rescale, then the first VOI LUT, else the first window (LINEAR, LINEAR_EXACT or
    SIGMOID; a width that the standard forbids counts as absent), else the full range of the data without its padding
    value; inverted for MONOCHROME1 or a presentation LUT shape INVERSE, once where both say so (PS3.3 C.7.6.3.1.2,
    C.8.11.3.1.2). Colour: RGB, YBR and palette, scaled by their depth. Compressed pixel data is decoded by the first of
    pylibjpeg, Pillow and GDCM that knows its transfer syntax; none knows 12-bit lossy JPEG.

    Raises:
        ImageError: unreadable or truncated file, no pixel data, several frames, too many pixels, unknown colour model.
    """
    data = _read(path)
    _check(data, path)
    pixels = _decoded(data, path)
    try:
        values = _intensities(pixels, data)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ImageError(f"{path}: the DICOM header makes no sense ({error}). Export the file again.") from None
    return RawImage(grey_if_equal(values).astype(np.float32), int(data.BitsStored), "dicom")


def _read(path: str | Path) -> Any:
    import pydicom
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    element = "file"
    try:
        data = pydicom.dcmread(path, force=True, specific_tags=[*_DESCRIPTION, "PixelData"])
        for element in data.dir():
            data[element]  # decoded here, once and for all
    except Exception as error:  # noqa: BLE001 - whatever a parser raises over damaged bytes
        # its text may quote bytes of any element, an identifying one too where a length is damaged
        raise ImageError(
            f"{path}: the DICOM header is damaged ({element}: {type(error).__name__}). Copy or export it again."
        ) from None
    if "TransferSyntaxUID" not in data.file_meta:
        implicit, little = data.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        data.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return data


def _check(data: Any, path: str | Path) -> None:
    """Refuse what is no single image, before anything is decoded."""
    if "PixelData" not in data:
        raise ImageError(
            f"{path}: this DICOM file has no pixel data (a report, a presentation state or a truncated file). "
            "Leave it out of the table, or copy it again."
        )
    numbers = {name: data.get(name) for name in ("Rows", "Columns", "BitsAllocated", "BitsStored")}
    numbers |= {name: data.get(name) or 1 for name in ("NumberOfFrames", "SamplesPerPixel")}
    unusable = [name for name, value in numbers.items() if not isinstance(value, int)]
    unusable += [] if isinstance(data.get("PhotometricInterpretation"), str) else ["PhotometricInterpretation"]
    if unusable:
        raise ImageError(f"{path}: the DICOM header has no usable {', '.join(unusable)}. Copy or export it again.")
    frames = numbers["NumberOfFrames"]
    if frames > 1:
        raise ImageError(
            f"{path}: a multi-frame DICOM of {frames} frames. Store the frame to be read as a file of its own."
        )
    check_pixel_count(data.Rows, data.Columns, path)


def _decoded(data: Any, path: str | Path) -> NDArray[Any]:
    """The stored values `[H, W]`, or `[H, W, 3]` in RGB."""
    from pydicom.pixels import pixel_array

    syntax = data.file_meta.TransferSyntaxUID
    try:
        plugin = _decoder(data, path) if syntax.is_compressed and not syntax.is_deflated else ""
        pixels: NDArray[Any] = pixel_array(data, decoding_plugin=plugin)
    except ImageError:
        raise
    except BaseException as error:  # the RLE decoder is written in Rust, whose panics are no Exceptions
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ImageError(f"{path}: the pixel data cannot be decoded ({error}). Copy or export it again.") from None
        raise
    if pixels.shape[:2] != (data.Rows, data.Columns) or pixels.shape[2:] not in ((), (3,)):
        raise ImageError(
            f"{path}: pixels of shape {pixels.shape} in {data.PhotometricInterpretation} are not supported."
        )
    return pixels


def _decoder(data: Any, path: str | Path) -> str:
    """The decoder of compressed pixel data, once its codestream has been found to agree with the header.

    GDCM comes last: on damaged data it can end the process instead of raising.
    """
    from pydicom.encaps import get_frame
    from pydicom.pixels import get_decoder

    header = (data.Rows, data.Columns, data.get("SamplesPerPixel") or 1)
    declared = declared_shape(get_frame(data.PixelData, 0, number_of_frames=1))
    if declared is not None and (declared[:3] != header or not 1 <= declared.bits <= data.BitsAllocated):
        raise ImageError(
            f"{path}: the compressed pixel data say {declared}, the DICOM header (rows, columns, samples) {header} "
            f"in {data.BitsAllocated} bits. The file is damaged: copy or export it again."
        )
    available = get_decoder(data.file_meta.TransferSyntaxUID).available_plugins
    return next((name for name in ("pylibjpeg", "pillow", "gdcm") if name in available), "")


def _intensities(stored: NDArray[Any], data: Any) -> NDArray[np.float64]:
    """Stored values to what is shown, in [0, 1]."""
    colours = data.PhotometricInterpretation
    if colours == "PALETTE COLOR":
        return _palette(stored, data)
    if colours not in _GREY:
        return stored / float(2 ** int(data.BitsStored) - 1)
    if stored.ndim != 2:
        raise ValueError(f"{colours} with {stored.shape[2]} samples a pixel")
    shown = _values_of_interest(_modality(stored, data), ~_padding(stored, data), data)
    return 1 - shown if colours == "MONOCHROME1" or data.get("PresentationLUTShape") == "INVERSE" else shown


def _modality(stored: NDArray[Any], data: Any) -> NDArray[np.float64]:
    """Stored values to modality values (PS3.3 C.11.1)."""
    if data.get("ModalityLUTSequence"):
        return _look_up(stored, data.ModalityLUTSequence[0], data)[0]
    slope, intercept = _first(data.get("RescaleSlope")), _first(data.get("RescaleIntercept"))
    return stored * (1.0 if slope is None else slope) + (0.0 if intercept is None else intercept)


def _look_up(values: NDArray[Any], item: Any, data: Any) -> tuple[NDArray[np.float64], float]:
    """The table's entry for each value, and the largest value that its depth allows (PS3.3 C.11.1.1.1)."""
    count, first, bits = (int(v) for v in item.LUTDescriptor)
    entries = item.LUTData
    if isinstance(entries, bytes):
        order = "<" if data.original_encoding[1] else ">"
        entries = np.frombuffer(entries, dtype="u1" if len(entries) == (count or 2**16) else f"{order}u2")
    table = np.asarray(entries, dtype=np.float64)[: count or 2**16]
    index = np.clip(np.rint(values).astype(np.int64) - first, 0, len(table) - 1)
    return table[index], float(2**bits - 1)


def _values_of_interest(values: NDArray[Any], image: NDArray[np.bool_], data: Any) -> NDArray[np.float64]:
    """VOI LUT, window or full range: `values` to [0, 1]; `image` is False where the file is padded."""
    if data.get("VOILUTSequence"):
        shown, top = _look_up(values, data.VOILUTSequence[0], data)
        return np.minimum(shown / top, 1.0)
    centre, width = _first(data.get("WindowCenter")), _first(data.get("WindowWidth"))
    function = str(data.get("VOILUTFunction") or "LINEAR").upper()
    if centre is not None and width is not None and (width >= 1 or (width > 0 and function != "LINEAR")):
        return window(values, centre, width, function)
    inside = values[image] if image.any() else values
    low, high = float(inside.min()), float(inside.max())
    return np.asarray(np.clip((values - low) / (high - low or 1.0), 0, 1), dtype=np.float64)


def window(values: NDArray[Any], centre: float, width: float, function: str = "LINEAR") -> NDArray[np.float64]:
    """Apply a window to modality values: [0, 1], by the formulas of PS3.3 C.11.2.1.2 and C.11.2.1.3.

    Raises:
        ValueError: `function` is none of LINEAR, LINEAR_EXACT and SIGMOID.

    Example:
        >>> window(np.array([0, 2048, 4095]), 2048, 4096).round(3).tolist()
        [0.0, 0.5, 1.0]
    """
    x = np.asarray(values, dtype=np.float64)
    if function == "SIGMOID":
        return np.asarray(special.expit(4 * (x - centre) / width))
    if function == "LINEAR_EXACT":
        return np.asarray(np.clip((x - centre) / width + 0.5, 0, 1))
    if function != "LINEAR":
        raise ValueError(f"unknown VOI LUT function {function!r}")
    if width == 1:
        return (x > centre - 0.5).astype(np.float64)
    return np.asarray(np.clip((x - (centre - 0.5)) / (width - 1) + 0.5, 0, 1))


def _padding(stored: NDArray[Any], data: Any) -> NDArray[np.bool_]:
    """Where the stored pixels only fill up the rectangle (PS3.3 C.7.5.1.1.2)."""
    value = data.get("PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, dtype=bool)
    limit = data.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    return (stored >= low) & (stored <= high)


def _palette(stored: NDArray[Any], data: Any) -> NDArray[np.float64]:
    from pydicom.pixels import apply_color_lut

    colours = np.asarray(apply_color_lut(stored, data))
    return colours[..., :3] / float(2 ** int(data.RedPaletteColorLookupTableDescriptor[2]) - 1)


def _first(value: Any) -> float | None:
    """The first of the values of an element, None where it is absent or empty."""
    if value is None or value == "":
        return None
    first = value if isinstance(value, str | float | int) else next(iter(value), None)
    return None if first is None else float(first)
