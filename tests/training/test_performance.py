"""Performance against counting pairs and walking down the ranking, in plain loops."""

import json
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, balanced_accuracy_score, confusion_matrix, roc_auc_score

from heatproof.errors import InputError
from heatproof.statistics import patient_bootstrap, patient_bootstrap_statistic
from heatproof.training.areas import Ranking
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


def test_areas_for_any_weights_are_those_of_sklearn():
    """With ties, with patients that weigh nothing, and with weights that are no whole numbers."""
    random = np.random.default_rng(3)
    n, patients = 120, 30
    codes = random.integers(0, patients, n)
    scores = random.random(n).round(1)
    positive = random.random(n) < 0.3
    counts = np.concatenate([random.integers(0, 4, (20, patients)), random.random((5, patients))]).astype(float)
    auroc, auprc = Ranking(positive, scores, codes, patients).areas(counts)
    for row, weights in enumerate(counts[:, codes]):
        used = weights > 0
        want = [
            function(positive[used], scores[used], sample_weight=weights[used])
            for function in (roc_auc_score, average_precision_score)
        ]
        assert (auroc[row], auprc[row]) == pytest.approx(want, abs=1e-12)


def test_areas_where_a_draw_has_one_side_only():
    ranking = Ranking(np.array([True, True, False]), np.array([0.9, 0.2, 0.5]), np.array([0, 1, 2]), 3)
    auroc, auprc = ranking.areas(np.array([[1.0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 2, 1]]))
    np.testing.assert_array_equal(auroc, [np.nan, np.nan, 1, 0])
    np.testing.assert_allclose(auprc, [np.nan, np.nan, 1, 2 / 3])
    nothing = Ranking(np.zeros(3, bool), np.array([0.9, 0.2, 0.5]), np.array([0, 1, 2]), 3)
    assert np.isnan(nothing.areas(np.ones((2, 3)))).all()


def test_calibration_by_hand():
    """Confidences .95 .85 .55 .6 .7: bins (14/15, 1], (12/15, 13/15], (8/15, 9/15] twice and (10/15, 11/15]."""
    confidence = np.array([0.95, 0.85, 0.55, 0.6, 0.7])
    right = [1, 0, 1, 0, 1]
    scores = np.stack([confidence, 1 - confidence], axis=1)
    labels = [0 if r else 1 for r in right]
    got = performance(labels, scores, ["a", "b"], draws=0)
    gaps = [abs(1 - 0.95), abs(0 - 0.85), abs((1 + 0) - (0.55 + 0.6)), abs(1 - 0.7)]
    assert got.ece == pytest.approx(sum(gaps) / 5, abs=1e-12)
    filled = {row["n"]: row for row in got.reliability}
    assert len(got.reliability) == 15
    assert [round(row["low"] * 15) for row in got.reliability if row["n"]] == [8, 10, 12, 14]
    assert (filled[2]["confidence"], filled[2]["accuracy"]) == pytest.approx((0.575, 0.5))
    assert math.isnan(filled[0]["accuracy"])
    assert got.to_dict()["reliability"][0] == {"low": 0, "high": 1 / 15, "n": 0, "confidence": None, "accuracy": None}


def test_calibration_of_several_labels_by_hand():
    """Label a: p .1 .1 .9, truth 0 1 1: bins of 2 and 1. Label b: the unknown one is left out."""
    targets = np.array([[0, 1], [1, math.nan], [1, 0]])
    scores = np.array([[0.1, 0.5], [0.1, 0.2], [0.9, 0.5]])
    got = performance(targets, scores, ["a", "b"], task="multilabel", draws=0)
    error_a = (abs(1 - 0.2) + abs(1 - 0.9)) / 3
    error_b = abs(1 - 1.0) / 2
    assert got.ece == pytest.approx((error_a + error_b) / 2, abs=1e-12)
    assert {round(row["high"] * 15): row["n"] for row in got.reliability if row["n"]} == {2: 2, 8: 2, 14: 1}
    assert got.confusion == {"a": [[1, 0], [1, 1]], "b": [[0, 1], [0, 1]]}, "0.5 says that it applies"
    assert (got.accuracy, got.balanced_accuracy) == pytest.approx((3 / 5, (3 / 4 + 1 / 2) / 2))


def test_accuracies_and_confusion_of_one_label():
    labels, scores = _case()
    got = performance(labels, scores, CLASSES, draws=0)
    chosen = scores.argmax(axis=1)
    assert got.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, chosen), abs=1e-12)
    assert got.confusion == confusion_matrix(labels, chosen).tolist()
    assert sum(map(sum, got.confusion)) == len(labels)


