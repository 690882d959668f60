"""What every reader returns: pixels in [0, 1] with 0 = black; and what every reader refuses before it allocates."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from heatproof.errors import ImageError

Format = Literal["png", "jpeg", "dicom"]

MAX_PIXELS = 2**26
"""Images above this number of pixels (8192 x 8192) are refused before they are decoded."""

MAX_BYTES = 2**30
"""Files above this size (1 GiB) are refused before they are read, and so is what a file would inflate to."""


@dataclass(frozen=True, eq=False)
class RawImage:
    """A stored image: `pixels` float32 `[H, W]` (grey) or `[H, W, 3]` (colour) in [0, 1], 0 = black.

    `bits` is the stored depth of one channel, `format` what the file is.
    """

    pixels: NDArray[np.float32]
    bits: int
    format: Format

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


def grey_if_equal(pixels: NDArray[Any]) -> NDArray[Any]:
    """`[H, W]` where the channels of `[H, W, 3]` are all equal, else the pixels as they are."""
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        return pixels[..., 0]
    return pixels


def read_bytes(path: str | Path) -> bytes:
    """The whole file.

    Raises:
        ImageError: it is missing, cannot be opened or is larger than `MAX_BYTES`.
    """
    try:
        size = Path(path).stat().st_size
        if size > MAX_BYTES:
            raise ImageError(
                f"{path}: a file of {size} bytes is more than the {MAX_BYTES} that are read. "
                "Store a single frame, or scale the image down first."
            )
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise ImageError(
            f"{path}: no such file. Check the path in the table, or give the folder it is relative to."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise ImageError(f"{path}: cannot be opened ({getattr(error, 'strerror', None) or error}).") from None


def check_pixel_count(height: int, width: int, path: object) -> None:
    """Raise `ImageError` for an image without pixels or with more than `MAX_PIXELS`."""
    if height < 1 or width < 1:
        raise ImageError(f"{path}: an image of {height} x {width} pixels holds nothing; export it again.")
    if height * width > MAX_PIXELS:
        raise ImageError(
            f"{path}: {height} x {width} pixels are more than the {MAX_PIXELS} that are read "
            "(a damaged header, or a file made to fill the memory). Scale the image down first."
        )
