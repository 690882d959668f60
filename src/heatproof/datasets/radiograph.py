"""Draw one synthetic chest radiograph: a patient's anatomy, one exposure of it, perhaps a finding with its exact outline.

Coordinates are x to the right and y down, both from -1 to 1 over the image. Density is what makes a film white: air 0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage, special

Array = NDArray[np.float64]
FINDINGS = ("normal", "opacity", "nodule")


@dataclass(frozen=True)
class Anatomy:
    """What stays the same in all images of one patient; lengths in image halves, see `draw_anatomy` for their ranges."""

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


@dataclass(frozen=True)
class Radiograph:
    """`pixels` in [0, 1], `lesion` and `lungs` bool, all `[size, size]`; `lesion` is empty without a finding."""

    pixels: Array
    lesion: NDArray[np.bool_]
    lungs: NDArray[np.bool_]


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


def draw_radiograph(anatomy: Anatomy, finding: str, size: int, random: np.random.Generator) -> Radiograph:
    """One exposure of a patient, `size` x `size` pixels, with the `finding` at a random place inside the lungs."""
    x, y = _posed_grid(size, random)
    lungs = _lungs(anatomy, x, y)
    density = _chest(anatomy, lungs, x, y)
    density += _vessels(lungs, x, y, random) + _shadows(x, y, random)
    added, lesion = _finding(finding, lungs, x, y, random)
    density += added
    density += _marker(x, y, random)
    return Radiograph(_exposed(density, random), lesion, lungs > 0.5)


def _posed_grid(size: int, random: np.random.Generator) -> tuple[Array, Array]:
    """The coordinates that each pixel shows: patients stand a little turned, shifted, near or far."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    angle, scale = random.uniform(-0.06, 0.06), random.uniform(0.93, 1.1)
    shift_x, shift_y = random.uniform(-0.06, 0.06, 2)
    x, y = axis[None, :] - shift_x, axis[:, None] - shift_y
    return scale * (np.cos(angle) * x + np.sin(angle) * y), scale * (np.cos(angle) * y - np.sin(angle) * x)


def _step(distance: Array, softness: float = 0.02) -> Array:
    """0 to 1 where `distance` turns positive."""
    return np.asarray(special.expit(distance / softness))


def _bump(distance: Array, width: float) -> Array:
    return np.asarray(np.exp(-((distance / width) ** 2)))


def _lungs(a: Anatomy, x: Array, y: Array) -> Array:
    """How much lung lies behind each pixel, 0 to 1: two domes with the heart cut out of them."""
    heart_x, heart_y, heart_width, heart_height = a.heart
    heart = _step(1 - ((x - heart_x) / heart_width) ** 2 - ((y - heart_y) / heart_height) ** 2, 0.15)
    field = np.zeros_like(x)
    for side, width, base in ((-1, a.lung_width[0], a.lung_base[0]), (1, a.lung_width[1], a.lung_base[1])):
        u = side * x
        t = np.clip((y - a.lung_top) / (base - a.lung_top), 0, None)
        outer = a.mediastinum + width * np.sqrt(1 - np.clip(1 - t, 0, 1) ** 2.4) * (1 + 0.06 * t)
        inner = a.mediastinum * (0.7 + 0.5 * _bump(y + 0.05, 0.25))
        diaphragm = base + 0.5 * (u - a.mediastinum - 0.45 * width) ** 2
        field += _step(u - inner) * _step(outer - u, 0.015) * _step(diaphragm - y, 0.015) * _step(y - a.lung_top)
    return field * (1 - heart)


def _chest(a: Anatomy, lungs: Array, x: Array, y: Array) -> Array:
    """Soft tissue, spine, ribs and clavicles, with the lungs' air taken out."""
    width = 0.45 + (a.body - 0.45) * _step(y - a.shoulders, 0.09)
    body = _step(width - np.abs(x), 0.03)
    tissue = 0.62 - 0.12 * (x / a.body) ** 2 + 0.1 * _step(y - 0.55, 0.12)
    spine = 0.1 * _bump(x, 0.13) + 0.05 * _bump(x, 0.08) * (1 + 0.5 * np.cos(2 * np.pi * y / 0.17))
    return body * (tissue + spine + _bones(a, x, y)) - a.aeration * lungs


def _bones(a: Anatomy, x: Array, y: Array) -> Array:
    spacing, phase, slope, bow = a.ribs
    u = np.abs(x)
    cage = _step(u - 0.09) * _step(0.82 - u, 0.04) * _step(0.62 - y, 0.05) * _step(y + 0.86, 0.04)
    back = y - slope * 0.4 * u - bow * (u - 0.3) ** 2
    front = y + slope * u - 0.2
    ribs = _bands(back, spacing, phase) + 0.5 * _bands(front, spacing, phase + 0.07) * _step(u - 0.3, 0.06)
    height, tilt = a.clavicles
    clavicles = _bump(y - height + tilt * (u - 0.1) ** 2, 0.035) * _step(u - 0.06) * _step(0.7 - u, 0.05)
    return np.asarray(a.rib_density * (cage * ribs + 1.2 * clavicles))


