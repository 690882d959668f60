"""Splits: whole patients, the wanted fractions, the same from any row order."""

import numpy as np
import pandas as pd
import pytest

from heatproof.datasets.splits import check_splits, split_by_patient
from heatproof.errors import InputError


def cohort(patients, seed=0):
    """Patients with one to four images; a tenth of them has images of two classes."""
    random, rows = np.random.default_rng(seed), []
    for patient in range(patients):
        label = random.choice(["a", "b", "c"], p=[0.6, 0.3, 0.1])
        for image in range(random.integers(1, 5)):
            other = random.random() < 0.1
            rows.append((f"{patient}-{image}", f"P{patient}", "a" if other else label))
    return pd.DataFrame(rows, columns=["sample_id", "patient_id", "label"])


@pytest.mark.parametrize("seed", range(5))
def test_whole_patients_in_the_wanted_fractions_of_every_class(seed):
    samples = cohort(200, seed)
    samples["split"] = split_by_patient(samples, fractions={"train": 0.6, "val": 0.15, "test": 0.25}, seed=seed)
    assert (samples.groupby("patient_id")["split"].nunique() == 1).all()
    for label, rows in samples.groupby("label"):
        parts = rows["split"].value_counts(normalize=True)
        slack = 4 / len(rows)  # one patient more or less
        for split, fraction in {"train": 0.6, "val": 0.15, "test": 0.25}.items():
            assert abs(parts[split] - fraction) <= slack, (label, split)


def test_single_images_are_split_by_largest_remainder():
    samples = pd.DataFrame({"patient_id": [f"{i:02}" for i in range(20)], "label": ["a"] * 13 + ["b"] * 7})
    split = split_by_patient(samples, seed=3)
    counts = pd.crosstab(samples["label"], split)
    # b: 4.9, 0.7, 1.4 -> 5, 1, 1, and what is left (-0.1, -0.3, 0.4) is carried to a: 9.1 - 0.1, 1.3 - 0.3, 2.6 + 0.4
    assert counts.loc["b", ["train", "val", "test"]].tolist() == [5, 1, 1]
    assert counts.loc["a", ["train", "val", "test"]].tolist() == [9, 1, 3]


def test_few_patients_leave_no_split_empty():
    samples = pd.DataFrame({"patient_id": list("abcdef"), "label": ["x"] * 3 + ["y"] * 3})
    assert split_by_patient(samples).value_counts().to_dict() == {"train": 4, "val": 1, "test": 1}


def test_independent_of_row_order_and_of_the_table_it_stands_in():
    samples = cohort(60)
    straight = split_by_patient(samples, seed=7)
    shuffled = samples.sample(frac=1, random_state=1)
    pd.testing.assert_series_equal(split_by_patient(shuffled, seed=7).sort_index(), straight)


def test_the_seed_decides():
    samples = cohort(60)
    assert split_by_patient(samples, seed=1).equals(split_by_patient(samples, seed=1))
    assert not split_by_patient(samples, seed=1).equals(split_by_patient(samples, seed=2))


def test_a_split_of_fraction_zero_stays_empty():
    split = split_by_patient(cohort(40), fractions={"train": 0.5, "val": 0, "test": 0.5})
    assert set(split) == {"train", "test"}


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ({"train": 0.5, "test": 0.4}, "add up to 1"),
        ({"train": 1.5, "test": -0.5}, "must lie in 0 to 1"),
        ({"train": 0.5, "tst": 0.5}, "Did you mean 'test'"),
    ],
)
def test_refused_fractions(fractions, message):
    with pytest.raises(InputError, match=message):
        split_by_patient(cohort(5), fractions=fractions)


GOOD = {
    "sample_id": list("abcdef"),
    "patient_id": ["1", "1", "2", "3", "4", "5"],
    "label": ["x", "y", "x", "x", "y", "y"],
    "split": ["train", "train", "val", "test", "test", "test"],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patient_id": ["1", "1", "1", "3", "4", "5"]}, r"more than one split: 1 \(train, val\)"),
        ({"split": ["train", "train", "test", "test", "test", "test"]}, "split 'val' is empty"),
        ({"label": ["x", "x", "x", "x", "y", "y"]}, "without training images: y"),
        ({"split": ["train", "train", None, "test", "test", "test"]}, "No split for c"),
    ],
)
def test_splits_that_cannot_be_trained_on(change, message):
    check_splits(pd.DataFrame(GOOD))
    with pytest.raises(InputError, match=message):
        check_splits(pd.DataFrame(GOOD | change))


def test_classes_beyond_the_table_and_splits_not_needed():
    with pytest.raises(InputError, match="without training images: z"):
        check_splits(pd.DataFrame(GOOD), classes=["x", "y", "z"])
    only_test = pd.DataFrame(GOOD).query("split == 'test'")
    check_splits(only_test, required=["test"])


def test_a_class_without_test_images_is_allowed():
    check_splits(pd.DataFrame(GOOD | {"label": ["x", "y", "x", "x", "x", "x"]}))
