"""How a heatmap is shown: limits, colours and the region's outline, one rule for the command line and the report.

Scaling is for the eye alone: maps stay raw. The limit is the 99th percentile of |a|, so that one bright pixel does not
darken the rest. Signed maps diverge about zero with symmetric limits (blue below, red above); other maps run from zero
up. The stronger a value, the less transparent its colour, so the image stays visible where the map is silent. What
cannot be ranked is grey: values that are not finite, and a map that is constant.
"""

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heatproof.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Bytes = NDArray[np.uint8]
Mask = NDArray[np.bool_]

UNDEFINED = 255  # the level of pixels that have no place on the scale
OPACITY = 0.85  # of the strongest values
PERCENTILE = 99.0
_TOP = 254  # levels 0..254: an odd number, so that a signed scale has a middle
_GREY = 140


def as_array(values: Any) -> NDArray[Any]:
    """An array, a PIL image or a tensor, wherever it lies and whatever its gradient, as an array.

    >>> as_array([[0.0, 1.0]]).shape
    (1, 2)
    """
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def undefined_reason(map: NDArray[Any]) -> str | None:
    """Why the map `[H, W]` has no scale, in words for a label; None where it has one.

    >>> undefined_reason(np.full((2, 2), 0.5))
    'constant map (0.5)'
    """
    finite = map[np.isfinite(map)]
    if not finite.size:
        return "no finite value"
    return f"constant map ({finite[0]:.3g})" if finite.min() == finite.max() else None


def is_signed(map: NDArray[Any]) -> bool:
    """Whether the map holds a negative value: the guess where a method's own declaration is not at hand."""
    return bool((map[np.isfinite(map)] < 0).any())


def robust_limits(map: NDArray[Any], *, signed: bool) -> tuple[float, float] | None:
    """The ends of the colour scale, (-l, l) or (0, l), with l the 99th percentile of |a|; None for an undefined map.

    Where fewer than 1 % of the pixels are not zero, l is the maximum of |a|. A map that is not signed shows its negative
    values, should it hold any, as zero.

    >>> robust_limits(np.array([[0.0, -2.0]]), signed=True)
    (-1.98, 1.98)
    """
    if undefined_reason(map) is not None:
        return None
    finite = map[np.isfinite(map)].astype(np.float64)
    strength = np.abs(finite) if signed else finite.clip(0)
    limit = float(np.percentile(strength, PERCENTILE)) or float(strength.max())
    # a map declared positive of which nothing is positive still has a scale: all of it is at zero
    limit = limit or 1.0
    return (-limit if signed else 0.0, limit)


def levels(map: NDArray[Any], *, signed: bool, limits: tuple[float, float] | None = None) -> Bytes:
    """The colour level of each pixel, uint8 `[H, W]`: 0 to 254 between the limits, 255 where undefined.

    Values beyond the limits take the outermost level. Zero of a signed map is level 127 exactly, and -x lies as far below
    it as x above. `limits` are `robust_limits` by default.
    """
    if undefined_reason(map) is not None:
        return np.full(map.shape, UNDEFINED, np.uint8)
    low, high = _checked_limits(limits, signed) or robust_limits(map, signed=signed) or (0.0, 1.0)
    finite = np.isfinite(map)
    share = ((np.where(finite, map, 0).astype(np.float64) - low) / (high - low)).clip(0, 1)
    if signed:  # rounding away from the middle on both sides keeps x and -x symmetric
        half = _TOP // 2
        scaled = half + np.copysign(np.floor(np.abs(share - 0.5) * _TOP + 0.5), share - 0.5)
    else:
        scaled = np.floor(share * _TOP + 0.5)
    return np.where(finite, scaled, UNDEFINED).astype(np.uint8)


@lru_cache
def colours(signed: bool) -> Bytes:
    """The colour of each level, uint8 `[256, 3]`: viridis, or ColorBrewer's RdBu without its darkest ends.

    Both can be told apart with any form of colour blindness. Level 127 of the signed one is its neutral colour.
    """
    from matplotlib import colormaps

    levels = _TOP + 1
    if signed:
        cut = 30
        rgba = colormaps["RdBu_r"].resampled(levels + 2 * cut)(np.arange(cut, cut + levels))
    else:
        rgba = colormaps["viridis"](np.linspace(0, 1, levels))
    table = np.vstack([rgba[:, :3] * 255, np.full((1, 3), _GREY)])
    bytes_: Bytes = np.rint(table).astype(np.uint8)
    return bytes_


def alphas(signed: bool, opacity: float = OPACITY) -> Bytes:
    """How opaque each level is, uint8 `[256]`: in proportion to the value's strength, `opacity` at the strongest."""
    if not 0 <= opacity <= 1:
        raise InputError(f"opacity must lie in [0, 1], got {opacity}.")
    level = np.arange(_TOP + 1)
    strength = np.abs(level / (_TOP / 2) - 1) if signed else level / _TOP
    return np.rint(np.append(strength, 1.0) * opacity * 255).astype(np.uint8)


