"""Read an image or a mask, whatever the file is called: its first bytes say what it is."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from heatproof.errors import ImageError
from heatproof.images.raw import Format, RawImage, check_pixel_count, grey_if_equal

__all__ = ["RawImage", "read_image", "read_mask"]

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"

# what Pillow raises for a damaged file; each is turned into one ImageError
_DAMAGED: tuple[type[Exception], ...] = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


def read_image(path: str | Path) -> RawImage:
    """Read a PNG, JPEG or DICOM file, recognised by its content.

    PNG: 1 to 16 bits, grey, colour or palette; a 16-bit *colour* PNG is read with 8 bits a channel. JPEG: grey, RGB,
    CMYK. The EXIF orientation is applied, alpha is composited over black, and a colour image whose channels are all
    equal is grey. DICOM: see `heatproof.images.dicom.read_dicom`.

    Raises:
        ImageError: the file is missing, unreadable, truncated, too large or of another format; the message names it.
    """
    kind = _format(path)
    if kind == "dicom":
        from heatproof.images.dicom import read_dicom

        return read_dicom(path)
    return _read_picture(path, kind)


def read_mask(path: str | Path, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Read a region from a PNG or JPEG file: bool `[H, W]`, True where the picture is not black.

    JPEG blurs what it stores, so there a pixel belongs to the region from half of full brightness on.

    Args:
        path: the file.
        size: (height, width) that the mask must have, that of its image.

    Raises:
        ImageError: as `read_image`; the file is a DICOM file; the mask is not of `size`.
    """
    kind = _format(path)
    if kind == "dicom":
        raise ImageError(f"{path}: a mask must be a PNG or JPEG picture, this is a DICOM file. Convert it to PNG.")
    raw = _read_picture(path, kind)
    if size is not None and raw.size != tuple(size):
        raise ImageError(
            f"{path}: the mask has {raw.size[0]} x {raw.size[1]} pixels (height x width), "
            f"its image {size[0]} x {size[1]}. Store the mask at the size of the image."
        )
    brightest = raw.pixels.max(axis=2) if raw.pixels.ndim == 3 else raw.pixels
    return np.asarray(brightest >= 0.5 if kind == "jpeg" else brightest > 0)


def _format(path: str | Path) -> Format:
    try:
        with Path(path).open("rb") as file:
            head = file.read(132)
    except FileNotFoundError:
        raise ImageError(
            f"{path}: no such file. Check the path in the table, or give the folder it is relative to."
        ) from None
    except OSError as error:
        raise ImageError(f"{path}: cannot be opened ({error.strerror}).") from None
    if head.startswith(_PNG):
        return "png"
    if head.startswith(_JPEG):
        return "jpeg"
    if head[128:132] == b"DICM" or _starts_like_a_data_set(head):
        return "dicom"
    what = "unknown format" if head else "the file is empty"
    raise ImageError(f"{path}: {what}. Images must be PNG, JPEG or DICOM: export it again or convert it.")


def _starts_like_a_data_set(head: bytes) -> bool:
    """A DICOM file without preamble begins with an element of group 0002 or 0008, in either byte order."""
    little = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"
    big = head[:2] in (b"\x00\x02", b"\x00\x08") and head[2:3] == b"\x00"
    return len(head) >= 16 and (little or big)


def _read_picture(path: str | Path, kind: Format) -> RawImage:
    if kind == "png":
        _check_png_chunks(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            with Image.open(path, formats=[kind.upper()]) as image:
                check_pixel_count(image.height, image.width, path)
                if kind == "png" and getattr(image, "n_frames", 1) > 1:
                    raise ImageError(
                        f"{path}: an animated PNG of {getattr(image, 'n_frames', 1)} frames; store one frame."
                    )
                image.load()
                pixels, bits = _pixels(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except _DAMAGED as error:
        raise ImageError(f"{path}: the {kind.upper()} cannot be read ({error}). Export or copy it again.") from error
    return RawImage(pixels, bits, kind)


def _pixels(image: Image.Image) -> tuple[NDArray[np.float32], int]:
    """The intensities of a loaded picture, alpha over black, and the depth of one channel."""
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float32)
        if "transparency" in image.info:
            values[values == image.info["transparency"]] = 0
        return values / np.float32(65535), 16
    bits = 1 if image.mode == "1" else 8
    if image.has_transparency_data:
        rgba = np.asarray(image.convert("RGBA"), dtype=np.float32) / np.float32(255)
        return grey_if_equal(rgba[..., :3] * rgba[..., 3:]), bits
    values = np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    return grey_if_equal(values).astype(np.float32) / np.float32(255), bits


def _check_png_chunks(path: str | Path) -> None:
    """Raise `ImageError` where a PNG ends early or a checksum is wrong: Pillow decodes some of these without a word."""
    data = memoryview(Path(path).read_bytes())
    at, name = len(_PNG), b""
    while name != b"IEND":
        length = int.from_bytes(data[at : at + 4])
        end = at + 12 + length
        name = bytes(data[at + 4 : at + 8])
        if end > len(data):
            raise ImageError(f"{path}: the PNG is truncated ({len(data)} bytes). Export or copy it again.")
        if zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end]):
            raise ImageError(
                f"{path}: the PNG is damaged (wrong checksum in its {name!r} part). Export or copy it again."
            )
        at = end
