"""The metrics by name, and the case that a metric is handed."""

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, wraps
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import Tensor

from heatproof.errors import InputError
from heatproof.models import Classifier
from heatproof.probing import Baseline, BoundProbe, Masks, SampleRandom
from heatproof.registry import Entry, Registry, entry_fields

T = TypeVar("T")

_IMAGES_AT_ONCE = 16  # of changed versions, so that memory does not grow with their number


Summary: TypeAlias = Literal["area", "mean"]
Passes: TypeAlias = Callable[[Mapping[str, Any], int], Mapping[Hashable, int]]

THE_IMAGE = "the image itself"  # its forward pass, which every metric that compares changed images with it shares


def one_pass(_options: Mapping[str, Any], _pixels: int) -> dict[Hashable, int]:
    """The forward passes of a metric that asks about the image as it is."""
    return {THE_IMAGE: 1}


class Curve(NamedTuple):
    """Values along a sequence of changes: at the shares `x` `[P]` of the image, within 0 and 1, the values `y` `[N, P]`."""

    x: Tensor
    y: Tensor

    @property
    def area(self) -> Tensor:
        """The area under each curve by the trapezoid rule, float64 `[N]`."""
        return torch.trapezoid(self.y.double(), self.x.double())

    @property
    def mean(self) -> Tensor:
        """The mean of each curve over its defined points, float64 `[N]`; NaN where none is."""
        return self.y.double().nanmean(1)


@dataclass(frozen=True)
class Metric(Entry):
    """A metric and its metadata.

    `bounds` are the least and the largest value it can take (None: unbounded). Where `function` is the area under a curve
    or its mean, as `of_curve` says, `curve` is the function, of the same options, that gives the `Curve`. `passes` predicts,
    from the options and the pixels of an image, the forward passes over changed images of one sample: sets of changed
    images that metrics share have the same key.
    """

    category: str
    higher_is_better: bool
    bounds: tuple[float | None, float | None]
    curve: Callable[..., Curve] | None = None
    of_curve: Summary | None = None
    passes: Passes | None = None

    @property
    def formula(self) -> str:
        """The definition in a line of plain text, as the docstring has it under `Formula`."""
        return " ".join(self.sections.get("Formula", "").split())

    @property
    def quantus(self) -> str:
        """How the metric compares with that of Quantus 0.6, as the docstring says under `Quantus`."""
        return " ".join(self.sections.get("Quantus", "").split())


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
    explainer: Callable[[Tensor, Tensor, Classifier | None], Tensor] | None = None
    _shared: dict[Hashable, Any] = field(default_factory=dict)

    def explain(self, images: Tensor, *, model: Classifier | None = None, targets: Tensor | None = None) -> Tensor:
        """Maps `[m·N, H, W]` of m changed versions of all samples, `[m·N, C, H, W]`, by the method under test.

        The versions stand one after another (`[N]` of the first, then of the second). Each sample keeps its target, unless
        `targets` `[N]` names others, and its random draws, so that a method that draws does not change by chance. `model`
        is explained in place of the case's own: a changed copy of it. What is not finite in the maps is NaN.
        """
        if self.explainer is None:
            raise InputError(
                "This metric explains changed images: pass explain= (a method name, (name, options) or a callable)."
            )
        chosen = self.targets if targets is None else targets
        maps = self.explainer(images, chosen.repeat(len(images) // len(self.images)), model)
        if maps.shape != (len(images), *self.maps.shape[1:]):
            raise InputError(
                f"explain= must give maps {[len(images), *self.maps.shape[1:]]} for images {list(images.shape)}, "
                f"got {list(maps.shape)}."
            )
        maps = maps.detach().float()
        return maps.where(maps.isfinite(), torch.nan)  # so that no score is infinite

    def groups(self, count: int) -> Iterator[range]:
        """The numbers of `count` changed versions of all samples, as many at a time as are made and looked at together."""
        together = max(1, _IMAGES_AT_ONCE // len(self.images))
        return (range(start, min(start + together, count)) for start in range(0, count, together))

    def shared(self, key: Hashable, compute: Callable[[], T]) -> T:
        """`compute()`, once for all metrics of this case that ask under the same `key`."""
        try:
            hash(key)
        except TypeError:  # a wrong option may have none, as `compute` will say
            return compute()
        if key not in self._shared:
            self._shared[key] = compute()
        value: T = self._shared[key]
        return value

    def masked_logits(self, key: Hashable, masks: Callable[[], Masks], baseline: Baseline) -> Tensor:
        """The logits `[N, K, classes]` on masked images; metrics that ask for the same masks, by `key`, share the passes."""
        # what has no hash is no baseline either, as the probe will say
        known = baseline if isinstance(baseline, Hashable) else None
        probe = replace(self.probe, score=lambda logits: logits)  # of every class
        return self.shared(("masked", key, known), lambda: probe(masks(), baseline=baseline, output="logit"))

    def masked(self, key: Hashable, masks: Callable[[], Masks], baseline: Baseline, output: str) -> Tensor:
        """The target's output `[N, K]` on masked images, shared as `masked_logits` are."""
        return self.of_target(self.model.output(output)(self.masked_logits(key, masks, baseline)))

    def of_target(self, outputs: Tensor) -> Tensor:
        """The target's part of `outputs` `[N, K, classes]`, `[N, K]`."""
        return outputs.gather(2, self.targets[:, None, None].expand(-1, outputs.shape[1], 1))[:, :, 0]

    def decisions(self, logits: Tensor) -> Tensor:
        """What the model decides by `logits` `[N, K, classes]`: its class; multi-label, whether the target; `[N, K]`."""
        if self.model.task == "multiclass":
            return logits.argmax(2)
        return self.of_target(logits) > 0

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
    curve: Summary | None = None,
    passes: Passes | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function `(case, *, options...) -> [N]` as the metric `name`.

    With `curve` the function gives a `Curve`, and the metric is the area under it or its mean. A metric that needs the
    `cohort` is handed all samples of a call in one case, those of each column of targets apart; any other a few at a time.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        fields = entry_fields(name, function, paper, needs)
        if curve:
            fields |= {"function": _summarised(function, curve), "curve": function, "of_curve": curve}
        METRICS.add(
            Metric(**fields, category=category, higher_is_better=higher_is_better, bounds=bounds, passes=passes)
        )
        return function

    return register


def _summarised(curve: Callable[..., Curve], summary: Summary) -> Callable[..., Tensor]:
    @wraps(curve)
    def value(case: Case, **options: Any) -> Tensor:
        found = curve(case, **options)
        return found.area if summary == "area" else found.mean

    return value