def overlay(
    image: Any,
    map: Any,
    *,
    signed: bool | None = None,
    roi: Any | None = None,
    opacity: float = OPACITY,
    limits: tuple[float, float] | None = None,
) -> Bytes:
    """The map over its image, uint8 `[H, W, 3]`.

    Args:
        image: uint8 or float in [0, 1], `[H, W]` or `[H, W, 3]`: an array, a tensor or a PIL image.
        map: `[H, W]`, raw: an array or a tensor, as `explain` gives it.
        signed: whether the method is signed (`methods()[name].signed`); by default, whether the map is below zero anywhere.
        roi: `[H, W]`, counted where > 0: its outline is drawn, white along its inner and black along its outer border.
        opacity: of the strongest values, 0 to 1.
        limits: ends of the colour scale in place of `robust_limits`.

    Raises:
        InputError: sizes differ, the image is neither uint8 nor in [0, 1], or limits or opacity make no scale.

    Example:
        >>> overlay(np.zeros((1, 2)), np.array([[0.0, 1.0]]), signed=True, opacity=1.0)[0].tolist()
        [[0, 0, 0], [175, 23, 42]]
    """
    base, map, roi = _rgb(as_array(image)), as_array(map), None if roi is None else as_array(roi) > 0
    for name, array in (("map", map), ("roi", roi)):
        if array is not None and array.shape != base.shape[:2]:
            raise InputError(f"The {name} must have the image's size {base.shape[:2]}, got {array.shape}.")
    signed = is_signed(map) if signed is None else signed
    level = levels(map, signed=signed, limits=limits)
    alpha = (alphas(signed, opacity) / 255.0)[level][..., None]
    blended = np.rint(base * (1 - alpha) + colours(signed)[level] * alpha).astype(np.uint8)
    if roi is not None:
        inner, outer = outline(roi)
        blended[outer], blended[inner] = 0, 255
    return blended


def outline(roi: Mask) -> tuple[Mask, Mask]:
    """The region's border, one pixel wide: (its own outermost pixels, the pixels just outside), bool `[H, W]` each."""
    from scipy.ndimage import binary_dilation, binary_erosion

    return roi & ~binary_erosion(roi), binary_dilation(roi) & ~roi


def contours(roi: Mask) -> list[NDArray[np.float64]]:
    """The region's border as closed polygons `[P, 2]` of (x, y), halfway between its pixels and the others.

    In pixels: the centre of the first pixel is (0, 0), so that a region at the image's edge is outlined at -0.5.
    """
    from skimage.measure import approximate_polygon, find_contours

    polygons = find_contours(np.pad(roi, 1).astype(np.float64), 0.5)
    return [approximate_polygon(polygon, tolerance=0.01)[:, ::-1] - 1 for polygon in polygons]


def show(
    image: Any,
    map: Any,
    roi: Any | None = None,
    *,
    signed: bool | None = None,
    limits: tuple[float, float] | None = None,
    title: str | None = None,
) -> "Figure":
    """The image beside its overlay with a colour bar, as a matplotlib figure; arguments as in `overlay`.

    A map without a scale (constant, or nothing finite) is grey and says so in its title.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize
    from matplotlib.figure import Figure

    image, map, roi = as_array(image), as_array(map), None if roi is None else as_array(roi) > 0
    signed = is_signed(map) if signed is None else signed
    figure = Figure(figsize=(8.4, 4.0), layout="constrained")
    plain, covered = figure.subplots(1, 2)
    plain.imshow(_rgb(image))
    covered.imshow(overlay(image, map, signed=signed, limits=limits))
    for axes in (plain, covered):
        axes.set_axis_off()
        for polygon in [] if roi is None else contours(roi):
            axes.plot(*polygon.T, color="black", linewidth=2.5)
            axes.plot(*polygon.T, color="white", linewidth=1.0)
    reason = undefined_reason(map)
    covered.set_title(" · ".join(part for part in (title, reason) if part))
    if reason is None:
        scale = limits or robust_limits(map, signed=signed) or (0.0, 1.0)
        colour_map = ListedColormap(colours(signed)[: _TOP + 1] / 255.0)
        figure.colorbar(ScalarMappable(Normalize(*scale), colour_map), ax=covered, shrink=0.85)
    return figure


def _rgb(image: NDArray[Any]) -> Bytes:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise InputError(f"The image must have shape [H, W] or [H, W, 3], got {image.shape}.")
    if image.dtype != np.uint8:
        if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
            raise InputError(
                "The image must be uint8 or lie in [0, 1]: undo the normalisation with Preprocessing.denormalize."
            )
        image = np.rint(image * 255).astype(np.uint8)
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def _checked_limits(limits: tuple[float, float] | None, signed: bool) -> tuple[float, float] | None:
    if limits is None:
        return None
    low, high = limits
    if not low < high or (signed and low != -high):
        raise InputError(f"limits must be (low, high) with low < high, and (-l, l) for a signed map, got {limits}.")
    return limits
