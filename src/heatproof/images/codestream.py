"""What a compressed picture says of itself in its header, looked at before a decoder sees it.

Decoders allocate what that header asks for, and some end the whole process over one that is damaged.
"""

from typing import NamedTuple

# JPEG and JPEG-LS markers that start a frame: all SOFn and SOF55, without DHT, JPG and DAC
_FRAMES = (*(set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}), 0xF7)
_ALONE = (0x01, *range(0xD0, 0xD9))

_J2K = b"\xff\x4f\xff\x51"  # a codestream of JPEG 2000, and the file format that may wrap it (T.800 I.5.1)
_JP2 = b"\x00\x00\x00\x0cjP  \r\n\x87\n"


class Shape(NamedTuple):
    """Rows and columns in pixels, samples a pixel, bits a sample."""

    rows: int
    columns: int
    samples: int
    bits: int


def declared_shape(stream: bytes) -> Shape | None:
    """The shape that a JPEG, JPEG-LS or JPEG 2000 codestream declares; None where it is something else or broken off.

    Sources: ITU-T T.81 B.2.2, T.87 C.2.2, T.800 A.5.1.
    """
    if stream[:12] == _JP2:
        stream = stream[max(stream.find(_J2K), 0) :]
    if stream[:4] == _J2K:
        return _jpeg_2000(stream)
    return _jpeg(stream) if stream[:2] == b"\xff\xd8" else None


def _jpeg_2000(stream: bytes) -> Shape | None:
    if len(stream) < 43:
        return None
    right, bottom, left, top = (int.from_bytes(stream[at : at + 4]) for at in (8, 12, 16, 20))
    return Shape(bottom - top, right - left, int.from_bytes(stream[40:42]), (stream[42] & 0x7F) + 1)


def _jpeg(stream: bytes) -> Shape | None:
    at = 2
    while at + 9 < len(stream) and stream[at] == 0xFF:
        marker, length = stream[at + 1], int.from_bytes(stream[at + 2 : at + 4])
        if marker in _FRAMES:
            rows, columns = int.from_bytes(stream[at + 5 : at + 7]), int.from_bytes(stream[at + 7 : at + 9])
            return Shape(rows, columns, stream[at + 9], stream[at + 4])
        if marker == 0xFF:  # fill byte
            at += 1
        elif marker in _ALONE:
            at += 2
        else:
            at += 2 + length
    return None
