"""The metrics by name, and the case that a metric is handed."""

from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass, field
from functools import cached_property, wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from heatproof.errors import InputError
from heatproof.models import Classifier
from heatproof.probing import BoundProbe, SampleRandom
from heatproof.registry import Entry, Registry, entry_fields

T = TypeVar("T")


class Curve(NamedTuple):
    """The output along a sequence of changes: at the shares `x` `[P]` of the image, from 0 to 1, the values `y` `[N, P]`."""

    x: Tensor
    y: Tensor

    @property
    def area(self) -> Tensor:
        """The area under each curve by the trapezoid rule, float64 `[N]`."""
        return torch.trapezoid(self.y.double(), self.x.double())


@dataclass(frozen=True)
class Metric(Entry):
    """A metric and its metadata.

    `bounds` are the least and the largest value it can take (None: unbounded). Where `function` is the area under a curve,
    `curve` is the function, of the same options, that gives the `Curve`.
    """

    category: str
    higher_is_better: bool
    bounds: tuple[float | None, float | None]
    curve: Callable[..., Curve] | None = None


@dataclass(frozen=True)
class Case:
    """What a metric may need, for N samples (an image with T targets is T samples).

    images `[N, C, H, W]`, targets int64 `[N]`, maps float32 `[N, H, W]` (for metrics under `tokens` also on a grid of their
    own), roi bool `[N, H, W]` or None. `probe` gives the target's output on masked images `[N, K]` and on the images
    themselves; `random` is one stream a sample.
    """

    model: Classifier
    images: Tensor
    targets: Tensor
    maps: Tensor
    random: SampleRandom
    probe: BoundProbe
    roi: Tensor | None = None
    explainer: Callable[[Tensor, Tensor], Tensor] | None = None
    _shared: dict[Hashable, Any] = field(default_factory=dict)

    def explain(self, images: Tensor) -> Tensor:
        """Maps `[m·N, H, W]` of m changed versions of all samples, `[m·N, C, H, W]`, by the method under test.

        The versions stand one after another (`[N]` of the first, then of the second). Each sample keeps its target and its
        random draws, so that a method that draws does not change by chance.
        """
        if self.explainer is None:
            raise InputError(
                "This metric explains changed images: pass explain= (a method name, (name, options) or a callable)."
            )
        maps = self.explainer(images, self.targets.repeat(len(images) // len(self.images)))
        if maps.shape != (len(images), *self.maps.shape[1:]):
            raise InputError(
                f"explain= must give maps {[len(images), *self.maps.shape[1:]]} for images {list(images.shape)}, "
                f"got {list(maps.shape)}."
            )
        return maps.detach().float()

    def shared(self, key: Hashable, compute: Callable[[], T]) -> T:
        """`compute()`, once for all metrics of this case that ask under the same `key`."""
        if key not in self._shared:
            self._shared[key] = compute()
        value: T = self._shared[key]
        return value

    def values(self, absolute: bool) -> tuple[Tensor, Tensor]:
        """The maps, or their absolute values, and where they rank nothing (bool `[N]`, see `undefined`)."""
        return (self.maps.abs(), is_undefined(self.maps.abs())) if absolute else (self.maps, self.undefined)

    @property
    def regions(self) -> Tensor:
        """The roi; an error where none was given."""
        if self.roi is None:
            raise InputError("This metric compares the map with a region: pass roi= (bool [B, H, W]).")
        return self.roi

    @cached_property
    def undefined(self) -> Tensor:
        """Where the map is constant or holds a value that is not finite, so that it ranks nothing, bool `[N]`."""
        return is_undefined(self.maps)


def is_undefined(maps: Tensor) -> Tensor:
    """Which of the maps `[N, H, W]` are constant or hold a value that is not finite, bool `[N]`."""
    low, high = maps.amin((1, 2)), maps.amax((1, 2))  # either is NaN where a value is
    return ~(torch.isfinite(low) & torch.isfinite(high)) | (low == high)


METRICS: Registry[Metric] = Registry("metric")


def metric(
    name: str,
    *,
    category: str,
    higher_is_better: bool,
    paper: str,
    bounds: tuple[float | None, float | None] = (None, None),
    needs: Collection[str] = (),
    curve: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function `(case, *, options...) -> [N]` as the metric `name`.

    With `curve` the function gives a `Curve`, and the metric is the area under it.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        fields = entry_fields(name, function, paper, needs)
        if curve:
            fields |= {"function": _area_under(function), "curve": function}
        METRICS.add(Metric(**fields, category=category, higher_is_better=higher_is_better, bounds=bounds))
        return function

    return register


def _area_under(curve: Callable[..., Curve]) -> Callable[..., Tensor]:
    @wraps(curve)
    def area(case: Case, **options: Any) -> Tensor:
        return curve(case, **options).area

    return area
