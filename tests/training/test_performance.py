"""Performance against counting pairs and walking down the ranking, in plain loops."""

import json
import math

import numpy as np
import pytest

from heatproof.errors import InputError
from heatproof.training.performance import performance

CLASSES = ["a", "b", "c"]


def _auroc(positive, scores):
    """The share of (positive, negative) pairs in the right order, ties counting half (`hanley1982meaning`)."""
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[positive] for n in scores[~positive]]
    return sum(pairs) / len(pairs)


def _average_precision(positive, scores):
    """Precision at each distinct threshold times the recall gained there."""
    total, last = 0.0, 0
    for threshold in sorted(set(scores), reverse=True):
        hits = int((positive & (scores >= threshold)).sum())
        total += hits / int((scores >= threshold).sum()) * (hits - last) / positive.sum()
        last = hits
    return total


def _case(seed=0, n=60):
    random = np.random.default_rng(seed)
    labels = random.choice(3, size=n, p=[0.6, 0.3, 0.1])
    scores = random.random((n, 3)).round(1) + 0.5 * np.eye(3)[labels]  # with ties
    return labels, scores / scores.sum(axis=1, keepdims=True)


def test_every_number():
    labels, scores = _case()
    got = performance(labels, scores, CLASSES)
    auroc = [_auroc(labels == k, scores[:, k]) for k in range(3)]
    auprc = [_average_precision(labels == k, scores[:, k]) for k in range(3)]
    support = [int((labels == k).sum()) for k in range(3)]
    assert list(got.auroc.values()) == pytest.approx(auroc)
    assert list(got.auprc.values()) == pytest.approx(auprc)
    assert list(got.support.values()) == support
    assert got.accuracy == pytest.approx(np.mean([row.argmax() == k for row, k in zip(scores, labels, strict=True)]))
    assert (got.auroc_macro, got.auprc_macro) == pytest.approx((sum(auroc) / 3, sum(auprc) / 3))
    weighted = [sum(s * v for s, v in zip(support, values, strict=True)) / 60 for values in (auroc, auprc)]
    assert (got.auroc_weighted, got.auprc_weighted) == pytest.approx(tuple(weighted))
    assert got.undefined == ()


def test_a_class_without_positives_is_undefined_and_left_out():
    labels, scores = _case()
    labels[labels == 2] = 1
    got = performance(labels, scores, CLASSES)
    assert got.undefined == ("c",)
    assert math.isnan(got.auroc["c"])
    assert math.isnan(got.auprc["c"])
    assert got.auroc_macro == pytest.approx((got.auroc["a"] + got.auroc["b"]) / 2)
    assert got.auprc_weighted == pytest.approx(
        (got.auprc["a"] * got.support["a"] + got.auprc["b"] * got.support["b"]) / 60
    )
    plain = json.loads(json.dumps(got.to_dict(), allow_nan=False))
    assert plain["auroc"]["c"] is None
    assert plain["undefined"] == ["c"]
    assert plain["support"]["c"] == 0
    assert plain["auroc_macro"] == got.auroc_macro


def test_a_class_without_negatives_leaves_nothing_defined():
    got = performance([0, 0], [[0.9, 0.1], [0.2, 0.8]], ["a", "b"])
    assert got.undefined == ("a", "b")
    assert got.accuracy == 0.5
    assert math.isnan(got.auroc_macro)
    assert math.isnan(got.auprc_weighted)
    assert got.to_dict()["auroc_weighted"] is None


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([], np.zeros((0, 2)), "at least 1"),
        ([0], [[0.1, 0.2, 0.7]], r"got \[1\] and \[1, 3\]"),
        ([2], [[0.1, 0.9]], r"0\.\.1, got \[2\]"),
        ([0.5], [[0.1, 0.9]], "integers"),
        ([0, 1], [[0.1, 0.9], [math.nan, 0.5]], "1 of 2 images"),
    ],
)
def test_bad_input(labels, scores, message):
    with pytest.raises(InputError, match=message):
        performance(labels, scores, ["a", "b"])
