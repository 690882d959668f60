"""The few elements of a DICOM file that a picture needs, as plain values.

No other element is decoded. In a damaged file a patient's name may still stand where one of these belongs, so no text
that came out of a file is ever part of a message, and whatever the parser has to say meanwhile is dropped.
"""

import logging
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof.errors import ImageError, InputError
from heatproof.images import raw
from heatproof.images.greyscale import Rescale, Table, Window

_COLOURS = ("Red", "Green", "Blue")
_KEYWORDS = [
    *("SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "NumberOfFrames", "Rows", "Columns"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleIntercept", "RescaleSlope", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PresentationLUTShape"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *(f"{colour}PaletteColorLookupTableDescriptor" for colour in _COLOURS),
    *(f"{part}{colour}PaletteColorLookupTableData" for part in ("", "Segmented") for colour in _COLOURS),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths", "PixelData"),
]
# optional, or left out by some writers
_DEFAULTS = {"SamplesPerPixel": 1, "NumberOfFrames": 1, "PixelRepresentation": 0, "PlanarConfiguration": 0}

NATIVE = tuple(f"1.2.840.10008.1.2{tail}" for tail in ("", ".1", ".1.99", ".2"))
"""The uncompressed transfer syntaxes: implicit and explicit VR, deflated, big endian (PS3.6 A)."""

_GREY = ("MONOCHROME1", "MONOCHROME2")
PHOTOMETRIC = (*_GREY, "PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True, eq=False)
class Header:
    """How the pixels of one frame are stored and how they are to be shown.

    `syntax`: the transfer syntax (UID). `pixel_data`, `pixel_vr`: value and representation of that element, all frames.
    `offsets`: the extended offset table. `photometric`: one of `PHOTOMETRIC`. `padding`: lowest and highest stored value
    that only fills up the rectangle. `voi`: the VOI LUT. `windows`: usable or not, as they stand. `palette`: red, green
    and blue.
    """

    syntax: str
    pixel_data: bytes
    pixel_vr: str
    offsets: tuple[bytes, bytes] | None
    rows: int
    columns: int
    samples: int
    frames: int
    photometric: str
    planar: int
    allocated: int
    stored: int
    high_bit: int
    signed: bool
    padding: tuple[int, int] | None
    modality: Rescale | Table
    voi: Table | None
    windows: tuple[Window, ...]
    inverse: bool
    palette: tuple[Table, Table, Table] | None

    @property
    def grey(self) -> bool:
        """Whether the picture is grey by its colour model."""
        return self.photometric in _GREY


def read_header(content: bytes, path: object, frame: int | None = None) -> Header:
    """The header of one frame of a DICOM file, `frame` counted from 1; None is the only one.

    Raises:
        ImageError: the header is damaged, lacks what pixels need, has no pixel data, describes too large an image, or
            has no such frame, or several while none was chosen.
    """
    element = "file"
    with _unheard():
        try:
            data, syntax = _parsed(content)
            for element in _KEYWORDS:
                if not data.get(element) and element in _DEFAULTS:  # decoded here, so that an error can name it
                    setattr(data, element, _DEFAULTS[element])
            element = "description of the pixels"
            _check(data)
            raw.check_pixel_count(data.Rows, data.Columns, path)
            _check_frames(data, frame, syntax)
            return _header(data, syntax, frame or 1)
        except ImageError:
            raise
        except InputError as error:
            raise ImageError(f"{path}: {error}") from None
        except Exception as error:  # noqa: BLE001 - whatever a parser raises over damaged bytes; its text may quote them
            raise ImageError(
                f"{path}: the DICOM header is damaged ({element}: {type(error).__name__}). Copy or export it again."
            ) from None


_parsing = threading.Lock()


@contextmanager
def _unheard() -> Iterator[None]:
    """Drop the warnings and log lines of pydicom, which quote values.

    One thread at a time: both switches belong to the whole process.
    """
    log = logging.getLogger("pydicom")
    with _parsing, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before, log.disabled = log.disabled, True
        try:
            yield
        finally:
            log.disabled = before


def _parsed(content: bytes) -> tuple[Any, str]:
    """The listed elements, not yet decoded, and the transfer syntax; with or without preamble and file meta."""
    from pydicom import uid
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.tag import Tag

    file = BytesIO(content)
    read_preamble(file, force=True)
    meta = read_dataset(file, False, True, stop_when=lambda tag, _vr, _length: tag >> 16 != 2)
    syntax = str(meta.get("TransferSyntaxUID") or _guessed_syntax(file))
    if syntax == uid.DeflatedExplicitVRLittleEndian:
        file = BytesIO(_inflated(file.read()))
    implicit, little = syntax == uid.ImplicitVRLittleEndian, syntax != uid.ExplicitVRBigEndian
    data = read_dataset(file, implicit, little, specific_tags=[Tag(keyword) for keyword in _KEYWORDS])
    return data, syntax


def _guessed_syntax(file: BytesIO) -> str:
    """The uncompressed transfer syntax of a data set without file meta, from its first tag and value representation."""
    from pydicom import uid

    start = file.tell()
    head = file.read(6)
    file.seek(start)
    if not head[4:6].isalpha():
        return str(uid.ImplicitVRLittleEndian)
    return str(uid.ExplicitVRBigEndian if head[0] == 0 else uid.ExplicitVRLittleEndian)


def _inflated(deflated: bytes) -> bytes:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    body = inflater.decompress(deflated, raw.MAX_BYTES)
    if inflater.unconsumed_tail:
        raise InputError(
            f"its deflated data set holds more than the {raw.MAX_BYTES} bytes that are read "
            "(a file made to fill the memory?). Store it uncompressed, one frame a file."
        )
    if not inflater.eof:
        raise InputError("the deflated data set is truncated. Copy or export it again.")
    return body


def _check(data: Any) -> None:
    """Refuse what is no picture, before anything is decoded."""
    if not data.get("PixelData"):
        raise InputError(
            "this DICOM file has no pixel data (a report, a presentation state or a truncated file). "
            "Leave it out of the table, or copy it again."
        )
    numbers = ("Rows", "Columns", "BitsAllocated", "BitsStored", *_DEFAULTS)
    unusable = [name for name in numbers if not isinstance(data.get(name), int)]
    unusable += [] if isinstance(data.get("PhotometricInterpretation"), str) else ["PhotometricInterpretation"]
    if unusable:
        raise InputError(f"the DICOM header has no usable {', '.join(unusable)}. Copy or export it again.")
    if data.PhotometricInterpretation not in PHOTOMETRIC:
        raise InputError(
            f"its colour model (PhotometricInterpretation) is none of {', '.join(PHOTOMETRIC)}. "
            "Convert it to MONOCHROME2 or RGB."
        )
    samples = 1 if data.PhotometricInterpretation in (*_GREY, "PALETTE COLOR") else 3
    if samples != data.SamplesPerPixel:
        raise InputError(
            f"the DICOM header makes no sense: {data.SamplesPerPixel} samples a pixel in "
            f"{data.PhotometricInterpretation}, which has {samples}. Export the file again."
        )
    stored, high_bit, allocated = data.BitsStored, _high_bit(data), data.BitsAllocated
    if not 1 <= stored <= high_bit + 1 <= allocated <= 64:
        raise InputError(
            f"the DICOM header makes no sense: BitsStored {stored}, HighBit {high_bit}, BitsAllocated "
            f"{allocated}; each must be at least 1 and fit into the next. Export the file again."
        )


def _high_bit(data: Any) -> int:
    return int(data.get("HighBit") or data.BitsStored - 1)


def _check_frames(data: Any, frame: int | None, syntax: str) -> None:
    frames = int(data.NumberOfFrames)
    bits = data.Rows * data.Columns * data.SamplesPerPixel * data.BitsAllocated * frames
    if data.PhotometricInterpretation == "YBR_FULL_422":
        bits = bits * 2 // 3
    needed = -(-bits // 8) if syntax in NATIVE else 8 * frames  # at least the tag and length of one item a frame
    if frames < 1 or needed > len(data.PixelData):
        raise InputError(
            f"the pixel data of {len(data.PixelData)} bytes cannot hold the frames that its header declares. "
            "The file is truncated or damaged: copy or export it again."
        )
    if frame is None and frames > 1:
        raise InputError(
            f"a multi-frame DICOM of {frames} frames. Choose one from 1 to {frames}, in the path as "
            "'name.dcm#frame=1' or with read_image(path, frame=1)."
        )
    if frame is not None and not 1 <= frame <= frames:
        raise InputError(f"there is no frame {frame}; the file has {frames}, counted from 1.")


def _header(data: Any, syntax: str, frame: int) -> Header:
    signed = data.PixelRepresentation == 1
    transformation = _macro(data, frame, "PixelValueTransformationSequence")
    modality: Rescale | Table
    if data.get("ModalityLUTSequence"):
        modality = _table(data.ModalityLUTSequence[0], "LUT", data, signed=signed)
    else:
        modality = Rescale(
            _first(transformation.get("RescaleSlope"), 1), _first(transformation.get("RescaleIntercept"), 0)
        )
    negative = isinstance(modality, Rescale) and (signed or modality.intercept < 0)
    photometric = str(data.PhotometricInterpretation)
    return Header(
        syntax=syntax,
        pixel_data=data.PixelData,
        pixel_vr=str(data["PixelData"].VR),
        offsets=_offsets(data),
        rows=data.Rows,
        columns=data.Columns,
        samples=data.SamplesPerPixel,
        frames=int(data.NumberOfFrames),
        photometric=photometric,
        planar=data.PlanarConfiguration,
        allocated=data.BitsAllocated,
        stored=data.BitsStored,
        high_bit=_high_bit(data),
        signed=signed,
        padding=_padding(data, signed=signed),
        modality=modality,
        voi=_table(data.VOILUTSequence[0], "LUT", data, signed=negative) if data.get("VOILUTSequence") else None,
        windows=_windows(_macro(data, frame, "FrameVOILUTSequence")),
        inverse=photometric == "MONOCHROME1" or data.get("PresentationLUTShape") == "INVERSE",
        palette=_palette(data, signed=signed) if photometric == "PALETTE COLOR" else None,
    )


def _macro(data: Any, frame: int, sequence: str) -> Any:
    """The frame's own functional group, else the one that all frames share, else the data set (PS3.3 C.7.6.16)."""
    own, shared = data.get("PerFrameFunctionalGroupsSequence"), data.get("SharedFunctionalGroupsSequence")
    for group in (*(own or [])[frame - 1 : frame], *(shared or [])[:1]):
        if group.get(sequence):
            return group.get(sequence)[0]
    return data


def _offsets(data: Any) -> tuple[bytes, bytes] | None:
    if data.get("ExtendedOffsetTable") and data.get("ExtendedOffsetTableLengths"):
        return data.ExtendedOffsetTable, data.ExtendedOffsetTableLengths
    return None


def _padding(data: Any, *, signed: bool) -> tuple[int, int] | None:
    """Lowest and highest padding value (PS3.3 C.7.5.1.1.2), both by default PixelPaddingValue."""
    value, limit = data.get("PixelPaddingValue"), data.get("PixelPaddingRangeLimit")
    if value is None:
        return None
    ends = (value if end is None else end for end in (value, limit))
    low, high = sorted(_wrapped(end, data.BitsAllocated, signed=signed) for end in ends)
    return low, high


def _windows(data: Any) -> tuple[Window, ...]:
    pairs = list(zip(_numbers(data.get("WindowCenter")), _numbers(data.get("WindowWidth")), strict=False))
    function = str(data.get("VOILUTFunction") or "LINEAR").upper()
    if pairs and function not in _FUNCTIONS:
        raise InputError(f"its VOILUTFunction is none of {', '.join(_FUNCTIONS)}. Export the file again.")
    return tuple(Window(centre, width, function) for centre, width in pairs)


def _table(data: Any, name: str, root: Any, *, signed: bool) -> Table:
    """The lookup table of the elements `name`Descriptor and `name`Data (PS3.3 C.11.1.1.1, C.7.6.3.1.5)."""
    count, first, bits = data.get(f"{name}Descriptor")
    entries = data.get(f"{name}Data")
    count = count or 2**16
    if isinstance(entries, bytes):
        order = "<" if root.original_encoding[1] else ">"
        entries = np.frombuffer(entries, dtype="u1" if len(entries) == count + count % 2 else f"{order}u2")
    table = np.atleast_1d(np.asarray(entries, dtype=np.float64))[:count]
    if len(table) < count:
        raise InputError("a lookup table is shorter than its descriptor says. Export the file again.")
    return Table(table, _wrapped(first, 16, signed=signed), float(2**bits - 1))


def _palette(data: Any, *, signed: bool) -> tuple[Table, Table, Table]:
    if "RedPaletteColorLookupTableData" not in data:
        return _segmented_palette(data, signed=signed)
    red, green, blue = (_table(data, f"{colour}PaletteColorLookupTable", data, signed=signed) for colour in _COLOURS)
    return red, green, blue


def _segmented_palette(data: Any, *, signed: bool) -> tuple[Table, Table, Table]:
    """A palette stored in segments (PS3.3 C.7.9.2), written out by pydicom, which expands it while it applies it."""
    from pydicom.pixels import apply_color_lut

    count, first, bits = data.RedPaletteColorLookupTableDescriptor
    start = _wrapped(first, 16, signed=signed)
    entries: NDArray[Any] = apply_color_lut(np.arange(start, start + (count or 2**16)), data)
    red, green, blue = (Table(entries[:, k].astype(np.float64), start, float(2**bits - 1)) for k in range(3))
    return red, green, blue


def _wrapped(value: int, bits: int, *, signed: bool) -> int:
    """The number that the same `bits` bits mean signed or unsigned: writers often choose the wrong one of US and SS."""
    value %= 2**bits
    return value - 2**bits if signed and value >= 2 ** (bits - 1) else value


def _numbers(value: Any) -> list[float]:
    """The values of an element, none where it is absent or empty."""
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [float(number) for number in values if number not in (None, "")]


def _first(value: Any, default: float) -> float:
    number = (_numbers(value) or [float(default)])[0]
    if not np.isfinite(number):
        raise InputError("its rescale slope or intercept is no number. Export the file again.")
    return number
