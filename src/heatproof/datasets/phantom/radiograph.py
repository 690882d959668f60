"""Draw one synthetic chest radiograph: a patient's anatomy, one exposure of it, findings with their exact outlines."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from heatproof.datasets.phantom.anatomy import (
    Anatomy,
    Array,
    Mask,
    bump,
    chest,
    enlarged_heart,
    grain,
    lungs,
    posed_grid,
)
from heatproof.datasets.phantom.film import exposed
from heatproof.datasets.phantom.findings import DRAWN, Scene


@dataclass(frozen=True)
class Radiograph:
    """`pixels` in [0, 1], `lungs` and the `lesions` by name bool, all `[size, size]`."""

    pixels: Array
    lesions: Mapping[str, Mask]
    lungs: Mask


def draw_radiograph(
    anatomy: Anatomy,
    findings: Mapping[str, np.random.Generator],
    size: int,
    random: np.random.Generator,
    *,
    conspicuity: float = 1.0,
    side_marker: bool = True,
) -> Radiograph:
    """One exposure of a patient.

    Args:
        anatomy: the patient.
        findings: each finding of `DRAWN` that the film shows, with the generator it is drawn from. Where that is not
            `random`, the film without the finding is the same but for the finding.
        size: pixels a side.
        random: of all that is no finding.
        conspicuity: factor on the density of the findings; the size of a heart is not a matter of density.
        side_marker: whether most films bear the letter that tells left from right.
    """
    x, y = posed_grid(size, random)
    if "cardiomegaly" in findings:
        anatomy = enlarged_heart(anatomy, findings["cardiomegaly"])
    air = lungs(anatomy, x, y)
    vessels = _vessels(air, x, y, random)
    density = chest(anatomy, air, x, y)
    density += vessels + _shadows(x, y, random)
    scene, lesions = Scene(anatomy, x, y, air, vessels), {}
    for name, own in findings.items():
        added, lesions[name] = DRAWN[name](scene, own)
        density += conspicuity * added
    if side_marker:
        density += _side_marker(x, y, random)
    return Radiograph(exposed(density, random), lesions, air > 0.5)


def _vessels(air: Array, x: Array, y: Array, random: np.random.Generator) -> Array:
    """Branching shadows, dense at the hila."""
    hila = bump(np.hypot(np.abs(x) - 0.22, y + 0.05), 0.3)
    lines = np.clip(1 - np.abs(grain(len(x), 0.07, random)) * 2.5, 0, None)
    return air * (0.02 + 0.08 * hila) * lines


def _shadows(x: Array, y: Array, random: np.random.Generator) -> Array:
    """Smooth shadows that mean nothing: folds of skin, breasts, uneven exposure."""
    total = random.uniform(-0.05, 0.05) * x + random.uniform(-0.05, 0.05) * y
    for _ in range(random.integers(1, 5)):
        centre = random.uniform(-0.8, 0.8, 2)
        total = total + random.uniform(-0.05, 0.08) * bump(
            np.hypot(x - centre[0], y - centre[1]), random.uniform(0.2, 0.5)
        )
    return np.asarray(total)


def _side_marker(x: Array, y: Array, random: np.random.Generator) -> Array:
    """The side marker in a corner of most films: bright, and no sign of anything."""
    if random.random() > 0.7:
        return np.zeros_like(x)
    corner_x, corner_y = random.choice([-0.84, 0.84]), random.choice([-0.84, 0.7])
    upright = (np.abs(x - corner_x + 0.04) < 0.025) & (np.abs(y - corner_y) < 0.1)
    foot = (np.abs(x - corner_x) < 0.06) & (np.abs(y - corner_y - 0.08) < 0.025)
    return np.asarray(0.5 * (upright | foot))
