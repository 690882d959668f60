"""Targets against indexing by hand."""

import pytest
import torch

from heatproof.errors import InputError
from heatproof.models import Targets

LOGITS = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])


def test_scores_of_one_and_of_several_targets():
    assert Targets.of(torch.tensor([2, 0]), None, 3).score(LOGITS).tolist() == [[4.0], [8.0]]
    several = Targets.of(torch.tensor([[0, 1], [2, 2]]), None, 3)
    assert several.score(LOGITS).tolist() == [[1.0, 2.0], [32.0, 32.0]]
    assert (several.count, several.index.dtype) == (2, torch.int64)


def test_contrasts():
    index = torch.tensor([2, 0], dtype=torch.int32)
    assert Targets.of(index, 1, 3).score(LOGITS).tolist() == [[2.0], [-8.0]]
    assert Targets.of(index, torch.tensor([0, 2]), 3).score(LOGITS).tolist() == [[3.0], [-24.0]]


def test_rows():
    targets = Targets.of(torch.tensor([2, 0]), torch.tensor([0, 2]), 3).rows(1, 2)
    assert (targets.index.tolist(), targets.against.tolist()) == ([[0]], [[2]])
    assert Targets.of(torch.tensor([2, 0]), None, 3).rows(0, 1).against is None


@pytest.mark.parametrize(
    ("index", "against", "message"),
    [
        (torch.tensor([0.0]), None, r"integers of shape \[B\]"),
        (torch.tensor([True]), None, "integers"),
        (torch.zeros(1, 1, 1, dtype=torch.long), None, r"shape \(1, 1, 1\)"),
        (torch.tensor([3]), None, r"0\.\.2 for a model with 3 outputs, got values from 3 to 3"),
        (torch.tensor([-1]), None, r"from -1"),
        (torch.tensor([0]), 3, "against must lie"),
        (torch.tensor([0, 1]), torch.tensor([0]), "shape of targets"),
    ],
)
def test_bad_targets(index, against, message):
    with pytest.raises(InputError, match=message):
        Targets.of(index, against, 3)
