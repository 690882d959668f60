"""Regions as annotators store them (masks, boxes, polygons, run lengths), and the pixels that they cover.

Coordinates are pixels of the stored image, x to the right and y down; the centre of the pixel in row r and column c is
(c + 0.5, r + 0.5). Boxes and polygons cover the pixels whose centre lies inside, on the left and upper edge included.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatproof.errors import ImageError, InputError
from heatproof.images.geometry import Fit, fit_geometry
from heatproof.images.read import read_mask

KINDS = ("mask", "box", "polygon", "rle")
# the end of a mask's path that says on which way to the model it was drawn
_DRAWN_ON_INPUT = re.compile(r"#fit=(resize|crop|letterbox)(?:&short_side=(\d+))?$")


def read_region(kind: str, data: str, size: tuple[int, int] | None) -> NDArray[np.bool_]:
    """What one annotation covers, bool `[H, W]`.

    Args:
        kind: `mask`, `box`, `polygon` or `rle`.
        data: the path of a mask, see `read_mask_region`; else text, see `parse_boxes`, `parse_polygons`, `parse_rle`,
            of which "" is annotated as empty.
        size: (H, W) of the stored image.

    Raises:
        ImageError: unreadable, malformed, outside the image or of another size.
    """
    return read_mask_region(data, size) if kind == "mask" else _DRAW[kind](_PARSE[kind](data), size)


def check_region(kind: str, data: str) -> None:
    """Raise `ImageError` where an annotation is wrong whatever the size of its image."""
    if kind == "mask":
        read_mask_region(data, None)
    else:
        _PARSE[kind](data)


def read_mask_region(data: str, size: tuple[int, int] | None) -> NDArray[np.bool_]:
    """A mask, bool `[H, W]`: of the stored image, or one that was drawn on the model's input and is carried back.

    Args:
        data: the path of the mask. Where it was drawn on the model's input it ends in the way of the image to there, such
            as `mask.png#fit=resize` or `mask.png#fit=crop&short_side=256` (see `heatproof.images.geometry.fit_geometry`;
            the input has the size of the mask). What that way cuts off the image is outside the region.
        size: (H, W) of the stored image; None: the mask as it is.

    Raises:
        ImageError: unreadable, of another size, or on a way that an image of this size cannot go.
    """
    drawn = _DRAWN_ON_INPUT.search(data)
    if drawn is None:
        return read_mask(data, size)
    mask = read_mask(data[: drawn.start()])
    if size is None:
        return mask
    input_size = (mask.shape[0], mask.shape[1])
    try:
        way = fit_geometry(cast(Fit, drawn[1]), size, input_size, short_side=int(drawn[2]) if drawn[2] else None)
    except InputError as error:
        raise ImageError(f"{data}: cannot be carried back to its image. {error}") from error
    return way.inverse_mask(mask)


def sticks_out(kind: str, data: str, size: tuple[int, int]) -> bool:
    """Whether a part of the boxes or polygons lies outside the image of `size` (H, W), where it is cut."""
    if kind not in ("box", "polygon"):
        return False
    parts = [np.reshape(part, (-1, 2)) for part in _PARSE[kind](data)]
    return any((part < 0).any() or (part > (size[1], size[0])).any() for part in parts)


def parse_boxes(text: str) -> NDArray[np.float64]:
    """Boxes `[N, 4]` (x0, y0, x1, y1, pixels of the stored image) of "x0 y0 x1 y1;x0 y0 x1 y1"; "" is no box.

    Raises:
        ImageError: not four finite numbers a box, or a box without area.

    Example:
        >>> parse_boxes("10 20 30.5 40;1 2 3 4").tolist()
        [[10.0, 20.0, 30.5, 40.0], [1.0, 2.0, 3.0, 4.0]]
    """
    boxes = [_parse_box(part) for part in text.split(";") if part.strip()]
    return np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _parse_box(text: str) -> NDArray[np.float64]:
    box = _numbers(text.split())
    if box is None or len(box) != 4:
        raise ImageError(f"A box is four numbers 'x0 y0 x1 y1', several are separated by ';', got {text!r}.")
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        raise ImageError(f"A box needs x0 < x1 and y0 < y1, got {text!r}: are these width and height?")
    return box


def _numbers(values: Any) -> NDArray[np.float64] | None:
    """A flat list of finite numbers, or None where it is something else."""
    try:
        found = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    return found if found.ndim == 1 and np.isfinite(found).all() else None


def boxes_to_mask(boxes: ArrayLike, size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose centre lies in one of the boxes: bool `[H, W]`; a box finer than a pixel keeps the one it is in.

    Args:
        boxes: `[N, 4]` x0, y0, x1, y1 in pixels; what sticks out of the image is cut.
        size: (height, width) of the image.

    Raises:
        ImageError: a box lies wholly outside the image.

    Example:
        >>> boxes_to_mask([[1, 0, 3, 2]], (2, 4)).astype(int).tolist()
        [[0, 1, 1, 0], [0, 1, 1, 0]]
    """
    mask = np.zeros(size, dtype=bool)
    for x0, y0, x1, y1 in np.asarray(boxes, dtype=np.float64).reshape(-1, 4):
        if x1 <= 0 or y1 <= 0 or x0 >= size[1] or y0 >= size[0]:
            raise ImageError(
                f"The box {x0:g} {y0:g} {x1:g} {y1:g} lies outside its image of {size[0]} x {size[1]} pixels "
                "(height x width). Boxes are 'x0 y0 x1 y1' in pixels of the stored image."
            )
        mask[_pixels_between(y0, y1, size[0]), _pixels_between(x0, x1, size[1])] = True
    return mask


