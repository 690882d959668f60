"""Who has what: the labels of the images, and the signs that may go along with one of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from heatproof.checks import check_count, check_number
from heatproof.datasets.phantom.film import LETTERS, SCANNERS
from heatproof.datasets.phantom.randomness import generator
from heatproof.errors import InputError

COMORBIDITY, PERSISTENCE = 0.2, 0.5
"""Parts of a finding's variance that all findings of a patient share, and that all images of a patient share."""


@dataclass(frozen=True)
class Shortcut:
    """Letters burnt into an upper corner of some images, which may give a label away.

    `P(letters | label) = rate + strength (1 - rate)` and `P(letters | not label) = rate (1 - strength)`: the two differ
    by `strength`, which is 0 where the letters tell nothing and 1 where they tell all. Where `rate` is how often the
    label occurs, `strength` is their correlation and `rate` how often the letters occur.
    """

    label: str
    strength: float = 1.0
    rate: float = 0.5
    text: str = "PORT"

    def __post_init__(self) -> None:
        check_number("shortcut: strength", self.strength, high=1)
        check_number("shortcut: rate", self.rate, high=1)
        if not self.text or set(self.text) - set(LETTERS):
            raise InputError(f"shortcut: text is written with the letters {' '.join(LETTERS)}, got {self.text!r}.")


@dataclass(frozen=True)
class Scanners:
    """The images come from `count` devices, the last of which may go along with a label.

    `P(last | label) = 1/count + strength (1 - 1/count)`, `P(last | not label) = (1 - strength) / count`; the other
    devices share the rest equally. With `label` None every device is as likely for every image.
    """

    count: int = 2
    label: str | None = None
    strength: float = 0.0

    def __post_init__(self) -> None:
        if check_count("scanners: count", self.count, high=len(SCANNERS)) < 2:
            raise InputError(f"scanners: count must be 2 to {len(SCANNERS)}, got 1. Leave scanners out for one device.")
        check_number("scanners: strength", self.strength, high=1)
        if self.label is None and self.strength:
            raise InputError(f"scanners: a strength of {self.strength:g} needs the label that it is about.")


def draw_label(patient: int, number: int, classes: Sequence[str], random: np.random.Generator) -> str:
    """A patient's class in turn, or for a fifth of the further images any class: patients have a history."""
    other = number > 0 and random.random() < 0.2
    return classes[int(random.integers(len(classes))) if other else patient % len(classes)]


def draw_labels(prevalence: Mapping[str, float], seed: int, patient: int, number: int) -> list[str]:
    """The findings of one image, each as often as its prevalence says.

    A finding shows where a normal number exceeds its threshold. The number adds what all findings of the patient share
    (`COMORBIDITY`), what all images of the patient share (`PERSISTENCE`) and what is this image's own: so findings come
    together, and stay.
    """
    severity = generator("severity", seed, patient).standard_normal()
    own = 1 - COMORBIDITY - PERSISTENCE

    def ill(name: str) -> float:
        lasting = generator(f"lasting {name}", seed, patient).standard_normal()
        present = generator(f"present {name}", seed, patient, number).standard_normal()
        return float(COMORBIDITY**0.5 * severity + PERSISTENCE**0.5 * lasting + own**0.5 * present)

    return [name for name, rate in prevalence.items() if special.ndtr(-ill(name)) < rate]


def chance_of_sign(present: bool, rate: float, strength: float) -> float:
    """How likely a sign is in an image with (`present`) or without the label that it goes along with, see `Shortcut`.

    >>> chance_of_sign(True, 0.2, 0.5), chance_of_sign(False, 0.2, 0.5)
    (0.6, 0.1)
    """
    return rate * (1 - strength) + strength * present


def draw_scanner(scanners: Scanners, labels: Sequence[str], random: np.random.Generator) -> int:
    """The device that took one image, counted from 0."""
    last = chance_of_sign(scanners.label in labels, 1 / scanners.count, scanners.strength)
    others = [(1 - last) / (scanners.count - 1)] * (scanners.count - 1)
    return int(random.choice(scanners.count, p=[*others, last]))


def draw_count(mean: int, seed: int, patient: int) -> int:
    """How many images a patient has, where that varies: geometric, at least one."""
    return int(generator("images", seed, patient).geometric(1 / mean))
