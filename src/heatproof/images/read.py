"""Read an image or a mask, whatever the file is called: its first bytes say what it is."""

import re
import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile

from heatproof.checks import check_count
from heatproof.errors import ImageError, near_names
from heatproof.images.codestream import declared_shape
from heatproof.images.raw import Format, RawImage, check_pixel_count, grey_if_equal, read_bytes

__all__ = ["RawImage", "read_image", "read_mask"]

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"

_CHOICES = ("frame", "window")
_CHOSEN = re.compile(r"#(\w+=\w*(?:&\w+=\w*)*)$")

# what Pillow raises for a damaged file; each is turned into one ImageError
_DAMAGED: tuple[type[Exception], ...] = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, LookupError, OverflowError, MemoryError),
    *(struct.error, zlib.error, Image.DecompressionBombError),
)


def read_image(path: str | Path, *, frame: int | None = None, window: int | None = None) -> RawImage:
    """Read a PNG, JPEG or DICOM file, recognised by its content.

    PNG: 1 to 16 bits, grey, colour or palette; 16-bit grey *with alpha* is read with 8 bits a channel. JPEG: grey, RGB,
    CMYK. The EXIF orientation is applied, alpha is composited over black, and a colour image whose channels are all
    equal is grey. DICOM: see `heatproof.images.dicom`.

    Args:
        path: the file; for DICOM it may end in a choice such as `scan.dcm#frame=3`, `scan.dcm#window=2` or
            `scan.dcm#frame=3&window=2`, so that a table of samples can name one frame of a file.
        frame: the frame of a multi-frame DICOM file, from 1.
        window: the window of a DICOM file that offers several, from 1; by default its VOI LUT, else its first window.

    Raises:
        ImageError: the file is missing, unreadable, truncated, too large or of another format, or has no such frame or
            window; the message names it.
    """
    file, chosen = _choice(path)
    for name, number in (("frame", frame), ("window", window)):
        if number is not None and name in chosen:
            raise ImageError(f"{path}: the {name} is chosen both in the path and by {name}={number!r}. Keep one.")
        if number is not None:
            chosen[name] = check_count(name, number)
    content = read_bytes(file)
    kind = _format(content, path)
    if kind == "dicom":
        from heatproof.images.dicom import decode_dicom

        return decode_dicom(content, path, frame=chosen.get("frame"), window=chosen.get("window"))
    if chosen:
        raise ImageError(f"{path}: this is a {kind.upper()} picture; only DICOM files have a {' or '.join(chosen)}.")
    return _read_picture(content, path, kind)


def read_mask(path: str | Path, size: tuple[int, int] | None = None) -> NDArray[np.bool_]:
    """Read a region from a PNG or JPEG file: bool `[H, W]`, True where the picture is not black.

    JPEG blurs what it stores, so there a pixel belongs to the region from half of full brightness on.

    Args:
        path: the file.
        size: (height, width) that the mask must have, that of its image.

    Raises:
        ImageError: as `read_image`; the file is a DICOM file; the mask is not of `size`.
    """
    content = read_bytes(path)
    kind = _format(content, path)
    if kind == "dicom":
        raise ImageError(f"{path}: a mask must be a PNG or JPEG picture, this is a DICOM file. Convert it to PNG.")
    raw = _read_picture(content, path, kind)
    if size is not None and raw.size != tuple(size):
        raise ImageError(
            f"{path}: the mask has {raw.size[0]} x {raw.size[1]} pixels (height x width), "
            f"its image {size[0]} x {size[1]}. Store the mask at the size of the image."
        )
    brightest = raw.pixels.max(axis=2) if raw.pixels.ndim == 3 else raw.pixels
    return np.asarray(brightest >= 0.5 if kind == "jpeg" else brightest > 0)


def _choice(path: str | Path) -> tuple[str, dict[str, int]]:
    """The file and what the end of its path chooses: `a.dcm#frame=3&window=1` is frame 3 and window 1 of `a.dcm`."""
    found = _CHOSEN.search(str(path))
    if found is None:
        return str(path), {}
    chosen: dict[str, int] = {}
    for part in found[1].split("&"):
        name, number = part.split("=")
        if name not in _CHOICES:
            raise ImageError(f"{path}: {name!r} cannot be chosen in a path. {near_names(name, _CHOICES)}")
        if name in chosen or not number.isdecimal():
            raise ImageError(f"{path}: give {name} once, as a whole number from 1, for instance #{name}=1.")
        chosen[name] = int(number)
    return str(path)[: found.start()], chosen