def _several(seed=1, n=80):
    random = np.random.default_rng(seed)
    targets = (random.random((n, 3)) < [0.2, 0.5, 0.7]).astype(float)
    scores = np.clip(random.random((n, 3)).round(1) * 0.7 + 0.3 * targets, 0, 1)
    targets[random.random((n, 3)) < 0.1] = math.nan
    return targets, scores


def test_every_number_of_several_labels():
    """Each label on the images for which it is known, against sklearn."""
    targets, scores = _several()
    got = performance(targets, scores, CLASSES, task="multilabel", draws=0)
    hits, halves = [], []
    for k, name in enumerate(CLASSES):
        known = ~np.isnan(targets[:, k])
        truth, p = targets[known, k] == 1, scores[known, k]
        assert got.auroc[name] == pytest.approx(roc_auc_score(truth, p), abs=1e-12)
        assert got.auprc[name] == pytest.approx(average_precision_score(truth, p), abs=1e-12)
        assert (got.support[name], got.unknown[name]) == (truth.sum(), (~known).sum())
        assert got.confusion[name] == confusion_matrix(truth, p >= 0.5).tolist()
        hits += (truth == (p >= 0.5)).tolist()
        halves.append(balanced_accuracy_score(truth, p >= 0.5))
    assert got.accuracy == pytest.approx(np.mean(hits), abs=1e-12)
    assert got.balanced_accuracy == pytest.approx(np.mean(halves), abs=1e-12)
    assert got.auroc_macro == pytest.approx(np.mean(list(got.auroc.values())), abs=1e-12)
    support = list(got.support.values())
    assert got.auprc_weighted == pytest.approx(np.average(list(got.auprc.values()), weights=support), abs=1e-12)


def test_a_label_without_positives_is_left_out_of_the_averages():
    targets, scores = _several()
    targets[:, 1] = np.where(np.isnan(targets[:, 1]), np.nan, 0)
    got = performance(targets, scores, CLASSES, task="multilabel", draws=100)
    assert got.undefined == ("b",)
    assert got.auroc_macro == pytest.approx((got.auroc["a"] + got.auroc["c"]) / 2)
    assert math.isnan(got.intervals["auroc.b"].low)
    assert got.intervals["auroc.b"].method == "none"
    assert got.intervals["auroc_macro"].low < got.auroc_macro < got.intervals["auroc_macro"].high
    two = performance(targets[:, [0, 2]], scores[:, [0, 2]], ["a", "c"], task="multilabel", draws=0)
    assert got.balanced_accuracy == pytest.approx(two.balanced_accuracy)


def _statistics(task):
    """Each figure as a plain function of rows, for a bootstrap that takes its time."""

    def figures(function):
        def one(labels, scores):
            found = performance(labels, scores, CLASSES, task=task, draws=0)
            # a draw without one of the classes has no average over all of them
            return math.nan if found.undefined and function.needs_all else function(found)

        return one

    names = {name: (lambda f, name=name: getattr(f, name)) for name in ("accuracy", "ece", "balanced_accuracy")}
    names |= {name: (lambda f, name=name: getattr(f, name)) for name in ("auroc_macro", "auprc_weighted")}
    names |= {"auroc.a": lambda f: f.auroc["a"], "auprc.c": lambda f: f.auprc["c"]}
    for name, function in names.items():
        function.needs_all = name in ("balanced_accuracy", "auroc_macro", "auprc_weighted")
    return {name: figures(function) for name, function in names.items()}


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_intervals_are_those_of_a_plain_bootstrap(task):
    """The same draws of patients, each figure computed anew on the rows drawn."""
    labels, scores = _case() if task == "multiclass" else _several()
    if task == "multilabel":
        labels = np.where(np.isnan(labels), 0, labels)  # so that every patient has every label
    patients = np.arange(len(labels)) // 4
    got = performance(labels, scores, CLASSES, task=task, patients=patients, draws=60, seed=5).intervals
    for name, function in _statistics(task).items():
        want = patient_bootstrap_statistic(function, patients, labels, scores, draws=60, seed=5)
        for field in ("estimate", "low", "high"):
            assert getattr(got[name], field) == pytest.approx(getattr(want, field), abs=1e-12), (name, field)
        assert (got[name].n, got[name].patients, got[name].nan_draws, got[name].method) == (
            want.n, want.patients, want.nan_draws, want.method,
        ), name  # fmt: skip


def test_intervals_of_accuracy_are_those_of_a_mean():
    labels, scores = _case()
    patients = np.arange(60) // 3
    right = scores.argmax(axis=1) == labels
    for truth, hits in ((labels, right), (scores.argmax(axis=1), np.ones(60))):
        got = performance(truth, scores, CLASSES, patients=patients, draws=200).intervals["accuracy"]
        assert got == patient_bootstrap(hits, patients, draws=200)


