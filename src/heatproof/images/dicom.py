"""DICOM to the picture that a viewer would show: the pipelines of PS3.3 C.11 and PS3.4 N.2.

What is read and in which order:

* **Modality LUT**: the modality LUT sequence, else rescale slope and intercept (of the frame where it has its own).
* **VOI**: a window chosen by its number; else the first VOI LUT; else the first window (LINEAR, LINEAR_EXACT or SIGMOID;
  one that the standard forbids, such as a width of 0, counts as absent); else the full range of the data without its
  padding values.
* **Presentation**: inverted for MONOCHROME1 or a presentation LUT shape INVERSE, once where both say so (PS3.3
  C.7.6.3.1.2, C.8.11.3.1.2).
* **Colour** (RGB, YBR, palette) is scaled by its depth and has none of these steps.

Only the elements needed for it are decoded: no identifying one, so none can reach a message.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof.errors import ImageError
from heatproof.images.dicom_header import Header, read_header
from heatproof.images.dicom_pixels import stored_values
from heatproof.images.greyscale import full_range
from heatproof.images.raw import RawImage, grey_if_equal, read_bytes


def read_dicom(path: str | Path, *, frame: int | None = None, window: int | None = None) -> RawImage:
    """Read one frame of a DICOM image as it would be shown; the module's text says in which steps.

    Args:
        path: the file; with or without preamble and file meta.
        frame: the frame of a multi-frame file, from 1.
        window: the window of a file that offers several, from 1; it then also goes before a VOI LUT.

    Raises:
        ImageError: unreadable, truncated or contradictory file, no pixel data, too large, several frames and none
            chosen, no such frame or window, a colour model or compression that is not supported.
    """
    return decode_dicom(read_bytes(path), path, frame=frame, window=window)


def decode_dicom(content: bytes, path: str | Path, *, frame: int | None, window: int | None) -> RawImage:
    """`read_dicom` of a file's content; `path` is its name in messages."""
    header = read_header(content, path, frame)
    chosen = _chosen_window(header, window, path)
    stored = stored_values(header, frame, path)
    values = _shown_grey(stored, header, chosen) if header.grey else _shown_colour(stored, header)
    return RawImage(grey_if_equal(values).astype(np.float32), header.stored, "dicom")


def _chosen_window(header: Header, window: int | None, path: str | Path) -> int | None:
    """The index of the chosen window."""
    if window is None:
        return None
    count = len(header.windows) if header.grey else 0
    if not 1 <= window <= count:
        raise ImageError(f"{path}: there is no window {window}; the file offers {count}, counted from 1.")
    if not header.windows[window - 1].usable:
        raise ImageError(f"{path}: the standard forbids the width of window {window}. Choose another, or none.")
    return window - 1


def _shown_grey(stored: NDArray[Any], header: Header, chosen: int | None) -> NDArray[np.float64]:
    """Stored values to what is shown, in [0, 1]."""
    values = header.modality(stored)
    if chosen is None and header.voi is not None:
        shown = np.minimum(header.voi(values) / header.voi.top, 1.0)
    elif header.windows and header.windows[chosen or 0].usable:
        shown = header.windows[chosen or 0](values)
    else:
        shown = full_range(values, ~_padded(stored, header))
    return 1 - shown if header.inverse else shown


def _padded(stored: NDArray[Any], header: Header) -> NDArray[np.bool_]:
    """Where pixels only fill up the rectangle."""
    if header.padding is None:
        return np.zeros(stored.shape, dtype=bool)
    low, high = header.padding
    return (stored >= low) & (stored <= high)


def _shown_colour(stored: NDArray[Any], header: Header) -> NDArray[np.float64]:
    """RGB or palette indices to RGB in [0, 1]."""
    if header.palette is not None:
        return np.stack([table(stored) / table.top for table in header.palette], axis=2)
    return stored / float(2**header.stored - 1)
