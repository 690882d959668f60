"""The benchmark of what heatmaps depend on: its verdicts, its similarities and its permuted labels."""

import sys
from pathlib import Path

import numpy as np
import torch

from heatproof.datasets.phantom import make_phantom
from heatproof.metrics.similarity import spearman

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))  # where scripts are started from

import explainer_sanity as sanity

PATIENTS = [str(row) for row in range(40)]


def around(mean: float, seed: int, spread: float = 0.1) -> np.ndarray:
    """Forty numbers of exactly that mean."""
    drawn = np.random.default_rng(seed).normal(size=40)
    return mean + spread * (drawn - drawn.mean())


def test_a_verdict_asks_for_little_likeness_and_for_less_than_that_of_another_seed() -> None:
    """The half width of a 95 % interval is about 0.03 for each, and 0.045 for a difference."""
    found = around(0.1, 1)
    assert sanity.verdict(found, around(0.3, 2), PATIENTS) == "passes"
    assert sanity.verdict(found, around(0.11, 2), PATIENTS) == "undecided"
    assert sanity.verdict(found, around(0.0, 2), PATIENTS) == "undecided"
    assert sanity.verdict(around(0.9, 1), around(0.99, 2), PATIENTS) == "too alike"
    assert sanity.verdict(around(0.49, 1), around(0.99, 2), PATIENTS) == "too alike"  # not surely below
    assert sanity.verdict(around(0.45, 1), around(0.99, 2), PATIENTS) == "passes"
    assert sanity.verdict(np.full(40, np.nan), found, PATIENTS) == "undefined"


def test_the_difference_from_another_seed_is_taken_image_by_image() -> None:
    """Both spread widely, and each image by as much: the intervals overlap and that of the difference lies above 0."""
    found = around(0.0, 1, spread=0.4)
    assert sanity.verdict(found, found + 0.05, PATIENTS) == "passes"
    assert sanity.verdict(found, (found + 0.05)[::-1].copy(), PATIENTS) == "undecided"


def test_similarities_are_means_over_the_draws_that_have_one() -> None:
    first, flat = torch.rand(2, 5, 5), torch.zeros(2, 5, 5)
    first_again, other = first.clone(), torch.rand(2, 5, 5)
    mixed = torch.stack([flat[0], other[1]])  # the first map says nothing
    found = sanity.similarities(first, {"two": [first_again, mixed], "flat": [flat]}, spearman)
    expected = (1 + spearman(first, other)[1]) / 2
    np.testing.assert_allclose(found["two"], [1.0, float(expected)])
    assert np.isnan(found["flat"]).all()


def test_permuted_labels_are_those_of_other_training_images(tmp_path: Path) -> None:
    data = make_phantom(tmp_path / "phantom", patients=40, size=32, classes=list(sanity.CLASSES))
    samples = sanity.with_permuted_labels(data).samples.set_index("sample_id")
    before = data.subset("train").samples.set_index("sample_id")["label"]
    train, val = samples[samples["split"] == "train"], samples[samples["split"] == "val"]
    assert list(train.index) == list(before.index)
    assert sorted(train["label"]) == sorted(before)
    assert (train["label"] != before).any()
    assert list(val["label"]) == list(train["label"])
    assert list(val["image"]) == list(train["image"])
    assert not {*val["patient_id"]} & {*train["patient_id"]}
