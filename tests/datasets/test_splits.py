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


# --- several labels an image ---


def multilabel(patients, seed=0, known=1.0):
    """Patients with one to four images; common, uncommon and rare labels that come together, and images without any."""
    random, rows = np.random.default_rng(seed), []
    for patient in range(patients):
        own = random.random(4) < [0.5, 0.25, 0.1, 0.04]
        for image in range(random.integers(1, 5)):
            values = np.where(random.random(4) < 0.15, ~own, own).astype(float)
            values[random.random(4) > known] = np.nan
            rows.append((f"{patient}-{image}", f"P{patient}", *values))
    frame = pd.DataFrame(rows, columns=["sample_id", "patient_id", *(f"label_{name}" for name in "abcd")])
    labels = ["|".join(np.array(list("abcd"))[row == 1]) for row in frame.filter(like="label_").to_numpy()]
    return frame.assign(labels=labels)


THREE = {"train": 0.6, "val": 0.15, "test": 0.25}


@pytest.mark.parametrize("seed", range(5))
def test_several_labels_stand_in_the_wanted_fractions_and_patients_stay_whole(seed):
    samples = multilabel(300, seed)
    samples["split"] = split_by_patient(samples, fractions=THREE, seed=seed)
    assert (samples.groupby("patient_id")["split"].nunique() == 1).all()
    for split, fraction in THREE.items():
        part = samples["split"] == split
        assert abs(part.sum() - fraction * len(samples)) <= 4  # one patient more or less
        for name in "abcd":
            has = samples[f"label_{name}"] == 1
            assert abs((has & part).sum() - fraction * has.sum()) <= 4, (split, name)


def test_stratified_splits_are_far_nearer_the_fractions_than_random_ones():
    samples = multilabel(300, 3)
    values, patients = samples.filter(like="label_").to_numpy(), samples["patient_id"].unique()

    def distance(split):
        """Images too many or too few, on average over classes and splits."""
        return np.mean([abs(values[split == name].sum(0) - part * values.sum(0)) for name, part in THREE.items()])

    random, drawn = np.random.default_rng(0), []
    for _ in range(50):
        of_patient = pd.Series(random.choice(list(THREE), len(patients), p=list(THREE.values())), patients)
        drawn.append(distance(samples["patient_id"].map(of_patient)))
    assert 5 * distance(split_by_patient(samples, fractions=THREE)) < np.mean(drawn)


def test_the_algorithm_by_hand():
    """Half and half: 1.5 images of a a split, 1 of b, 0.5 of c, 3 in all.

    c is the rarest: P6 (b, c) meets equal needs and goes to the first split, train, which then lacks no b. So the next
    rarest, b, sends P5 to test. Each lacks 1.5 of a and 2 images: P1 with two images goes to train, which then has half
    an image too many of a: P2 goes to test. P3 has no label and goes where images are lacking: test lacks 1, train none.
    """
    rows = [("P1", "a"), ("P1", "a"), ("P2", "a"), ("P3", ""), ("P5", "b"), ("P6", "b|c")]
    samples = pd.DataFrame(rows, columns=["patient_id", "labels"])
    for seed in range(5):
        split = split_by_patient(samples, fractions={"train": 0.5, "test": 0.5}, seed=seed)
        assert split.tolist() == ["train", "train", "test", "test", "test", "train"]


def test_several_labels_independent_of_row_order_but_not_of_the_seed():
    samples = multilabel(60)
    straight = split_by_patient(samples, seed=7)
    shuffled = samples.sample(frac=1, random_state=1)
    pd.testing.assert_series_equal(split_by_patient(shuffled, seed=7).sort_index(), straight)
    as_objects = samples.assign(labels=samples["labels"].astype(object))
    pd.testing.assert_series_equal(split_by_patient(as_objects, seed=7), straight)
    assert not straight.equals(split_by_patient(samples, seed=8))


def test_several_labels_and_a_split_of_fraction_zero():
    assert set(split_by_patient(multilabel(40), fractions={"train": 0.5, "val": 0, "test": 0.5})) == {"train", "test"}


def test_images_without_any_label_are_split_too():
    samples = pd.DataFrame({"patient_id": [f"{i:02}" for i in range(20)], "labels": [""] * 20})
    assert split_by_patient(samples).value_counts().to_dict() == {"train": 14, "val": 2, "test": 4}


def test_every_class_needs_a_training_image_with_and_one_without():
    samples = multilabel(60).assign(split="train")
    check_splits(samples, classes=list("abcd"), required=["train"])
    check_splits(samples, required=["train"])
    never, always = samples.assign(label_c=samples["label_c"].replace(1, 0)), samples.assign(label_a=1.0)
    with pytest.raises(InputError, match="without a training image that has it: c. Add some, change what uncertain"):
        check_splits(never, classes=list("abcd"), required=["train"])
    with pytest.raises(InputError, match="without a training image known not to have it: a. "):
        check_splits(always, classes=list("abcd"), required=["train"])
    unknown = samples.assign(label_b=samples["label_b"].where(samples["label_b"] == 1))
    with pytest.raises(InputError, match="known not to have it: b. "):
        check_splits(unknown, classes=list("abcd"), required=["train"])
    check_splits(always.assign(split="test"), classes=list("abcd"), required=["test"])


def test_only_training_images_count_for_what_a_class_needs():
    samples = multilabel(60)
    has = samples.groupby("patient_id")["label_d"].transform("max")
    samples["split"] = np.where(has == 1, "test", "train")
    with pytest.raises(InputError, match="that has it: d"):
        check_splits(samples, classes=list("abcd"), required=["train", "test"])
