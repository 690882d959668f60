"""What a phantom is asked to be, checked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from heatproof.checks import check_choice, check_count, check_number
from heatproof.datasets.phantom.film import writing
from heatproof.datasets.phantom.findings import DRAWN
from heatproof.datasets.phantom.labels import Scanners, Shortcut
from heatproof.errors import InputError, near_names

NORMAL = "normal"
CLASSES: Mapping[str, tuple[str, ...]] = {"multiclass": (NORMAL, "opacity", "nodule"), "multilabel": tuple(DRAWN)}
KNOWN: Mapping[str, tuple[str, ...]] = {"multiclass": (NORMAL, *DRAWN), "multilabel": tuple(DRAWN)}
BITS: Mapping[str, tuple[int, ...]] = {"png": (8, 16), "dicom": (12, 16)}
SMALLEST = 16
PREVALENCE = 0.25  # of each finding where nothing is said


@dataclass(frozen=True)
class Phantom:
    """What `make_phantom` draws.

    One label an image (`multiclass`): patients take the classes in turn; a fifth of their further images shows any of
    them. Several (`multilabel`): each finding is as frequent as `prevalence` says; findings come together and stay with
    a patient, see `draw_labels`.

    Args:
        patients: number of patients.
        images_per_patient: images of each.
        varied: the number of images differs from patient to patient, geometrically; `images_per_patient` is its mean.
        size: pixels a side, at least 16; made for 64 and more.
        task: `multiclass` or `multilabel`.
        classes: some of the findings (opacity, nodule, effusion, cardiomegaly, pneumothorax), with one label an image
            also `normal`, in the order of the data set's classes. By default normal, opacity and nodule; with several
            labels all findings.
        prevalence: part of the images that show a finding, by class; a quarter where nothing is said. Several labels only.
        uncertain: part of the cells of the label columns that say -1, whatever the image shows. Several labels only.
        conspicuity: factor on the density of findings: 0.4 is subtle. `cardiomegaly` is a matter of size instead.
        shortcut: letters that go along with a label; the films bear no side marker then.
        scanners: devices that differ in contrast, gamma, sharpness, noise and collimation.
        format: of the image files: `png`, or `dicom` (computed radiography with invented identities).
        bits: of a pixel: 8 or 16 (PNG), 12 or 16 (DICOM); by default the lower.
        seed: of everything drawn.

    Raises:
        InputError: an option out of range or without meaning here, an unknown class.
    """

    patients: int = 400
    images_per_patient: int = 1
    varied: bool = False
    size: int = 128
    task: Literal["multiclass", "multilabel"] = "multiclass"
    classes: Sequence[str] = ()
    prevalence: Mapping[str, float] = field(default_factory=dict)
    uncertain: float = 0.0
    conspicuity: float = 1.0
    shortcut: Shortcut | None = None
    scanners: Scanners | None = None
    format: Literal["png", "dicom"] = "png"
    bits: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("task", self.task, tuple(CLASSES))
        check_choice("format", self.format, tuple(BITS))
        for name in ("patients", "images_per_patient"):
            check_count(name, getattr(self, name))
        if check_count("size", self.size) < SMALLEST:
            raise InputError(f"size must be at least {SMALLEST}, got {self.size}.")
        if self.varied and self.images_per_patient == 1:
            raise InputError(
                "varied needs a mean of at least 2 images_per_patient: with 1 every patient has one image."
            )
        if self.bits not in (None, *BITS[self.format]):
            raise InputError(
                f"bits of a {self.format} file must be {' or '.join(map(str, BITS[self.format]))}, got {self.bits}."
            )
        check_number("uncertain", self.uncertain, high=1)
        check_number("conspicuity", self.conspicuity, high=10)
        check_number("seed", self.seed)
        self._check_classes()
        if self.task == "multiclass" and (self.prevalence or self.uncertain):
            raise InputError(
                "prevalence and uncertain belong to task 'multilabel': one label an image is always given."
            )
        if self.shortcut is not None and writing(self.shortcut.text, self.size).shape[1] > self.size // 2:
            raise InputError(
                f"shortcut: {self.shortcut.text!r} fills more than half of {self.size} pixels; shorten it."
            )

    def _check_classes(self) -> None:
        if isinstance(self.classes, str) or len(set(self.classes)) < len(self.classes):
            raise InputError(f"classes must be a list of distinct names, got {self.classes!r}.")
        for name in self.classes:
            if name not in KNOWN[self.task]:
                raise InputError(f"Unknown class {name!r} for task {self.task!r}. {near_names(name, KNOWN[self.task])}")
        signs = {"shortcut": self.shortcut, "scanners": self.scanners}
        about = {option: sign.label for option, sign in signs.items() if sign is not None and sign.label is not None}
        for option, name in [*about.items(), *(("prevalence", name) for name in self.prevalence)]:
            if name not in self.labels:
                raise InputError(f"{option}: {name!r} is not one of the classes. {near_names(name, self.labels)}")
        for name, rate in self.prevalence.items():
            check_number(f"prevalence of {name}", rate, high=1)

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, those by default included."""
        return tuple(self.classes) or CLASSES[self.task]
