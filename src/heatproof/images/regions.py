"""Regions that are not stored as a picture: boxes as text, and what they cover."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatproof.errors import ImageError


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


def _parse_box(text: str) -> list[float]:
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not np.isfinite(numbers).all():
        raise ImageError(f"A box is four numbers 'x0 y0 x1 y1', several are separated by ';', got {text!r}.")
    x0, y0, x1, y1 = numbers
    if x1 <= x0 or y1 <= y0:
        raise ImageError(f"A box needs x0 < x1 and y0 < y1, got {text!r}: are these width and height?")
    return numbers


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
