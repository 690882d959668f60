"""ROI masks as Chung et al. had them drawn: filled rectangles, white on black, on the model's input of 224 x 224 pixels.

Source: https://github.com/ugent-korea/attention_maps.
"""

import numpy as np
from numpy.typing import NDArray

from heatproof.images.geometry import Geometry, fit_geometry

_INPUT = (224, 224)


def edges(lesion: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """The left, upper, right and lower edge of a region, the last two one past its last pixel."""
    rows, columns = np.flatnonzero(lesion.any(axis=1)), np.flatnonzero(lesion.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def drawn_on_crop(lesion: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The rectangle about a lesion `[H, W]` on an input cut from the centre of the image, its short side being 256."""
    return _drawn(lesion, fit_geometry("crop", _size(lesion), _INPUT, short_side=256))


def drawn_on_resized(lesion: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The rectangle about a lesion `[H, W]` on an input that the whole image was resized to."""
    return _drawn(lesion, fit_geometry("resize", _size(lesion), _INPUT))


def _drawn(lesion: NDArray[np.bool_], way: Geometry) -> NDArray[np.bool_]:
    shown, drawn = way.mask(lesion), np.zeros(_INPUT, dtype=bool)
    if shown.any():
        left, top, right, bottom = edges(shown)
        drawn[top:bottom, left:right] = True
    return drawn


def _size(lesion: NDArray[np.bool_]) -> tuple[int, int]:
    return lesion.shape[0], lesion.shape[1]
