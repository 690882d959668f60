"""From density to picture: exposure, the scanner that reads it, and writing burnt into it."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from heatproof.datasets.phantom.anatomy import Array, Mask

# 5 x 7 pixels a letter, one number a row
_LETTERS = {
    "A": (14, 17, 17, 31, 17, 17, 17),
    "B": (30, 17, 17, 30, 17, 17, 30),
    "E": (31, 16, 16, 30, 16, 16, 31),
    "L": (16, 16, 16, 16, 16, 16, 31),
    "O": (14, 17, 17, 17, 17, 17, 14),
    "P": (30, 17, 17, 30, 16, 16, 16),
    "R": (30, 17, 17, 30, 20, 18, 17),
    "T": (31, 4, 4, 4, 4, 4, 4),
}
LETTERS = "".join(_LETTERS)


@dataclass(frozen=True)
class Scanner:
    """How a device renders a film: `blur` (sigma) and `border` (widest collimated edge) in image halves."""

    name: str
    contrast: float = 1.0
    gamma: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    border: float = 0.0


SCANNERS = (
    Scanner("A"),
    Scanner("B", contrast=0.8, gamma=0.8, blur=0.02, noise=0.02, border=0.16),
    Scanner("C", contrast=1.15, gamma=1.3, noise=0.006),
    Scanner("D", contrast=0.9, gamma=1.1, blur=0.03, noise=0.01, border=0.08),
)


def exposed(density: Array, random: np.random.Generator) -> Array:
    """The film: dose, contrast, gamma and noise differ from image to image."""
    noisy = density + random.uniform(0.008, 0.02) * random.standard_normal(density.shape)
    film = random.uniform(0.92, 1.08) * (noisy - 0.4) + random.uniform(0.44, 0.5)
    return np.asarray(np.clip(film, 0, 1) ** random.uniform(0.92, 1.08))


def scanned(film: Array, scanner: Scanner, random: np.random.Generator) -> tuple[Array, Mask]:
    """The film as `scanner` shows it, and where it shows anything: beyond its border the picture is black."""
    size = len(film)
    sharp = ndimage.gaussian_filter(film, scanner.blur * size / 2)
    toned = np.clip(scanner.contrast * (sharp - 0.5) + 0.5, 0, 1) ** scanner.gamma
    noisy = np.clip(toned + scanner.noise * random.standard_normal(film.shape), 0, 1)
    top, bottom, left, right = np.rint(random.uniform(0.2, 1, 4) * scanner.border * size / 2).astype(int)
    shown = np.zeros(film.shape, dtype=bool)
    shown[top : size - bottom, left : size - right] = True
    return noisy * shown, shown


def glyphs(text: str) -> Mask:
    """The pixels of a line of letters, bool `[7, 6 N - 1]`.

    >>> for row in glyphs("LT")[4:]:
    ...     print("".join("#" if pixel else "." for pixel in row))
    #.......#..
    #.......#..
    #####...#..
    """
    rows = np.array([_LETTERS[letter] for letter in text])
    letters = np.pad(rows[:, :, None] >> np.arange(4, -1, -1) & 1, ((0, 0), (0, 0), (0, 1)))
    return letters.transpose(1, 0, 2).reshape(7, -1)[:, :-1].astype(bool)


def writing(text: str, size: int) -> Mask:
    """The letters at the scale of an image of `size` pixels."""
    return np.kron(glyphs(text), np.ones((max(1, size // 112),) * 2, dtype=bool))


def burnt_in(film: Array, text: str, random: np.random.Generator) -> tuple[Array, tuple[int, int, int, int]]:
    """The film with bright letters in one of its upper corners, and the box about them (x0, y0, x1, y1 in pixels)."""
    letters, size = writing(text, len(film)), len(film)
    height, width = letters.shape
    margin_x, margin_y = random.integers(1, max(2, size // 16), 2)
    x = margin_x if random.random() < 0.5 else size - margin_x - width
    written = film.copy()
    written[margin_y : margin_y + height, x : x + width][letters] = random.uniform(0.85, 1)
    return written, (int(x), int(margin_y), int(x + width), int(margin_y + height))
