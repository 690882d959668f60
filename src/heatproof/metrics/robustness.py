"""Does the explanation stay when the image hardly changes?"""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from heatproof.checks import check_choice, check_count, check_number
from heatproof.errors import InputError
from heatproof.metrics.registry import Case, metric, one_pass
from heatproof.metrics.tokens import area_average, check_grid
from heatproof.probing import Baseline, make_baseline

Units = Literal["raw", "normalized"]
Denominator = Literal["map", "input"]

_SMALLEST = 1e-6  # what a value of 0 is taken for in a relative change, as in the reference code of the stabilities


def decision_passes(options: Mapping[str, Any], _: int) -> dict[Hashable, int]:
    """Forward passes that tell whether draws leave the prediction as it is."""
    key = ("decisions", options["samples"], options["radius"], options["units"])
    return {key: options["samples"]} if options.get("same_prediction", True) else {}


@metric("avg_sensitivity", category="robustness", higher_is_better=False, bounds=(0, None), needs={"model", "explain"},
        paper="yeh2019fidelity", passes=decision_passes)  # fmt: skip
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

    The draws u are uniform on [−radius, radius] for each pixel and channel.

    Formula:
        mean_u ‖Φ(x+u) − Φ(x)‖ / ‖Φ(x)‖

    Args:
        case: N samples; Φ(x) are its maps, and `explain` gives Φ(x+u).
        samples: number of draws.
        radius: largest change of a value.
        units: of the radius: `raw` intensity, where the image's whole range is 1, or `normalized` model-input units.
        denominator: divide by the norm of the `map`, or of the `input` image in model-input units.
        same_prediction: leave out the draws that change the prediction (multi-label: the decision about the target).

    Returns:
        `[N]`; NaN for an undefined map, a denominator of 0, or if all draws are left out.

    Quantus:
        Follows `AvgSensitivity` under `units="normalized"` and the same draws.
    """
    draws = Draws(case, samples, radius, units)
    changes, counted = _relative_changes(draws, denominator), draws.counted(same_prediction)
    return changes.where(counted, 0.0).sum(1) / counted.sum(1)


@metric("max_sensitivity", category="robustness", higher_is_better=False, bounds=(0, None), needs={"model", "explain"},
        paper="yeh2019fidelity", passes=decision_passes)  # fmt: skip
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

    Arguments and undefined cases are those of `avg_sensitivity`, with which it shares the explanations of changed images.

    Formula:
        max_u ‖Φ(x+u) − Φ(x)‖ / ‖Φ(x)‖

    Returns:
        `[N]`.

    Quantus:
        Follows `MaxSensitivity` under `units="normalized"` and the same draws.
    """
    draws = Draws(case, samples, radius, units)
    return draws.largest(_relative_changes(draws, denominator), same_prediction)


def _relative_changes(draws: "Draws", denominator: Denominator) -> Tensor:
    """`‖Φ(x+u) − Φ(x)‖` over the norm of map or image, `[N, samples]`."""
    check_choice("denominator", denominator, ("map", "input"))
    norm = norms(draws.case.maps if denominator == "map" else draws.case.images)
    return (draws.changes.map / norm.where(norm > 0, torch.nan)[:, None]).masked_fill(
        draws.case.undefined[:, None], torch.nan
    )


@metric("local_lipschitz", category="robustness", higher_is_better=False, bounds=(0, None), needs={"model", "explain"},
        paper="alvarezmelis2018towards", passes=decision_passes)  # fmt: skip
def local_lipschitz(
    case: Case, *, samples: int = 10, radius: float = 0.02, units: Units = "raw", same_prediction: bool = False
) -> Tensor:
    """Largest change of the explanation for a change of the image of size 1.

    The draws u are those of `avg_sensitivity`, and ‖u‖ is in model-input units.

    Formula:
        max_u ‖Φ(x+u) − Φ(x)‖ / ‖u‖

    Args:
        case: N samples.
        samples: number of draws.
        radius: largest change of a value, above 0.
        units: of the radius.
        same_prediction: leave out the draws that change the prediction.

    Returns:
        `[N]`; NaN for an undefined map, or if all draws are left out.

    Quantus:
        Follows `LocalLipschitzEstimate` under `units="normalized"` and the same draws.
    """
    draws = Draws(case, samples, check_above_zero("radius", radius), units)
    return draws.largest(draws.changes.map / draws.changes.image, same_prediction)