def _pixels_between(low: float, high: float, length: int) -> slice:
    low, high = max(low, 0.0), min(high, float(length))
    first, last = int(np.ceil(low - 0.5)), int(np.ceil(high - 0.5))
    if first >= last:
        first = min(int((low + high) / 2), length - 1)
        last = first + 1
    return slice(first, last)


def parse_polygons(text: str) -> list[NDArray[np.float64]]:
    """Polygons, each `[N, 2]` (x, y), of "x y x y x y;x y ..." or of COCO's JSON `[[x, y, x, y, x, y], ...]`.

    "" and "[]" are no polygon.

    Raises:
        ImageError: not at least three pairs of finite numbers a polygon, or all its corners on one line.

    Example:
        >>> parse_polygons("0 0 4 0 4 3")[0].tolist() == parse_polygons("[[0, 0, 4, 0, 4, 3]]")[0].tolist()
        True
    """
    listed = text.strip().startswith("[")
    polygons = _json(text) if listed else [part.split() for part in text.split(";") if part.strip()]
    return [_parse_polygon(polygon) for polygon in polygons]


def _parse_polygon(values: Any) -> NDArray[np.float64]:
    corners = _numbers(values)
    if corners is None or len(corners) < 6 or len(corners) % 2:
        raise ImageError(
            "A polygon is at least three corners 'x y x y x y', several polygons are separated by ';' or are lists of "
            f"numbers [[x, y, x, y, x, y], ...], got {_short(values)}."
        )
    corners = corners.reshape(-1, 2)
    if np.linalg.matrix_rank(corners - corners[0]) < 2:
        raise ImageError(f"The corners of a polygon lie on one line, it has no area: {_short(values)}.")
    return corners


