"""Whether probabilities are what they say (`guo2017calibration`): bins of equal width, and the gap within each."""

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from heatproof.models.classifier import Task

Floats = NDArray[np.float64]
BINS = 15
_EDGES = np.linspace(0, 1, BINS + 1)


def bin_numbers(confidences: Floats) -> NDArray[np.intp]:
    """The bin of each confidence, 0..14; the bound between two belongs to the lower one.

    >>> bin_numbers(np.array([0.0, 1 / 15, 0.07, 1.0]))
    array([ 0,  0,  1, 14])
    """
    return np.clip(np.searchsorted(_EDGES, confidences, side="left") - 1, 0, BINS - 1)


def confidences(targets: Floats, scores: Floats, task: Task) -> tuple[Floats, Floats]:
    """Confidence, and whether it was right, of every decision that is calibrated; NaN where the label is unknown.

    Multi-class: of the most probable class, `[N, 1]` each. Multi-label: the probability of every label, and whether it
    applies, `[N, K]` each.
    """
    if task == "multilabel":
        return np.where(np.isnan(targets), np.nan, scores), targets
    top = scores.argmax(axis=1)[:, None]
    return np.take_along_axis(scores, top, axis=1), np.take_along_axis(targets, top, axis=1)


def reliability(targets: Floats, scores: Floats, task: Task) -> tuple[dict[str, float], ...]:
    """A row a bin: low, high, n decisions, their mean confidence and the share that is right (NaN where empty)."""
    said, right = (part[~np.isnan(part)] for part in confidences(targets, scores, task))
    bins = bin_numbers(said)
    rows = []
    for number, (low, high) in enumerate(pairwise(_EDGES.tolist())):
        inside = bins == number
        n = int(inside.sum())
        means = [float(part[inside].mean()) if n else math.nan for part in (said, right)]
        rows.append({"low": low, "high": high, "n": n, "confidence": means[0], "accuracy": means[1]})
    return tuple(rows)