def _bands(height: Array, spacing: float, phase: float) -> Array:
    """Bands of a quarter of their spacing."""
    turn = (height - phase) / spacing
    return np.asarray(np.exp(-(((turn - np.round(turn)) / 0.17) ** 4)))


def _grain(size: int, scale: float, random: np.random.Generator) -> Array:
    """Noise of unit variance with grains of `scale` image halves, but at least a pixel."""
    sigma = max(0.6, scale * size / 2)
    noise = ndimage.gaussian_filter(random.standard_normal((size, size)), sigma, mode="wrap")
    return np.asarray(noise / noise.std())


def _vessels(lungs: Array, x: Array, y: Array, random: np.random.Generator) -> Array:
    """Branching shadows, dense at the hila."""
    hila = _bump(np.hypot(np.abs(x) - 0.22, y + 0.05), 0.3)
    lines = np.clip(1 - np.abs(_grain(len(x), 0.07, random)) * 2.5, 0, None)
    return lungs * (0.02 + 0.08 * hila) * lines


def _shadows(x: Array, y: Array, random: np.random.Generator) -> Array:
    """Smooth shadows that mean nothing: folds of skin, breasts, uneven exposure."""
    total = random.uniform(-0.05, 0.05) * x + random.uniform(-0.05, 0.05) * y
    for _ in range(random.integers(1, 5)):
        centre = random.uniform(-0.8, 0.8, 2)
        total = total + random.uniform(-0.05, 0.08) * _bump(
            np.hypot(x - centre[0], y - centre[1]), random.uniform(0.2, 0.5)
        )
    return np.asarray(total)


def _finding(
    finding: str, lungs: Array, x: Array, y: Array, random: np.random.Generator
) -> tuple[Array, NDArray[np.bool_]]:
    """The density that a finding adds, and its exact outline."""
    if finding == "normal":
        return np.zeros_like(x), np.zeros(x.shape, dtype=bool)
    draw = _nodules if finding == "nodule" else _opacity
    return draw(lungs, x, y, random)


def _spot(lungs: Array, x: Array, y: Array, random: np.random.Generator) -> tuple[Array, Array]:
    """Coordinates about a random place inside the lungs, a little stretched."""
    inside = np.argwhere(lungs > 0.8)
    row, column = inside[random.integers(len(inside))]
    return x - x[row, column], (y - y[row, column]) * random.uniform(0.85, 1.2)


def _nodules(lungs: Array, x: Array, y: Array, random: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """Two or three dense balls with sharp edges."""
    added, inside = np.zeros_like(x), np.zeros(x.shape, dtype=bool)
    for _ in range(random.integers(2, 4)):
        distance = np.hypot(*_spot(lungs, x, y, random)) / random.uniform(0.085, 0.14)
        thickness = 0.7 + 0.3 * np.sqrt(1 - np.clip(distance, 0, 1) ** 2)
        added = np.maximum(added, thickness * _step(1 - distance, 0.07))
        inside |= distance <= 1
    return random.uniform(0.5, 0.6) * added, inside


def _opacity(lungs: Array, x: Array, y: Array, random: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """A large ragged patch of one lung, granular: its texture tells it apart, more than its density."""
    dx, dy = _spot(lungs, x, y, random)
    ragged = np.hypot(dx, dy) / random.uniform(0.45, 0.7) + 0.2 * _grain(len(x), 0.09, random)
    parts, _ = ndimage.label((ragged < 1) & (lungs > 0.5) & (np.sign(x) == np.sign(x - dx)))
    inside = parts == parts[np.hypot(dx, dy) == 0]  # the part that holds the place itself
    covered = ndimage.gaussian_filter(inside.astype(np.float64), 0.008 * len(x))
    grain = 0.62 + 0.54 * _grain(len(x), 0.022, random)
    return random.uniform(0.22, 0.3) * covered * grain, inside


def _marker(x: Array, y: Array, random: np.random.Generator) -> Array:
    """The side marker in a corner of most films: bright, and no sign of anything."""
    if random.random() > 0.7:
        return np.zeros_like(x)
    corner_x, corner_y = random.choice([-0.84, 0.84]), random.choice([-0.84, 0.7])
    upright = (np.abs(x - corner_x + 0.04) < 0.025) & (np.abs(y - corner_y) < 0.1)
    foot = (np.abs(x - corner_x) < 0.06) & (np.abs(y - corner_y - 0.08) < 0.025)
    return np.asarray(0.5 * (upright | foot))


def _exposed(density: Array, random: np.random.Generator) -> Array:
    """The film: dose, contrast, gamma and noise differ from image to image."""
    noisy = density + random.uniform(0.008, 0.02) * random.standard_normal(density.shape)
    film = random.uniform(0.92, 1.08) * (noisy - 0.4) + random.uniform(0.44, 0.5)
    return np.asarray(np.clip(film, 0, 1) ** random.uniform(0.92, 1.08))