def polygons_to_mask(polygons: Sequence[ArrayLike], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels whose centre lies in one of the polygons: bool `[H, W]`.

    Several polygons are united, as in COCO; where one crosses itself, inside is what an odd number of its edges
    separates from the outside. A polygon within the image that holds no pixel's centre keeps the pixel of its middle.

    Args:
        polygons: each `[N, 2]` corners (x, y) in pixels, closed by itself; what sticks out of the image is cut.
        size: (height, width) of the image.

    Raises:
        ImageError: a polygon covers nothing of the image.

    Example:
        >>> polygons_to_mask([[[0, 0], [4, 0], [0, 4]]], (4, 4)).astype(int).tolist()
        [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    """
    mask = np.zeros(size, dtype=bool)
    for polygon in polygons:
        mask |= _inside(np.asarray(polygon, dtype=np.float64), size)
    return mask


def _inside(corners: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.bool_]:
    height, width = size
    crossed = np.zeros((height, width + 1), dtype=bool)  # an odd number of edges lies just before a pixel's centre
    for edge in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        (x0, y0), (x1, y1) = sorted(edge, key=lambda corner: corner[1])  # polygons that share it round it alike
        first, last = np.clip(np.ceil(np.array([y0, y1]) - 0.5), 0, height).astype(int)
        if first < last:
            rows = np.arange(first, last)
            x = x0 + (rows + 0.5 - y0) * (x1 - x0) / (y1 - y0)
            crossed[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(int)] ^= True
    mask = np.logical_xor.accumulate(crossed, axis=1)[:, :width]
    if not mask.any():
        low, high = corners.min(axis=0), corners.max(axis=0)
        if (low < 0).any() or (high > (width, height)).any():
            raise ImageError(
                f"The polygon from {low[0]:g} {low[1]:g} to {high[0]:g} {high[1]:g} (x y) covers nothing of its image "
                f"of {height} x {width} pixels (height x width). Corners are 'x y' in pixels of the stored image."
            )
        x, y = np.minimum((low + high) / 2, (width - 1, height - 1)).astype(int)
        mask[y, x] = True
    return mask


def parse_rle(text: str) -> tuple[list[int], tuple[int, int] | None]:
    """Run lengths of COCO (lin2014microsoft) and the size (H, W) that they come with, None where they come without.

    The runs alternate between outside (first) and inside, down the columns, from left to right. Accepted are COCO's JSON
    `{"size": [H, W], "counts": ...}`, with or without size, its counts alone, and both as a list or as compressed text.

    Raises:
        ImageError: anything else, or a negative run.

    Example:
        >>> parse_rle('{"size": [2, 3], "counts": [1, 2, 3]}')
        ([1, 2, 3], (2, 3))
        >>> parse_rle("123")
        ([1, 2, 3], None)
    """
    # compressed text may begin with a bracket, but its last character is one of '0' to 'O'
    found = _json(text) if text.strip().endswith(("}", "]")) else text.strip()
    size = found.get("size") if isinstance(found, Mapping) else None
    counts = found.get("counts") if isinstance(found, Mapping) else found
    counts = _decompressed(counts) if isinstance(counts, str) else counts
    if not isinstance(counts, list) or any(type(count) is not int for count in counts):
        raise ImageError(
            'Run lengths are {"size": [H, W], "counts": ...} or the counts alone, whole numbers in a list or COCO\'s '
            f"compressed text, got {_short(text)}."
        )
    if any(count < 0 for count in counts):
        raise ImageError(f"A run length is negative ({min(counts)}): {_short(text)} is damaged.")
    if size is None:
        return counts, None
    if not isinstance(size, list) or len(size) != 2 or any(type(side) is not int for side in size):
        raise ImageError(f"The size of run lengths is [height, width], got {_short(size)}.")
    return counts, (size[0], size[1])


def _decompressed(text: str) -> list[int]:
    """COCO's compressed counts: groups of five bits from the lowest, the sixth bit says that another one follows.

    The last group carries the sign, and from the fourth count on the difference to the last but one is stored.
    """
    counts: list[int] = []
    value = shift = 0
    for character in text:
        group = ord(character) - 48
        if not 0 <= group < 64:
            raise ImageError(f"{character!r} does not occur in COCO's compressed run lengths: {_short(text)}.")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise ImageError(f"The compressed run lengths end within a number: {_short(text)} was cut.")
    return counts


def rle_to_mask(rle: tuple[Sequence[int], tuple[int, int] | None], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of run lengths as `parse_rle` returns them: bool `[H, W]`; no runs at all are an empty region.

    Raises:
        ImageError: the runs are of an image of another size, or do not fill theirs.

    Example:
        >>> rle_to_mask(([1, 2, 3], (2, 3)), (2, 3)).astype(int).tolist()
        [[0, 1, 0], [1, 0, 0]]
    """
    counts, stored = rle
    if stored is not None and stored != tuple(size):
        raise ImageError(
            f"The run lengths are of an image of {stored[0]} x {stored[1]} pixels (height x width), this one has "
            f"{size[0]} x {size[1]}. Annotate the stored image, or export the run lengths at its size."
        )
    if not counts:
        return np.zeros(size, dtype=bool)
    if sum(counts) != size[0] * size[1]:
        raise ImageError(
            f"The run lengths add up to {sum(counts)} pixels, the image has {size[0]} x {size[1]} = "
            f"{size[0] * size[1]} (height x width): they belong to another image or were cut."
        )
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(size[::-1]).T


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"Not the JSON of a region ({error}): {_short(text)}.") from None


def _short(value: Any, limit: int = 60) -> str:
    """A value for a message, which may be megabytes long."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


_PARSE: Mapping[str, Callable[[str], Any]] = {"box": parse_boxes, "polygon": parse_polygons, "rle": parse_rle}
_DRAW: Mapping[str, Callable[..., NDArray[np.bool_]]] = {
    "box": boxes_to_mask,
    "polygon": polygons_to_mask,
    "rle": rle_to_mask,
}
