"""Stored values to shown intensities: the greyscale pipeline of PS3.3 C.11 and PS3.4 N.2, numbers in, numbers out."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import special


@dataclass(frozen=True, eq=False)
class Table:
    """A lookup table: `entries` float64 `[N]`, the input value that `first` maps, the largest value that it may hold.

    Example:
        >>> Table(np.array([5.0, 7.0, 9.0]), first=10, top=15.0)(np.array([0, 10, 11, 99])).tolist()
        [5.0, 5.0, 7.0, 9.0]
    """

    entries: NDArray[np.float64]
    first: int
    top: float

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """The entry of each value; what lies beyond either end takes the entry there (PS3.3 C.11.1.1.1)."""
        index = np.rint(values).astype(np.int64) - self.first
        return np.asarray(self.entries[np.clip(index, 0, len(self.entries) - 1)])


class Rescale(NamedTuple):
    """Modality value = slope · stored value + intercept (PS3.3 C.11.1.1.2)."""

    slope: float = 1.0
    intercept: float = 0.0

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """The modality values of stored values."""
        return np.asarray(values * self.slope + self.intercept, dtype=np.float64)


class Window(NamedTuple):
    """A window of modality values and the function that it applies: LINEAR, LINEAR_EXACT or SIGMOID."""

    centre: float
    width: float
    function: str = "LINEAR"

    @property
    def usable(self) -> bool:
        """Whether the standard allows it: the width of LINEAR is at least 1, that of the others more than 0."""
        finite = np.isfinite(self.centre) and np.isfinite(self.width)
        return bool(finite and (self.width >= 1 or (self.width > 0 and self.function != "LINEAR")))

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """The values in [0, 1]; see `window`."""
        return window(values, self.centre, self.width, self.function)


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


def full_range(values: NDArray[Any], inside: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The range of the values that lie `inside` (of all where none do) stretched to [0, 1]."""
    kept = values[inside] if inside.any() else values
    low, high = float(kept.min()), float(kept.max())
    return np.asarray(np.clip((values - low) / (high - low or 1.0), 0, 1), dtype=np.float64)
