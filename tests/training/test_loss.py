"""Losses against their formulas in float64, and class weights by hand."""

import math

import numpy as np
import pytest
import torch

from heatproof.errors import InputError
from heatproof.training.loss import Loss, class_weights, classification_loss


def _logits(rows=6, classes=3):
    return torch.randn(rows, classes, dtype=torch.float64) * 2


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy(smoothing, weighted):
    logits, labels = _logits(), [0, 2, 1, 0, 0, 2]
    weights = torch.tensor([0.5, 2.0, 1.0], dtype=torch.float64)
    total = norm = 0.0
    for z, k in zip(logits.tolist(), labels, strict=True):
        logp = [a - math.log(sum(math.exp(b) for b in z)) for a in z]
        w = weights.tolist() if weighted else [1.0] * 3
        total += -(1 - smoothing) * w[k] * logp[k] - smoothing / 3 * sum(a * b for a, b in zip(w, logp, strict=True))
        norm += w[k]
    targets = torch.eye(3, dtype=torch.float64)[labels]
    got = classification_loss(logits, targets, "multiclass", weights=weights if weighted else None, smoothing=smoothing)
    assert float(got.total) == pytest.approx(total, rel=1e-12)
    assert float(got.weight) == pytest.approx(norm, rel=1e-12)
    assert float(got.mean) == pytest.approx(total / norm, rel=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_binary_cross_entropy_leaves_out_what_is_unknown(smoothing):
    logits = _logits(4, 2)
    targets = torch.tensor([[1, 0], [math.nan, 1], [0, math.nan], [1, 1]], dtype=torch.float64)
    weights = torch.tensor([3.0, 0.5], dtype=torch.float64)
    total, known = 0.0, 0
    for i in range(4):
        for k in range(2):
            y = float(targets[i, k])
            if not math.isnan(y):
                p = 1 / (1 + math.exp(-float(logits[i, k])))
                y = y * (1 - smoothing) + smoothing / 2
                total -= float(weights[k]) * y * math.log(p) + (1 - y) * math.log(1 - p)
                known += 1
    got = classification_loss(logits, targets, "multilabel", weights=weights, smoothing=smoothing)
    assert float(got.total) == pytest.approx(total, rel=1e-12)
    assert float(got.weight) == known == 6


def test_an_unknown_label_gives_no_gradient():
    logits = _logits(2, 2).requires_grad_()
    targets = torch.tensor([[1, math.nan], [math.nan, math.nan]], dtype=torch.float64)
    classification_loss(logits, targets, "multilabel").mean.backward()
    expected = torch.zeros(2, 2, dtype=torch.float64)
    expected[0, 0] = torch.sigmoid(logits[0, 0]) - 1
    torch.testing.assert_close(logits.grad, expected.detach())


def test_a_batch_of_which_nothing_is_known_costs_nothing():
    logits = _logits(2, 2).requires_grad_()
    loss = classification_loss(logits, torch.full((2, 2), math.nan), "multilabel").mean
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


def test_losses_of_batches_add_up_to_that_of_all():
    logits, targets = _logits(7), torch.eye(3, dtype=torch.float64)[[0, 1, 2, 2, 1, 0, 0]]
    weights = torch.tensor([0.3, 1.0, 5.0], dtype=torch.float64)
    parts = [
        classification_loss(logits[rows], targets[rows], "multiclass", weights=weights)
        for rows in (slice(0, 4), slice(4, 7))
    ]
    both = Loss(*(sum(part) for part in zip(*parts, strict=True)))
    whole = classification_loss(logits, targets, "multiclass", weights=weights)
    assert float(both.mean) == pytest.approx(float(whole.mean), rel=1e-12)


def test_balanced_weights():
    one = torch.eye(3)[[0, 0, 0, 0, 1, 1, 2, 2]]
    got = class_weights("balanced", one, "multiclass", ["a", "b", "c"])
    torch.testing.assert_close(got, torch.tensor([8 / 12, 8 / 6, 8 / 6]))
    several = torch.tensor([[1, 1], [0, math.nan], [0, 0], [0, 1]])
    torch.testing.assert_close(class_weights("balanced", several, "multilabel", ["a", "b"]), torch.tensor([3.0, 0.5]))


def test_weights_by_name():
    assert class_weights(None, torch.eye(2), "multiclass", ["a", "b"]) is None
    got = class_weights({"b": 2.5}, torch.eye(3), "multiclass", ["a", "b", "c"])
    np.testing.assert_array_equal(got, [1, 2.5, 1])
    with pytest.raises(InputError, match="'lesoin' is no class. Did you mean 'lesion'"):
        class_weights({"lesoin": 2}, torch.eye(2), "multiclass", ["normal", "lesion"])
