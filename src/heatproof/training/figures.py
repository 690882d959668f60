"""The figures of a classifier for any weighting of the patients: what a bootstrap over patients asks for."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_matrix

from heatproof.models.classifier import Task
from heatproof.training.areas import Ranking
from heatproof.training.calibration import BINS, bin_numbers, confidences

Floats = NDArray[np.float64]


def decisions(scores: Floats, task: Task) -> Floats:
    """What is said of each class, 0 or 1, `[N, K]`: the most probable one, or every one of at least 0.5."""
    if task == "multiclass":
        return np.asarray(np.eye(scores.shape[1])[scores.argmax(axis=1)])
    return (scores >= 0.5).astype(np.float64)


class Figures:
    """Sums by patient, made once; each figure is a function of their weighted totals.

    Args:
        targets: `[N, K]`, 1 the class applies, 0 not, NaN unknown.
        scores: probabilities, `[N, K]`.
        codes: the patient of each image, 0..P-1, `[N]`.
        classes: the K class names.
        task: decides what the figures mean, see `performance`.
    """

    def __init__(
        self, targets: Floats, scores: Floats, codes: NDArray[np.intp], classes: Sequence[str], task: Task
    ) -> None:
        self.n, self.patients, self.classes = len(targets), int(codes.max()) + 1, classes
        self._sum = csr_matrix((np.ones(self.n), (codes, np.arange(self.n))), shape=(self.patients, self.n))
        known, right = ~np.isnan(targets), decisions(scores, task) == targets
        self._positives, self._negatives = self._by_patient(targets == 1), self._by_patient(targets == 0)
        self._known = self._by_patient(known)
        self._any_known = self._by_patient(known.any(axis=1))
        self._defined = np.flatnonzero(self._positives.any(axis=0) & self._negatives.any(axis=0))
        self._accuracy_parts(targets, right, task)
        self._calibration_parts(*confidences(targets, scores, task))
        self._rankings = [
            Ranking(targets[rows, k] == 1, scores[rows, k], codes[rows], self.patients)
            for k, rows in enumerate(known.T)
        ]

    def __call__(self, counts: Floats) -> dict[str, Floats]:
        """Every figure by name, `[D]`, where the patients weigh `counts` `[D, P]`; NaN where it is undefined."""
        with np.errstate(invalid="ignore", divide="ignore"):  # nothing divided by nothing is NaN
            found = {
                "accuracy": (counts @ self._right) / (counts @ self._decided),
                "balanced_accuracy": _mean((counts @ self._hits) / (counts @ self._sides)),
                "ece": self._calibration_error(counts),
            }
            support = (counts @ self._positives)[:, self._defined]
            areas = np.stack([ranking.areas(counts) for ranking in self._rankings], axis=2)
            for name, of_class in zip(("auroc", "auprc"), areas, strict=True):
                defined = of_class[:, self._defined]
                found[f"{name}_macro"] = _mean(defined)
                found[f"{name}_weighted"] = (defined * support).sum(axis=1) / support.sum(axis=1)
                found |= {f"{name}.{label}": of_class[:, k] for k, label in enumerate(self.classes)}
        return found

    def images(self, figure: str) -> Floats:
        """How many images each patient has in a figure, `[P]`."""
        return self._any_known if (k := self._class_of(figure)) is None else self._known[:, k]

    def sides(self, figure: str) -> Floats:
        """What a figure needs of each kind: how many of it each patient has, `[P, M]`; M = 0 of the calibration error."""
        plain = {"accuracy": self._decided[:, None], "balanced_accuracy": self._sides, "ece": self._known[:, :0]}
        if figure in plain:
            return plain[figure]
        k = self._class_of(figure)
        chosen = self._defined if k is None else np.array([k])
        return np.concatenate([self._positives[:, chosen], self._negatives[:, chosen]], axis=1)

    def _class_of(self, figure: str) -> int | None:
        _, point, label = figure.partition(".")
        return self.classes.index(label) if point else None

    def _by_patient(self, values: ArrayLike) -> Floats:
        table = np.asarray(values, dtype=np.float64)
        return np.asarray((self._sum @ table.reshape(self.n, -1)).reshape(self.patients, *table.shape[1:]))

    def _accuracy_parts(self, targets: Floats, right: NDArray[np.bool_], task: Task) -> None:
        """Right decisions and all, and those of each side whose share counts alike in the balanced accuracy."""
        positives, negatives = targets == 1, targets == 0
        if task == "multiclass":
            self._right, self._decided = self._by_patient(right.all(axis=1)), self._by_patient(positives.any(axis=1))
            sides, defined = positives, np.flatnonzero(positives.any(axis=0))
            hits = positives & right
        else:
            self._right, self._decided = self._by_patient(right).sum(axis=1), self._known.sum(axis=1)
            sides = np.concatenate([positives, negatives], axis=1)
            hits = sides & np.tile(right, 2)
            defined = np.concatenate([self._defined, self._defined + len(self.classes)])
        self._hits, self._sides = self._by_patient(hits[:, defined]), self._by_patient(sides[:, defined])

    def _calibration_parts(self, said: Floats, right: Floats) -> None:
        """Decisions, and the sum of their gaps in each bin, by patient and label."""
        known = ~np.isnan(right)
        inside = (bin_numbers(said)[..., None] == np.arange(BINS)) & known[..., None]
        labels = known.any(axis=0)
        self._decisions = self._by_patient(known[:, labels])
        self._gaps = self._by_patient((np.nan_to_num(right - said)[..., None] * inside)[:, labels])

    def _calibration_error(self, counts: Floats) -> Floats:
        gaps = counts @ self._gaps.reshape(self.patients, -1)
        by_label = np.abs(gaps.reshape(len(counts), -1, BINS)).sum(axis=2) / (counts @ self._decisions)
        return _mean(by_label)


def _mean(columns: Floats) -> Floats:
    """The mean of each row, NaN without columns."""
    return np.asarray(columns.sum(axis=1) / (columns.shape[1] or math.nan))
