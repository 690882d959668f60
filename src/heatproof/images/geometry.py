"""The way of an image to the model and back: one affine map that image, mask, boxes, points and heatmap all follow.

Pixel (i, j) covers [j, j + 1] x [i, i + 1]; points and boxes are (x, y) in these units, so pixel centres lie at halves
(what torch calls `align_corners=False`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from scipy import ndimage

from heatproof.errors import InputError, near_names
from heatproof.images.raw import MAX_PIXELS

Fit = Literal["resize", "crop", "letterbox"]
Size = tuple[int, int]


@dataclass(frozen=True)
class Geometry:
    """Where a stored image lies in the model's input: resampled to `content`, then cropped or padded to `size`.

    All sizes are (height, width) in pixels. `content` is the size of the whole source image after resampling, `offset`
    (y, x) is where its top left corner lies in the input: negative where the crop cuts, positive where it is padded.
    A source coordinate u becomes `u * content / source_size + offset` on each axis. Made by `fit_geometry`.
    """

    fit: Fit
    source_size: Size
    size: Size
    content: Size
    offset: Size

    @property
    def scale(self) -> tuple[float, float]:
        """Input pixels for one source pixel, (y, x)."""
        return self.content[0] / self.source_size[0], self.content[1] / self.source_size[1]

    def image(self, pixels: ArrayLike) -> NDArray[np.float32]:
        """Source pixels `[H, W]` or `[H, W, 3]` to the input's `[h, w]` or `[h, w, 3]`, float32.

        Bilinear, antialiased where it shrinks; what the letterbox pads is 0, black.

        Raises:
            InputError: the pixels are not of the source's size.
        """
        array = np.asarray(pixels, dtype=np.float32)
        if array.ndim == 3:
            return np.stack([self.image(array[..., c]) for c in range(array.shape[2])], axis=2)
        self._check("image", array, self.source_size)
        out = np.zeros(self.size, dtype=np.float32)
        inner, outer = self._windows()
        out[inner] = _resample(array, self.content)[outer]
        return out

    def mask(self, mask: ArrayLike) -> NDArray[np.bool_]:
        """A source region `[H, W]` to the input's `[h, w]`, both bool.

        An input pixel belongs to the region when at least half of it is covered. A connected part of the region that
        covers no input pixel wholly (a line or a dot finer than the input's grid) keeps the pixels that it covers at
        least half as much as its best covered one, so that no visible lesion vanishes and none grows by a rim.

        Raises:
            InputError: the mask is not of the source's size.
        """
        array = np.asarray(mask, dtype=bool)
        self._check("mask", array, self.source_size)
        rows, columns = (self._overlap(axis) for axis in (0, 1))
        out: NDArray[np.bool_] = rows @ array.astype(np.float32) @ columns.T >= 0.5 - 1e-5
        parts, _ = ndimage.label(array, structure=np.ones((3, 3)))
        for number, (y, x) in enumerate(ndimage.find_objects(parts), start=1):
            coverage = rows[:, y] @ (parts[y, x] == number).astype(np.float32) @ columns[:, x].T
            if 0 < coverage.max() < 1 - 1e-5:
                out |= coverage >= coverage.max() / 2
        return out

    def points(self, points: ArrayLike) -> NDArray[np.float64]:
        """Source points `[N, 2]` (x, y) to input coordinates, also where the crop cut them off."""
        return np.asarray(self._points(points) * self.scale[::-1] + self.offset[::-1])

    def inverse_points(self, points: ArrayLike) -> NDArray[np.float64]:
        """Input points `[N, 2]` (x, y) to source coordinates."""
        return np.asarray((self._points(points) - self.offset[::-1]) / self.scale[::-1])

    def boxes(self, boxes: ArrayLike) -> NDArray[np.float64]:
        """Source boxes `[N, 4]` (x0, y0, x1, y1) to input coordinates; not clipped, so that the inverse is exact."""
        return self.points(_corners(boxes)).reshape(-1, 4)

    def inverse_boxes(self, boxes: ArrayLike) -> NDArray[np.float64]:
        """Input boxes `[N, 4]` (x0, y0, x1, y1) to source coordinates."""
        return self.inverse_points(_corners(boxes)).reshape(-1, 4)

    def inverse_map(self, values: ArrayLike, fill: float = np.nan) -> NDArray[np.float32]:
        """A heatmap over the input, `[h, w]`, to the source's `[H, W]`, float32; `fill` where the model saw nothing.

        Raises:
            InputError: the heatmap is not of the input's size.
        """
        array = np.asarray(values, dtype=np.float32)
        self._check("heatmap", array, self.size)
        inner, outer = self._windows()
        cut = [(w.start, n - w.stop) for w, n in zip(outer, self.content, strict=True)]
        out = _resample(np.pad(array[inner], cut, mode="edge"), self.source_size)
        out[~self.seen] = fill
        return out

    def inverse_mask(self, mask: ArrayLike) -> NDArray[np.bool_]:
        """A region drawn over the input, `[h, w]`, to the source's `[H, W]`, both bool.

        A source pixel belongs to the region when its centre lies in it; what the crop cut off does not.

        Raises:
            InputError: the mask is not of the input's size.

        Example:
            >>> halved = fit_geometry("resize", (2, 4), (1, 2))
            >>> halved.inverse_mask([[False, True]]).astype(int).tolist()
            [[0, 0, 1, 1], [0, 0, 1, 1]]
        """
        array = np.asarray(mask, dtype=bool)
        self._check("mask", array, self.size)
        # clipped, so that what the crop cut off has a number too; `seen` leaves it out
        at = [np.floor(self._centres(axis)).astype(int).clip(0, self.size[axis] - 1) for axis in (0, 1)]
        return np.asarray(array[np.ix_(*at)] & self.seen)

    @property
    def seen(self) -> NDArray[np.bool_]:
        """The source pixels whose centre lies inside the input, bool `[H, W]`: False is what the crop cut off."""
        inside = []
        for axis in (0, 1):
            centres = self._centres(axis)
            inside.append((centres >= 0) & (centres < self.size[axis]))
        return np.logical_and.outer(*inside)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; `from_dict` is the inverse."""
        sizes = {name: list(getattr(self, name)) for name in ("source_size", "size", "content", "offset")}
        return {"fit": self.fit, **sizes}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Geometry":
        """The geometry that `to_dict` described."""
        return cls(
            fit=values["fit"],
            source_size=_pair(values["source_size"], "source_size"),
            size=_pair(values["size"], "size"),
            content=_pair(values["content"], "content"),
            offset=(int(values["offset"][0]), int(values["offset"][1])),
        )

    def _windows(self) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Where content and input overlap: as slices of the input, and as slices of the content."""
        inner, outer = [], []
        for size, content, offset in zip(self.size, self.content, self.offset, strict=True):
            start, stop = max(0, offset), min(size, offset + content)
            inner.append(slice(start, stop))
            outer.append(slice(start - offset, stop - offset))
        return (inner[0], inner[1]), (outer[0], outer[1])

    def _centres(self, axis: int) -> NDArray[np.float64]:
        """Where the centres of the source's pixels lie in the input, on one axis."""
        return np.asarray((np.arange(self.source_size[axis]) + 0.5) * self.scale[axis] + self.offset[axis])

    def _overlap(self, axis: int) -> NDArray[np.float32]:
        """`[size, source]`: which part of each input pixel each source pixel covers, on one axis."""
        edges = np.arange(self.source_size[axis] + 1) * self.scale[axis] + self.offset[axis]
        pixels = np.arange(self.size[axis])[:, None]
        covered = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
        return np.asarray(covered.clip(min=0), dtype=np.float32)

    @staticmethod
    def _points(points: ArrayLike) -> NDArray[np.float64]:
        return np.asarray(points, dtype=np.float64).reshape(-1, 2)

    @staticmethod
    def _check(what: str, array: NDArray[Any], size: Size) -> None:
        if array.shape != size:
            raise InputError(f"The {what} has shape {array.shape}, this geometry is for (height, width) = {size}.")


def fit_geometry(fit: Fit, source_size: Size, size: Size, *, short_side: int | None = None) -> Geometry:
    """The geometry that takes an image of `source_size` to the model's `size`, both (height, width) in pixels.

    Args:
        fit: `resize` (to `size`, aspect ratio not kept), `crop` (the short side to `short_side`, then the centre; as
            torchvision's Resize and CenterCrop) or `letterbox` (the whole image, aspect ratio kept, padded with black).
        source_size: of the stored image.
        size: of the model's input.
        short_side: of the resized image before the crop; by default the smallest that fills the input. Only for `crop`.

    Raises:
        InputError: unknown fit, a size that is not positive, a short side that does not fill the input.

    Example:
        >>> geometry = fit_geometry("crop", (400, 600), (224, 224), short_side=256)
        >>> geometry.content, geometry.offset
        ((256, 384), (-16, -80))
        >>> geometry.points([[300, 200]]).tolist()  # the centre stays the centre
        [[112.0, 112.0]]
    """
    source, target = _pair(source_size, "source_size"), _pair(size, "size")
    if fit not in get_args(Fit):
        raise InputError(f"Unknown fit {fit!r}. {near_names(str(fit), get_args(Fit))}")
    if short_side is not None and fit != "crop":
        raise InputError(f"short_side belongs to fit='crop', got fit={fit!r}: leave it out.")
    if fit == "resize":
        return Geometry(fit, source, target, content=target, offset=(0, 0))
    content = _covering(source, target, short_side) if fit == "crop" else _contained(source, target)
    # torchvision rounds the crop's corner, and so do we: published pipelines are met to the pixel
    top, left = (round((c - t) / 2) for c, t in zip(content, target, strict=True))
    return Geometry(fit, source, target, content=content, offset=(-top, -left))


def _covering(source: Size, target: Size, short_side: int | None) -> Size:
    """The source's size once its short side is `short_side`; refused where that leaves part of the target empty."""
    short, long = (0, 1) if source[0] <= source[1] else (1, 0)
    smallest = max(target[short], -(-target[long] * source[short] // source[long]))
    if short_side is None:
        short_side = smallest
    if short_side < smallest:
        raise InputError(
            f"short_side={short_side} does not fill the input {target} from an image of {source}: "
            f"it must be at least {smallest}. Leave it out, or use fit='letterbox'."
        )
    content = [short_side, short_side]
    content[long] = short_side * source[long] // source[short]
    if content[0] * content[1] > MAX_PIXELS:
        raise InputError(
            f"An image of {source} is too elongated to crop {target} from. Use fit='letterbox' or 'resize'."
        )
    return content[0], content[1]


def _contained(source: Size, target: Size) -> Size:
    """The largest size of the source's aspect ratio inside the target, at least one pixel on each axis."""
    scale = min(t / s for t, s in zip(target, source, strict=True))
    height, width = (max(1, round(s * scale)) for s in source)
    return height, width


def _resample(array: NDArray[np.float32], size: Size) -> NDArray[np.float32]:
    image = Image.fromarray(np.ascontiguousarray(array, dtype=np.float32))
    resized = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.float32)


def _corners(boxes: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4).reshape(-1, 2)


def _pair(values: Any, name: str) -> Size:
    height, width = (int(v) for v in values)
    if height < 1 or width < 1:
        raise InputError(f"{name} must be (height, width) of at least one pixel, got {tuple(values)}.")
    return height, width
