"""The proportions of a chest, and its densities without anything on top.

Coordinates are x to the right and y down, both from -1 to 1 over the image. Density is what makes a film white: air 0.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]
SIDES = (-1, 1)  # of the image: left and right


@dataclass(frozen=True)
class Anatomy:
    """What stays the same in all images of one patient; lengths in image halves, see `draw_anatomy` for their ranges.

    Pairs are of the left and the right half of the image; `heart` is its centre's x and y, half its width and height.
    """

    body: float
    shoulders: float
    lung_width: tuple[float, float]
    lung_top: float
    lung_base: tuple[float, float]
    mediastinum: float
    heart: tuple[float, float, float, float]
    ribs: tuple[float, float, float, float]
    rib_density: float
    clavicles: tuple[float, float]
    aeration: float

    def lung(self, side: int) -> tuple[float, float]:
        """Width of the lung at one of `SIDES`, and the y of its base."""
        return self.lung_width[side > 0], self.lung_base[side > 0]


def draw_anatomy(random: np.random.Generator) -> Anatomy:
    """A patient's proportions."""
    draw = random.uniform
    return Anatomy(
        body=draw(0.84, 0.98),
        shoulders=draw(-0.85, -0.65),
        lung_width=(draw(0.54, 0.66), draw(0.52, 0.64)),
        lung_top=draw(-0.84, -0.7),
        lung_base=(draw(0.38, 0.56), draw(0.44, 0.62)),
        mediastinum=draw(0.1, 0.17),
        heart=(draw(0.08, 0.18), draw(0.3, 0.42), draw(0.26, 0.4), draw(0.26, 0.36)),
        ribs=(draw(0.165, 0.21), draw(-0.1, 0.1), draw(0.1, 0.4), draw(0.35, 0.6)),
        rib_density=draw(0.04, 0.08),
        clavicles=(draw(-0.68, -0.56), draw(0.1, 0.35)),
        aeration=draw(0.3, 0.42),
    )


def enlarged_heart(anatomy: Anatomy, random: np.random.Generator) -> Anatomy:
    """The same chest with a heart clearly wider than half of it."""
    heart_x, heart_y, _, height = anatomy.heart
    return replace(anatomy, heart=(heart_x, heart_y, random.uniform(0.42, 0.52), height * random.uniform(1.0, 1.15)))


def posed_grid(size: int, random: np.random.Generator) -> tuple[Array, Array]:
    """The coordinates that each pixel shows: patients stand a little turned, shifted, near or far."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    angle, scale = random.uniform(-0.06, 0.06), random.uniform(0.93, 1.1)
    shift_x, shift_y = random.uniform(-0.06, 0.06, 2)
    x, y = axis[None, :] - shift_x, axis[:, None] - shift_y
    return scale * (np.cos(angle) * x + np.sin(angle) * y), scale * (np.cos(angle) * y - np.sin(angle) * x)


def step(distance: Array, softness: float = 0.02) -> Array:
    """0 to 1 where `distance` turns positive."""
    return np.asarray(special.expit(distance / softness))


def bump(distance: Array, width: float) -> Array:
    """1 where `distance` is 0, falling off on both sides."""
    return np.asarray(np.exp(-((distance / width) ** 2)))


def grain(size: int, scale: float, random: np.random.Generator) -> Array:
    """Noise of unit variance with grains of `scale` image halves, but at least a pixel."""
    sigma = max(0.6, scale * size / 2)
    noise = ndimage.gaussian_filter(random.standard_normal((size, size)), sigma, mode="wrap")
    return np.asarray(noise / noise.std())


def heart(a: Anatomy, x: Array, y: Array) -> Array:
    """How far inside the heart's outline: 1 at its centre, 0 on the outline, negative outside."""
    heart_x, heart_y, heart_width, heart_height = a.heart
    return 1 - ((x - heart_x) / heart_width) ** 2 - ((y - heart_y) / heart_height) ** 2


def lungs(a: Anatomy, x: Array, y: Array) -> Array:
    """How much lung lies behind each pixel, 0 to 1: two domes with the heart cut out of them."""
    field = np.zeros_like(x)
    for side in SIDES:
        field += dome(a, side, side * x, y)
    return field * (1 - step(heart(a, x, y), 0.15))


def dome(a: Anatomy, side: int, u: Array, y: Array) -> Array:
    """One lung as if there were no heart, 0 to 1; `u` counts from the midline towards the lung's own side."""
    width, base = a.lung(side)
    t = np.clip((y - a.lung_top) / (base - a.lung_top), 0, None)
    outer = a.mediastinum + width * np.sqrt(1 - np.clip(1 - t, 0, 1) ** 2.4) * (1 + 0.06 * t)
    inner = a.mediastinum * (0.7 + 0.5 * bump(y + 0.05, 0.25))
    above = diaphragm(a, side, u) - y
    return step(u - inner) * step(outer - u, 0.015) * step(above, 0.015) * step(y - a.lung_top)


def diaphragm(a: Anatomy, side: int, u: Array) -> Array:
    """The y where a lung ends below, at `u` from the midline towards the lung's own side."""
    width, base = a.lung(side)
    return base + 0.5 * (u - a.mediastinum - 0.45 * width) ** 2


def chest(a: Anatomy, air: Array, x: Array, y: Array) -> Array:
    """Soft tissue, spine, ribs and clavicles, with the lungs' air taken out."""
    width = 0.45 + (a.body - 0.45) * step(y - a.shoulders, 0.09)
    body = step(width - np.abs(x), 0.03)
    tissue = 0.62 - 0.12 * (x / a.body) ** 2 + 0.1 * step(y - 0.55, 0.12)
    spine = 0.1 * bump(x, 0.13) + 0.05 * bump(x, 0.08) * (1 + 0.5 * np.cos(2 * np.pi * y / 0.17))
    return body * (tissue + spine + _bones(a, x, y)) - a.aeration * air


def _bones(a: Anatomy, x: Array, y: Array) -> Array:
    spacing, phase, slope, bow = a.ribs
    u = np.abs(x)
    cage = step(u - 0.09) * step(0.82 - u, 0.04) * step(0.62 - y, 0.05) * step(y + 0.86, 0.04)
    back = y - slope * 0.4 * u - bow * (u - 0.3) ** 2
    front = y + slope * u - 0.2
    ribs = _bands(back, spacing, phase) + 0.5 * _bands(front, spacing, phase + 0.07) * step(u - 0.3, 0.06)
    height, tilt = a.clavicles
    clavicles = bump(y - height + tilt * (u - 0.1) ** 2, 0.035) * step(u - 0.06) * step(0.7 - u, 0.05)
    return np.asarray(a.rib_density * (cage * ribs + 1.2 * clavicles))


def _bands(height: Array, spacing: float, phase: float) -> Array:
    """Bands of a quarter of their spacing."""
    turn = (height - phase) / spacing
    return np.asarray(np.exp(-(((turn - np.round(turn)) / 0.17) ** 4)))
