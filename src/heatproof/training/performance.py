"""How well a classifier classifies."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from heatproof.errors import InputError


@dataclass(frozen=True)
class Performance:
    """Accuracy, and area under the ROC and the precision-recall curve of each class against all others.

    `support` counts the images of each class among `n`. A class that no image has, or that all have, is in `undefined`:
    its areas are NaN, and the averages are over the other classes: `macro` counts each once, `weighted` by its support.
    """

    n: int
    accuracy: float
    support: Mapping[str, int]
    auroc: Mapping[str, float]
    auprc: Mapping[str, float]
    undefined: tuple[str, ...]

    @property
    def auroc_macro(self) -> float:
        """Mean AUROC of the defined classes; NaN where there is none."""
        return self._average(self.auroc, weighted=False)

    @property
    def auroc_weighted(self) -> float:
        """Mean AUROC of the defined classes, weighted by their images."""
        return self._average(self.auroc, weighted=True)

    @property
    def auprc_macro(self) -> float:
        """Mean AUPRC of the defined classes; NaN where there is none."""
        return self._average(self.auprc, weighted=False)

    @property
    def auprc_weighted(self) -> float:
        """Mean AUPRC of the defined classes, weighted by their images."""
        return self._average(self.auprc, weighted=True)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is undefined is None."""
        averages = ("auroc_macro", "auroc_weighted", "auprc_macro", "auprc_weighted")
        return {
            "n": self.n,
            "accuracy": self.accuracy,
            "support": dict(self.support),
            "auroc": {name: _plain(value) for name, value in self.auroc.items()},
            "auprc": {name: _plain(value) for name, value in self.auprc.items()},
            **{name: _plain(getattr(self, name)) for name in averages},
            "undefined": list(self.undefined),
        }

    def _average(self, values: Mapping[str, float], *, weighted: bool) -> float:
        defined = [name for name in values if name not in self.undefined]
        if not defined:
            return math.nan
        weights = [self.support[name] if weighted else 1 for name in defined]
        return float(np.average([values[name] for name in defined], weights=weights))


def performance(labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str]) -> Performance:
    """The performance of predictions of one class an image.

    AUROC is `hanley1982meaning`; AUPRC is the average precision, the step-wise area without interpolation
    (`davis2006relationship`), whose chance level is the share of the class. Ties count half in AUROC. The predicted
    class is the most probable one.

    Args:
        labels: the true class of each image, int `[N]`.
        probabilities: float `[N, K]`; any score that orders the images will do for the areas.
        classes: the K class names.

    Raises:
        InputError: no images, shapes that differ, a label outside 0..K-1, or a probability that is not finite.

    Example:
        >>> result = performance([0, 0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.3, 0.7], [0.2, 0.8]], ["normal", "lesion"])
        >>> result.accuracy, result.auroc["lesion"], result.undefined
        (0.75, 1.0, ())
    """
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth, scores = _checked(labels, probabilities, classes)
    support = {name: int((truth == k).sum()) for k, name in enumerate(classes)}
    undefined = tuple(name for name in classes if support[name] in (0, len(truth)))
    auroc, auprc = dict.fromkeys(classes, math.nan), dict.fromkeys(classes, math.nan)
    for k, name in enumerate(classes):
        if name not in undefined:
            auroc[name] = float(roc_auc_score(truth == k, scores[:, k]))
            auprc[name] = float(average_precision_score(truth == k, scores[:, k]))
    accuracy = float((scores.argmax(axis=1) == truth).mean())
    return Performance(len(truth), accuracy, support, auroc, auprc, undefined)


def _checked(
    labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    truth, scores = np.asarray(labels), np.asarray(probabilities, dtype=np.float64)
    if truth.ndim != 1 or not len(truth) or scores.shape != (len(truth), len(classes)):
        raise InputError(
            f"Needed: labels [N] and probabilities [N, {len(classes)}] for the {len(classes)} classes, N at least 1; "
            f"got {list(truth.shape)} and {list(scores.shape)}."
        )
    if truth.dtype.kind not in "iu" or truth.min() < 0 or truth.max() >= len(classes):
        raise InputError(f"labels must be integers in 0..{len(classes) - 1}, got {sorted(set(truth.tolist()))[:8]}.")
    bad = int((~np.isfinite(scores)).any(axis=1).sum())
    if bad:
        raise InputError(f"{bad} of {len(scores)} images have a probability that is not finite: the model is broken.")
    return truth.astype(np.int64), scores


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
