"""What a caller of `load_classifier` asked for, before a source fills in the rest."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from heatproof.errors import InputError, near_names
from heatproof.models.classifier import Fit, Preprocessing, Task


@dataclass(frozen=True)
class Request:
    """The keywords of `load_classifier` that every source understands; None where the caller left it open."""

    classes: tuple[str, ...] | None = None
    task: Task | None = None
    image_size: tuple[int, int] | None = None
    channels: int | None = None
    fit: Fit | None = None
    short_side: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def of(
        cls,
        classes: Sequence[str] | None,
        image_size: int | Sequence[int] | None,
        mean: float | Sequence[float] | None,
        std: float | Sequence[float] | None,
        channels: int | None,
        **rest: Any,
    ) -> "Request":
        """Check what can be checked without the model, and bring numbers to one form."""
        if isinstance(classes, str) or (classes is not None and len(set(classes)) != len(classes)):
            raise InputError(f"classes must be a list of distinct names, got {classes!r}.")
        if channels not in (None, 1, 3):
            raise InputError(f"channels must be 1 or 3, got {channels!r}.")
        if (mean is None) != (std is None):
            raise InputError("mean and std belong together: give both or neither.")
        return cls(
            classes=None if classes is None else tuple(str(name) for name in classes),
            image_size=None if image_size is None else as_size(image_size),
            channels=channels,
            mean=_per_channel(mean),
            std=_per_channel(std),
            **rest,
        )

    def needed_classes(self, source: str) -> tuple[str, ...]:
        """The classes, which random weights cannot do without."""
        if not self.classes:
            raise InputError(f"{source}: the weights know no classes, so name them: classes=['normal', ...].")
        return self.classes

    def filled(self, preprocessing: Preprocessing) -> Preprocessing:
        """`preprocessing`, with what the caller asked for in place of its own; one mean or std serves all channels."""
        fit = self.fit or preprocessing.fit
        return Preprocessing(
            image_size=self.image_size or preprocessing.image_size,
            mean=_spread(self.mean, preprocessing.channels) or preprocessing.mean,
            std=_spread(self.std, preprocessing.channels) or preprocessing.std,
            channels=preprocessing.channels,
            fit=fit,
            short_side=self.short_side or (preprocessing.short_side if fit == "crop" else None),
        )


def half_range(image_size: tuple[int, int], channels: int) -> Preprocessing:
    """The default of random weights: mean and std 0.5, so that intensities lie in [-1, 1]."""
    return Preprocessing(image_size, mean=(0.5,) * channels, std=(0.5,) * channels, channels=channels)


def as_size(size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) from one number or two."""
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def check_options(source: str, options: Mapping[str, Any], allowed: Sequence[str]) -> None:
    """Raise `InputError` for a configuration keyword that `source` does not know, naming the near ones."""
    for option in options:
        if option not in allowed:
            raise InputError(f"{source} has no configuration keyword {option!r}. {near_names(option, allowed)}")


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw random weights from `seed`; torch's global random state is afterwards what it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _per_channel(values: float | Sequence[float] | None) -> tuple[float, ...] | None:
    if values is None:
        return None
    return (float(values),) if isinstance(values, int | float) else tuple(float(v) for v in values)


def _spread(values: tuple[float, ...] | None, channels: int) -> tuple[float, ...] | None:
    return values * channels if values is not None and len(values) == 1 else values