def test_intervals_of_more_patients_than_are_computed_at_once():
    labels, scores = _case(n=700)
    right = scores.argmax(axis=1) == labels
    patients = np.sort(np.arange(700) % 600)  # some have two images
    got = performance(labels, scores, CLASSES, patients=patients, draws=300).intervals["accuracy"]
    want = patient_bootstrap(right, patients, draws=300)
    assert (got.low, got.high, got.method) == pytest.approx((want.low, want.high, "bca"), abs=1e-12)


def test_unknown_labels_are_counted_and_their_patients_stay_away():
    targets, scores = _several()
    targets[:8, 0] = math.nan
    targets[:4] = math.nan
    got = performance(targets, scores, CLASSES, task="multilabel", patients=np.arange(80) // 4, draws=100).intervals
    known = int((~np.isnan(targets[:, 0])).sum())
    assert (got["auroc.a"].n, got["auroc.a"].nan, got["auroc.a"].patients) == (known, 80 - known, 18)
    assert (got["accuracy"].n, got["accuracy"].nan, got["accuracy"].patients) == (76, 4, 19)


def test_a_perfect_order_of_few_proves_little():
    """Three patients with a positive: the lower bound is Wilson's of 3 of 3, 1 / (1 + z² / 3)."""
    labels = np.array([1, 1, 1] + [0] * 20)
    scores = np.where(labels == 1, 0.9, 0.2)
    got = performance(labels, np.stack([1 - scores, scores], axis=1), ["no", "yes"], draws=100)
    bound = 1 / (1 + 1.959963984540054**2 / 3)
    for name in ("auroc.yes", "auprc.no", "auroc_macro", "balanced_accuracy"):
        interval = got.intervals[name]
        assert (interval.method, interval.high) == ("wilson", 1), name
        assert interval.low == pytest.approx(bound), name
    assert got.intervals["accuracy"].low == pytest.approx(1 / (1 + 1.959963984540054**2 / 23))


def test_the_dictionary_has_every_interval_in_plain_values():
    labels, scores = _case()
    plain = json.loads(json.dumps(performance(labels, scores, CLASSES, draws=50).to_dict(), allow_nan=False))
    averages = [
        "accuracy",
        "balanced_accuracy",
        "ece",
        "auroc_macro",
        "auroc_weighted",
        "auprc_macro",
        "auprc_weighted",
    ]
    assert set(plain["intervals"]) == {*averages, *(f"{area}.{c}" for area in ("auroc", "auprc") for c in CLASSES)}
    assert set(plain["intervals"]["ece"]) >= {"estimate", "low", "high", "n", "patients", "nan", "method"}
    assert plain["task"] == "multiclass"
    assert all(plain["intervals"][name]["estimate"] == plain[name] for name in averages)
    assert performance(labels, scores, CLASSES, draws=0).to_dict()["intervals"] == {}


def test_a_class_may_have_any_name():
    labels, scores = _case()
    names = ["auroc", "a.b", "labels"]
    plain, odd = (performance(labels, scores, classes, draws=20) for classes in (CLASSES, names))
    assert odd.intervals["auroc.a.b"] == plain.intervals["auroc.b"]


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([], np.zeros((0, 2)), "at least 1"),
        ([0], [[0.1, 0.2, 0.7]], r"got \[1\] and \[1, 3\]"),
        ([2], [[0.1, 0.9]], r"0\.\.1, got \[2\]"),
        ([0.5], [[0.1, 0.9]], "integers"),
        ([0, 1], [[0.1, 0.9], [math.nan, 0.5]], "1 of 2 images"),
        ([0, 1], [[0.1, 0.9], [3.5, -2.5]], r"within 0 to 1, got -2\.5 to 3\.5: give softmax"),
    ],
)
def test_bad_input(labels, scores, message):
    with pytest.raises(InputError, match=message):
        performance(labels, scores, ["a", "b"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "multilabel"}, r"labels \[N, 2\] .* got \[2\] and \[2, 2\]"),
        ({"task": "binary"}, "task"),
        ({"draws": -1}, "draws"),
        ({"level": 1.5}, "level"),
        ({"patients": ["p"]}, "One patient a row"),
        ({"patients": ["p", None]}, "1 rows have no patient"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(InputError, match=message):
        performance([0, 1], [[0.1, 0.9], [0.5, 0.5]], ["a", "b"], **options)


def test_labels_of_several_are_zero_one_or_unknown():
    with pytest.raises(InputError, match="must be 0, 1 or NaN"):
        performance([[0, -1]], [[0.5, 0.5]], ["a", "b"], task="multilabel")
