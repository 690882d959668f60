"""How well a classifier classifies, and how sure that is."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from heatproof.checks import check_choice
from heatproof.errors import InputError
from heatproof.models.classifier import Task
from heatproof.statistics.intervals import Interval, interval_of_draws, wilson
from heatproof.statistics.resampling import check_draws, drawn_counts, patient_codes
from heatproof.training.calibration import reliability
from heatproof.training.figures import Figures, Floats, decisions

Confusion = list[list[int]] | dict[str, list[list[int]]]
_BLOCK = 256  # draws computed together: small enough for the processor's cache

AVERAGES = ("auroc_macro", "auroc_weighted", "auprc_macro", "auprc_weighted")


@dataclass(frozen=True)
class Performance:
    """What `performance` measured, over `n` images.

    `support` counts the positives of each class, `unknown` the images for which its label is not known. A class that no
    image has, or that all have, is in `undefined`: its areas are NaN, and the averages are over the other classes:
    `macro` counts each once, `weighted` by its support. `reliability` has a row a bin: low, high, n, confidence,
    accuracy (NaN where empty). `confusion`: `[K][K]` images, a row a true class; of a multi-label model a matrix
    `[[tn, fp], [fn, tp]]` for each class. `intervals`: by name, empty where none were asked for.
    """

    task: Task
    n: int
    accuracy: float
    balanced_accuracy: float
    ece: float
    support: Mapping[str, int]
    unknown: Mapping[str, int]
    auroc: Mapping[str, float]
    auprc: Mapping[str, float]
    auroc_macro: float
    auroc_weighted: float
    auprc_macro: float
    auprc_weighted: float
    undefined: tuple[str, ...]
    reliability: tuple[Mapping[str, float], ...]
    confusion: Confusion
    intervals: Mapping[str, Interval]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is undefined is None."""
        return dict(_plain(asdict(self)))