def _format(content: bytes, path: str | Path) -> Format:
    if content.startswith(_PNG):
        return "png"
    if content.startswith(_JPEG):
        return "jpeg"
    if content[128:132] == b"DICM" or _starts_like_a_data_set(content[:132]):
        return "dicom"
    what = "unknown format" if content else "the file is empty"
    raise ImageError(f"{path}: {what}. Images must be PNG, JPEG or DICOM: export it again or convert it.")


def _starts_like_a_data_set(head: bytes) -> bool:
    """A DICOM file without preamble begins with an element of group 0002 or 0008, in either byte order."""
    little = head[:2] in (b"\x02\x00", b"\x08\x00") and head[3:4] == b"\x00"
    big = head[:2] in (b"\x00\x02", b"\x00\x08") and head[2:3] == b"\x00"
    return len(head) >= 16 and (little or big)


def _read_picture(content: bytes, path: str | Path, kind: Format) -> RawImage:
    """The picture, once its own header has been found to be of a size that is read, and its checksums right."""
    if kind == "png":
        if content[12:16] == b"IHDR":
            check_pixel_count(int.from_bytes(content[20:24]), int.from_bytes(content[16:20]), path)
        _check_png_chunks(content, path)
    elif declared := declared_shape(content):
        check_pixel_count(declared.rows, declared.columns, path)
    try:
        with Image.open(BytesIO(content), formats=[kind.upper()]) as image:
            check_pixel_count(image.height, image.width, path)
            if kind == "png" and getattr(image, "n_frames", 1) > 1:
                raise ImageError(f"{path}: an animated PNG of {getattr(image, 'n_frames', 1)} frames; store one frame.")
            pixels, bits = _pixels(image, content)
    except ImageError:
        raise
    except _DAMAGED as error:
        raise ImageError(f"{path}: the {kind.upper()} cannot be read ({error}). Export or copy it again.") from error
    return RawImage(pixels, bits, kind)


def _pixels(image: ImageFile, content: bytes) -> tuple[NDArray[np.float32], int]:
    """The intensities of an opened picture, upright, alpha over black, and the depth of one channel."""
    if image.tile and image.tile[0].args in ("RGB;16B", "RGBA;16B"):
        return _deep_colour(content), 16
    image.load()
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        values = np.asarray(upright).astype(np.float32)
        if "transparency" in upright.info:
            values[values == upright.info["transparency"]] = 0
        return values / np.float32(65535), 16
    bits = 1 if upright.mode == "1" else 8
    if upright.has_transparency_data:
        rgba = np.asarray(upright.convert("RGBA"), dtype=np.float32) / np.float32(255)
        return grey_if_equal(rgba[..., :3] * rgba[..., 3:]), bits
    values = np.asarray(upright.convert("L" if upright.mode in ("1", "L") else "RGB"))
    return grey_if_equal(values).astype(np.float32) / np.float32(255), bits


def _deep_colour(content: bytes) -> NDArray[np.float32]:
    """A PNG of 16 bits a channel, of which Pillow keeps 8: read twice, as big-endian words and as little-endian ones.

    Pillow keeps the upper byte of each word, so the second time it keeps the lower one.
    """
    halves = []
    for order in "BL":
        with Image.open(BytesIO(content), formats=["PNG"]) as image:
            image.tile = [tile._replace(args=f"{image.mode};16{order}") for tile in image.tile]
            halves.append(np.asarray(ImageOps.exif_transpose(image)).astype(np.float32))
            transparent = image.info.get("transparency")
    values = halves[0] * 256 + halves[1]
    if transparent is not None:
        values[(values == transparent).all(axis=2)] = 0
    values /= np.float32(65535)
    return grey_if_equal(values[..., :3] * values[..., 3:] if values.shape[2] == 4 else values)


def _check_png_chunks(content: bytes, path: str | Path) -> None:
    """Raise `ImageError` where a PNG ends early or a checksum is wrong: Pillow decodes some of these without a word."""
    data = memoryview(content)
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