@metric("continuity", category="robustness", higher_is_better=False, bounds=(0, None), needs={"model", "explain"},
        paper="montavon2018methods")  # fmt: skip
def continuity(case: Case, *, steps: int = 28, baseline: Baseline = "black") -> Tensor:
    """Largest change of the explanation for a change of the image of size 1, as the image moves sideways.

    The x′ are x moved along its rows by equal steps, from its whole width to the left to its whole width to the right.

    Formula:
        max_{x′} ‖Φ(x′) − Φ(x)‖₁ / ‖x′ − x‖₂

    Args:
        case: N samples.
        steps: number of translations; those that would be shorter than a pixel are fewer.
        baseline: what stands where the image has left, see `make_baseline`.

    Returns:
        `[N]`; NaN for an undefined map, or where no translation changes the image.

    Quantus:
        Follows `Continuity`, to 1e-4 of the value, for no more steps than there are places. Differs for more, where its
        steps are of 0 pixels, so that the image is moved out of sight again and again.
    """
    replacement = make_baseline(baseline, case.images, black=lambda: case.model.intensity_range[0], random=case.random)
    ratios = []
    for shift in _translations(case.images.shape[3], check_count("steps", steps)):
        moved = _moved(case.images, replacement, shift)
        distance = norms(moved.double() - case.images)
        change = (case.explain(moved).double() - case.maps).abs().sum((1, 2))
        ratios.append((change / distance).where(distance > 0, -torch.inf))
    largest = torch.stack(ratios).amax(0)
    return largest.masked_fill(case.undefined | (largest == -torch.inf), torch.nan)


@metric("consistency", category="robustness", higher_is_better=True, bounds=(0, 1), needs={"model", "cohort"},
        paper="dasgupta2022framework", passes=one_pass)  # fmt: skip
def consistency(case: Case, *, grid: Sequence[int] = (4, 4), k: int = 1, absolute: bool = False) -> Tensor:
    """Share of the other samples with the same explanation that share the prediction.

    Explanations are made discrete: two are the same if the same k cells of a coarse grid are the highest, each cell being
    the mean of the map over it.

    Formula:
        #{j ≠ i : e_j = e_i, y_j = y_i} / #{j ≠ i : e_j = e_i},  e the discrete explanation, y the prediction

    Args:
        case: the cohort: all samples that are scored together.
        grid: (rows, columns).
        k: number of highest cells.
        absolute: use |a| instead of a.

    Returns:
        `[N]`; NaN where no other sample has the same explanation, and for an undefined map, which is like none.

    Quantus:
        Follows `Consistency` where that is told to look at the highest cell of the same grid. Differs in what it looks
        at by default, the signs of the first five pixels of the image, in that its cohort is the batch, and in that a
        sample without a like has 0 there.
    """
    values, undefined = case.values(absolute)
    rows, columns = check_grid("grid", grid, values.shape[1:])
    cells = area_average(values, (rows, columns)).flatten(1)
    highest = cells.topk(check_count("k", k, high=rows * columns)).indices.sort(1).values
    same = (highest == highest[:, None]).all(2) & ~undefined & ~undefined[:, None]
    same.fill_diagonal_(False)
    decided = case.decisions(case.probe.unmasked_logits[:, None])
    return (same & (decided == decided.T)).sum(1).double() / same.sum(1)  # 0 / 0 is NaN