def performance(
    labels: ArrayLike,
    probabilities: ArrayLike,
    classes: Sequence[str],
    *,
    task: Task = "multiclass",
    patients: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Performance:
    """The performance of a classifier, each figure with its interval by bootstrap over patients.

    * `accuracy`: share of images whose most probable class is right; multi-label: share of the known labels on whose
      right side of 0.5 the probability lies.
    * `balanced_accuracy`: the mean of each class's own accuracy (recall); multi-label: the mean over the classes of the
      mean of sensitivity and specificity.
    * `ece`: expected calibration error (`guo2017calibration`), 15 bins of equal width, a bound belonging to the bin
      below: the mean over images of |share that is right − mean confidence| of their bin, the confidence being that of
      the most probable class. Multi-label: of each class by itself, with its probability against how often it applies,
      then the mean over the classes; `reliability` has all labels together.
    * `auroc`, `auprc` of each class against all others (`hanley1982meaning`, `davis2006relationship`): AUPRC is the
      average precision, whose chance level is the share of the class.

    Intervals draw patients with all their images (`interval_of_draws`). Draws in which a class of the figure has no
    positives or no negatives are left out and counted. Where every draw agrees on 0 or 1, the bounds are Wilson's
    (`wilson1927probable`), counting the patients of the rarest side (of those with a positive and those with a
    negative, say): a perfect order of three positives proves little.

    Args:
        labels: the true class of each image, int `[N]`; multi-label: `[N, K]`, 1 it applies, 0 not, NaN unknown.
        probabilities: `[N, K]`.
        classes: the K class names.
        task: `multiclass` or `multilabel`.
        patients: of each image, `[N]`; without them every image counts as a patient of its own.
        draws: of the bootstrap; 0 for no intervals.
        seed: of the draws.
        level: coverage.

    Raises:
        InputError: no images, shapes that differ, a label outside 0..K-1 (multi-label: none of 0, 1 and NaN), a
            probability outside 0..1 or not finite, or a patient that is missing.

    Example:
        >>> result = performance([0, 0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]], ["normal", "lesion"])
        >>> result.accuracy, result.auroc["lesion"], round(result.intervals["accuracy"].low, 2)
        (0.75, 1.0, 0.0)
    """
    check_choice("task", task, ("multiclass", "multilabel"))
    check_draws(draws or 1, level)  # 0 is allowed here
    targets, scores = _checked(labels, probabilities, classes, task)
    codes = patient_codes(np.arange(len(targets)) if patients is None else patients, targets)
    figures = Figures(targets, scores, codes, classes, task)
    found = {name: float(value[0]) for name, value in figures(np.ones((1, figures.patients))).items()}
    return Performance(
        task=task,
        n=len(targets),
        **{name: found[name] for name in ("accuracy", "balanced_accuracy", "ece", *AVERAGES)},
        support={name: int((targets[:, k] == 1).sum()) for k, name in enumerate(classes)},
        unknown={name: int(np.isnan(targets[:, k]).sum()) for k, name in enumerate(classes)},
        auroc={name: found[f"auroc.{name}"] for name in classes},
        auprc={name: found[f"auprc.{name}"] for name in classes},
        undefined=tuple(name for name in classes if math.isnan(found[f"auroc.{name}"])),
        reliability=reliability(targets, scores, task),
        confusion=_confusion(targets, scores, classes, task),
        intervals=_intervals(figures, found, draws, seed, level) if draws else {},
    )


def _intervals(
    figures: Figures, found: Mapping[str, float], draws: int, seed: int, level: float
) -> dict[str, Interval]:
    """The interval of every figure from the same draws."""
    drawn = _stacked(figures, drawn_counts(figures.patients, draws, seed))
    without = _stacked(figures, _jackknife(figures.patients))
    intervals = {}
    for name, estimate in found.items():
        images, sides = figures.images(name), figures.sides(name)
        people = images > 0
        interval = interval_of_draws(estimate, drawn[name], without[name][people], images[people], level=level)
        if interval.method == "point" and estimate in (0, 1) and sides.shape[1]:
            rarest = int((sides > 0).sum(axis=0).min())
            low, high = wilson(estimate * rarest, rarest, level)
            interval = replace(interval, low=low, high=high, method="wilson")
        intervals[name] = replace(interval, nan=figures.n - interval.n)
    return intervals


def _stacked(figures: Figures, blocks: Iterable[Floats]) -> dict[str, Floats]:
    parts = [figures(block[start : start + _BLOCK]) for block in blocks for start in range(0, len(block), _BLOCK)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _jackknife(patients: int) -> Iterator[Floats]:
    """All patients but one, for each in turn: blocks `[_, P]`."""
    for start in range(0, patients, _BLOCK):
        yield 1.0 - np.eye(min(_BLOCK, patients - start), patients, k=start)


def _checked(labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str], task: Task) -> tuple[Floats, Floats]:
    """Targets and probabilities, `[N, K]` each."""
    truth, scores = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    shape = (len(scores), len(classes))
    if not len(scores) or scores.shape != shape or truth.shape != shape[: 1 if task == "multiclass" else 2]:
        wanted = "[N]" if task == "multiclass" else f"[N, {len(classes)}]"
        raise InputError(
            f"Needed: labels {wanted} and probabilities [N, {len(classes)}] for the {len(classes)} classes, N at least "
            f"1; got {list(truth.shape)} and {list(scores.shape)}."
        )
    bad = int((~np.isfinite(scores)).any(axis=1).sum())
    if bad:
        raise InputError(f"{bad} of {len(scores)} images have a probability that is not finite: the model is broken.")
    if scores.min() < 0 or scores.max() > 1:
        raise InputError(
            f"probabilities must lie within 0 to 1, got {scores.min():g} to {scores.max():g}: give softmax or sigmoid "
            "of the logits."
        )
    if task == "multilabel":
        targets = truth.astype(np.float64)
        if not np.isin(targets[~np.isnan(targets)], (0, 1)).all():
            raise InputError("labels of a multi-label model must be 0, 1 or NaN (unknown).")
        return targets, scores
    if truth.dtype.kind not in "iu" or truth.min() < 0 or truth.max() >= len(classes):
        raise InputError(f"labels must be integers in 0..{len(classes) - 1}, got {sorted(set(truth.tolist()))[:8]}.")
    return np.eye(len(classes))[truth], scores


def _confusion(targets: Floats, scores: Floats, classes: Sequence[str], task: Task) -> Confusion:
    chosen = decisions(scores, task)
    if task == "multiclass":
        return [[int(count) for count in row] for row in targets.T @ chosen]
    return {
        name: [[int(((targets[:, k] == truth) & (chosen[:, k] == said)).sum()) for said in (0, 1)] for truth in (0, 1)]
        for k, name in enumerate(classes)
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value
