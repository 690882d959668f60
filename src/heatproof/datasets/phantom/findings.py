"""The findings: the density that each adds to a chest, and its exact outline.

Each is a function of the scene and of a generator; it returns the density `[size, size]` to add and the outline, bool.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from heatproof.datasets.phantom.anatomy import SIDES, Anatomy, Array, Mask, diaphragm, dome, grain, heart, step


@dataclass(frozen=True)
class Scene:
    """What findings are drawn into: a chest, the coordinates and the share of lung of each pixel, its vessels."""

    anatomy: Anatomy
    x: Array
    y: Array
    lungs: Array
    vessels: Array


def nodule(scene: Scene, random: np.random.Generator) -> tuple[Array, Mask]:
    """Two or three dense balls with sharp edges."""
    added, inside = np.zeros_like(scene.x), np.zeros(scene.x.shape, dtype=bool)
    for _ in range(random.integers(2, 4)):
        distance = np.hypot(*_spot(scene, random)) / random.uniform(0.085, 0.14)
        thickness = 0.7 + 0.3 * np.sqrt(1 - np.clip(distance, 0, 1) ** 2)
        added = np.maximum(added, thickness * step(1 - distance, 0.07))
        inside |= distance <= 1
    return random.uniform(0.5, 0.6) * added, inside


def opacity(scene: Scene, random: np.random.Generator) -> tuple[Array, Mask]:
    """A large ragged patch of one lung, granular: its texture tells it apart, more than its density."""
    x, size = scene.x, len(scene.x)
    dx, dy = _spot(scene, random)
    ragged = np.hypot(dx, dy) / random.uniform(0.45, 0.7) + 0.2 * grain(size, 0.09, random)
    parts, _ = ndimage.label((ragged < 1) & (scene.lungs > 0.5) & (np.sign(x) == np.sign(x - dx)))
    inside = parts == parts[np.hypot(dx, dy) == 0]  # the part that holds the place itself
    covered = ndimage.gaussian_filter(inside.astype(np.float64), 0.008 * size)
    texture = 0.62 + 0.54 * grain(size, 0.022, random)
    return random.uniform(0.22, 0.3) * covered * texture, inside


def _spot(scene: Scene, random: np.random.Generator) -> tuple[Array, Array]:
    """Coordinates about a random place inside the lungs, a little stretched."""
    inside = np.argwhere(scene.lungs > 0.8)
    row, column = inside[random.integers(len(inside))]
    return scene.x - scene.x[row, column], (scene.y - scene.y[row, column]) * random.uniform(0.85, 1.2)


def effusion(scene: Scene, random: np.random.Generator) -> tuple[Array, Mask]:
    """Fluid at the base of one lung: it hides the diaphragm, and its surface climbs towards the chest wall."""
    side = int(random.choice(SIDES))
    width, base = scene.anatomy.lung(side)
    lateral = np.clip((side * scene.x - scene.anatomy.mediastinum) / width, 0, 1)
    surface = base - random.uniform(0.16, 0.4) * (0.6 + lateral**2)
    lung = scene.lungs * (side * scene.x > 0)
    fluid = lung * step(scene.y - surface)
    return (scene.anatomy.aeration + 0.03) * fluid - scene.vessels * fluid, (lung > 0.25) & (scene.y > surface)


def pneumothorax(scene: Scene, random: np.random.Generator) -> tuple[Array, Mask]:
    """Air around one lung: the lung has shrunk towards its base, behind it nothing but air, its edge is a fine line."""
    side = int(random.choice(SIDES))
    _, base = scene.anatomy.lung(side)
    shrink = random.uniform(0.72, 0.86)
    gap = 0.6 * (1 - shrink)
    shrunk = dome(scene.anatomy, side, side * scene.x + gap, base + (scene.y - base) / shrink)
    cavity = scene.lungs * (side * scene.x > 0) * step(base - 0.05 - scene.y)
    edge = 4 * shrunk * (1 - shrunk) * cavity
    return 0.12 * edge - (0.08 + scene.vessels) * cavity * (1 - shrunk), (cavity > 0.5) & (shrunk < 0.5)


def cardiomegaly(scene: Scene, random: np.random.Generator) -> tuple[Array, Mask]:  # noqa: ARG001
    """The silhouette of the heart, which `enlarged_heart` has made part of the anatomy: nothing is added to it."""
    floor = sum(diaphragm(scene.anatomy, side, side * scene.x) * step(side * scene.x, 0.08) for side in SIDES)
    return np.zeros_like(scene.x), (heart(scene.anatomy, scene.x, scene.y) > 0) & (scene.y < floor)


DRAWN: dict[str, Callable[[Scene, np.random.Generator], tuple[Array, Mask]]] = {
    finding.__name__: finding for finding in (opacity, nodule, effusion, cardiomegaly, pneumothorax)
}