def _translations(width: int, steps: int) -> list[int]:
    """Equal steps of whole pixels from −width to width, without the start and without standing still.

    >>> _translations(6, 4), _translations(7, 3)
    ([-3, 3, 6], [-2, 3, 7])
    """
    step = max(1, (2 * width + 1) // steps)
    return sorted({min(shift, width) for shift in range(step - width, width + 2, step)[:steps]} - {0})


def _moved(images: Tensor, replacement: Tensor, shift: int) -> Tensor:
    """Images `[N, C, H, W]` moved by `shift` pixels to the right (to the left below 0)."""
    columns = torch.arange(images.shape[3], device=images.device) - shift
    left = (columns < 0) | (columns >= images.shape[3])
    return torch.where(left, replacement, images.roll(shift, 3))


class Changes(NamedTuple):
    """How large the changes of each draw are, float64 `[N, samples]` each.

    `map` and `image`: `‖Φ(x+u) − Φ(x)‖` and `‖u‖`; `relative_map` and `relative_image`: with each value's change divided by
    the value.
    """

    map: Tensor
    relative_map: Tensor
    image: Tensor
    relative_image: Tensor


class Draws:
    """`samples` changed versions of the images of a case, made anew whenever they are needed.

    All metrics of the case with the same draws share what was found on them.
    """

    def __init__(self, case: Case, samples: int, radius: float, units: Units) -> None:
        check_choice("units", units, ("raw", "normalized"))
        self.case = case
        self.samples = check_count("samples", samples)
        self.key = (self.samples, check_number("radius", radius), units)
        self._radius: float | Tensor = radius
        if units == "raw":
            black, white = (limit.to(case.images) for limit in case.model.intensity_range)
            self._radius = radius * (white - black)

    @property
    def changes(self) -> Changes:
        """How much images and maps change; the changed images are explained once."""
        return self.case.shared(("changes", *self.key), self._changes)

    def counted(self, same_prediction: bool) -> Tensor:
        """Which draws count, bool `[N, samples]`: all of them, or those that leave the prediction as it is."""
        if same_prediction:
            return self.case.shared(("same prediction", *self.key), self._same_prediction)
        return torch.ones(len(self.case.images), self.samples, dtype=torch.bool, device=self.case.images.device)

    def largest(self, values: Tensor, same_prediction: bool) -> Tensor:
        """The maximum `[N]` of `values` `[N, samples]` over the draws that count; NaN for none or an undefined map."""
        counted = self.counted(same_prediction)
        found = values.where(counted, -torch.inf).amax(1)
        return found.masked_fill(self.case.undefined | ~counted.any(1), torch.nan)

    def groups(self) -> Iterator[Tensor]:
        """Changed images `[m, N, C, H, W]`, a few draws at a time."""
        images, random = self.case.images, self.case.random
        for numbers in self.case.groups(self.samples):
            noise = torch.stack([random.uniform(*images.shape[1:], purpose=f"perturbation {i}") for i in numbers])
            yield images + self._radius * (2 * noise.to(images) - 1)

    def _changes(self) -> Changes:
        columns = []
        for images in self.groups():
            maps = self.case.explain(images.flatten(0, 1)).unflatten(0, images.shape[:2])
            columns += [
                Changes(*_norms_of_change(found, self.case.maps), *_norms_of_change(changed, self.case.images))
                for found, changed in zip(maps, images, strict=True)
            ]
        return Changes(*(torch.stack(parts, 1) for parts in zip(*columns, strict=True)))

    def _same_prediction(self) -> Tensor:
        before = self.case.decisions(self.case.probe.unmasked_logits[:, None])
        logits = [self.case.probe.logits(images) for group in self.groups() for images in group]
        return self.case.decisions(torch.stack(logits, 1)) == before


def check_above_zero(name: str, value: float) -> float:
    """`value`; `InputError` where it is 0, which changes nothing, or no number at all."""
    if check_number(name, value) == 0:
        raise InputError(f"{name} must be above 0, got {value!r}: a change of nothing has no relative effect.")
    return value


def relative_norms(changed: Tensor, original: Tensor) -> Tensor:
    """Norms `[N]` of the change in which each value is divided by the original one (by 1e-6 where that is 0), float64."""
    values = original.double()
    return norms((changed.double() - values) / values.where(values != 0, _SMALLEST))


def norms(values: Tensor) -> Tensor:
    """Euclidean norms over all but the first dimension, float64 `[N]`."""
    return values.double().flatten(1).square().sum(1).sqrt()


def _norms_of_change(changed: Tensor, original: Tensor) -> tuple[Tensor, Tensor]:
    return norms(changed.double() - original), relative_norms(changed, original)
