"""Does the explanation stay when the image hardly changes?"""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from heatproof.checks import check_choice, check_count, check_number
from heatproof.metrics.registry import Case, metric

Units = Literal["raw", "normalized"]
Denominator = Literal["map", "input"]

_IMAGES_AT_ONCE = 16


@metric("avg_sensitivity", category="robustness", higher_is_better=False, bounds=(0, None), needs={"model", "explain"},
        paper="yeh2019fidelity")  # fmt: skip
def avg_sensitivity(
    case: Case,
    *,
    samples: int = 10,
    radius: float = 0.02,
    units: Units = "raw",
    denominator: Denominator = "map",
    same_prediction: bool = False,
) -> Tensor:
    """Mean relative change of the explanation under small changes of the image.

    The mean over draws of `‖Φ(x+u) − Φ(x)‖ / ‖Φ(x)‖`, u uniform on [−radius, radius] for each pixel and channel.

    Args:
        case: N samples; Φ(x) are its maps, and `explain` gives Φ(x+u).
        samples: number of draws.
        radius: largest change of a value.
        units: of the radius: `raw` intensity, where the image's whole range is 1, or `normalized` model-input units.
        denominator: divide by the norm of the `map`, or of the `input` image in model-input units.
        same_prediction: leave out the draws that change the prediction (multi-label: the decision about the target).

    Returns:
        `[N]`; NaN for an undefined map, a denominator of 0, or if all draws are left out.
    """
    changes, counted = _relative_changes(case, samples, radius, units, denominator, same_prediction)
    return changes.where(counted, 0.0).sum(1) / counted.sum(1)


@metric("max_sensitivity", category="robustness", higher_is_better=False, bounds=(0, None), needs={"model", "explain"},
        paper="yeh2019fidelity")  # fmt: skip
def max_sensitivity(
    case: Case,
    *,
    samples: int = 10,
    radius: float = 0.02,
    units: Units = "raw",
    denominator: Denominator = "map",
    same_prediction: bool = False,
) -> Tensor:
    """Largest relative change of the explanation under small changes of the image.

    The maximum over draws of `‖Φ(x+u) − Φ(x)‖ / ‖Φ(x)‖`; arguments and undefined cases as in `avg_sensitivity`, with
    which it shares the explanations of changed images.

    Returns:
        `[N]`.
    """
    changes, counted = _relative_changes(case, samples, radius, units, denominator, same_prediction)
    return changes.where(counted, -torch.inf).amax(1).masked_fill(~counted.any(1), torch.nan)


def _relative_changes(
    case: Case, samples: int, radius: float, units: Units, denominator: Denominator, same_prediction: bool
) -> tuple[Tensor, Tensor]:
    """The relative changes `[N, samples]`, and which of them count."""
    draws = Draws(case, check_count("samples", samples), check_number("radius", radius), units)
    check_choice("denominator", denominator, ("map", "input"))
    changes = case.shared(("map changes", *draws.key), draws.map_changes)
    norm = _norms(case.maps if denominator == "map" else case.images)
    relative = (changes / norm.where(norm > 0, torch.nan)[:, None]).masked_fill(case.undefined[:, None], torch.nan)
    if same_prediction:
        return relative, case.shared(("same prediction", *draws.key), draws.same_prediction)
    return relative, torch.ones_like(relative, dtype=torch.bool)


class Draws:
    """`samples` changed versions of the images of a case, made anew whenever they are needed."""

    def __init__(self, case: Case, samples: int, radius: float, units: Units) -> None:
        check_choice("units", units, ("raw", "normalized"))
        self.key = (samples, radius, units)
        self._case = case
        self._samples = samples
        self._radius: float | Tensor = radius
        if units == "raw":
            black, white = (limit.to(case.images) for limit in case.model.intensity_range)
            self._radius = radius * (white - black)

    def map_changes(self) -> Tensor:
        """`‖Φ(x+u) − Φ(x)‖` of each draw, float64 `[N, samples]`."""
        changes = []
        for images in self._groups():
            maps = self._case.explain(images.flatten(0, 1)).unflatten(0, images.shape[:2])
            changes.append(torch.stack([_norms(found.double() - self._case.maps) for found in maps]))
        return torch.cat(changes).T

    def same_prediction(self) -> Tensor:
        """Whether the prediction is that of the unchanged image, bool `[N, samples]`."""
        before = self._decision(self._case.images[None])
        return torch.cat([self._decision(images) == before for images in self._groups()]).T

    def _groups(self) -> Iterator[Tensor]:
        """Changed images `[m, N, C, H, W]`, a few draws at a time."""
        images, random = self._case.images, self._case.random
        together = max(1, _IMAGES_AT_ONCE // len(images))
        for start in range(0, self._samples, together):
            numbers = range(start, min(start + together, self._samples))
            noise = torch.stack([random.uniform(*images.shape[1:], purpose=f"perturbation {i}") for i in numbers])
            yield images + self._radius * (2 * noise.to(images) - 1)

    def _decision(self, images: Tensor) -> Tensor:
        """What the model decides about images `[m, N, C, H, W]`, `[m, N]`."""
        logits = self._case.probe.logits(images.flatten(0, 1)).view(*images.shape[:2], -1)
        if self._case.model.task == "multiclass":
            return logits.argmax(-1)
        chosen = self._case.targets[None, :, None].expand(len(images), -1, 1)
        return logits.gather(2, chosen).squeeze(2) > 0


def _norms(values: Tensor) -> Tensor:
    """Euclidean norms over all but the first dimension, float64 `[N]`."""
    return values.double().flatten(1).square().sum(1).sqrt()
