"""Splits by patient: no patient's images stand on two sides."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from heatproof.datasets.cells import some
from heatproof.datasets.labels import SEPARATOR, label_column
from heatproof.datasets.table import SPLITS
from heatproof.errors import InputError, near_names

Counts = NDArray[np.int64]
DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.7, "val": 0.1, "test": 0.2}


def split_by_patient(
    samples: pd.DataFrame, *, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, seed: int = 0
) -> "pd.Series[str]":
    """A split for every row of `samples`, whole patients at a time, stratified by label.

    Iterative stratification (sechidis2011stratification) with patients as units: the rarest class first, each of its
    patients goes to the split that lacks most images of it, large patients before small ones, in seeded order. With one
    label an image the order of the classes is fixed, and what rounding left is carried to the next one. With several,
    the rarest is found anew each time among the patients left, ties go to the split that lacks most images of any kind,
    and patients of whom no label is known to apply fill up what is left. The result depends on the seed and on the set
    of rows, not on their order.

    Args:
        samples: a table with `patient_id` and `label`, or that of a multi-label data set (with `labels`).
        fractions: part of the images a split, adding up to 1; of `train`, `val`, `test`.
        seed: of the order of patients.

    Raises:
        InputError: unknown split, fractions that are negative or do not add up to 1.

    Example:
        >>> table = pd.DataFrame({"patient_id": list("aabbcdef"), "label": ["x", "x", "y", "y", "x", "x", "y", "y"]})
        >>> split_by_patient(table, fractions={"train": 0.5, "test": 0.5}).value_counts().to_dict()
        {'train': 4, 'test': 4}
    """
    _check_fractions(fractions)
    several = "labels" in samples
    shown = _named(samples["labels"]) if several else pd.get_dummies(samples["label"], dtype=int)
    by_patient = shown.groupby(samples["patient_id"])
    counts, images = by_patient.sum().sort_index(axis=1), np.asarray(by_patient.size(), dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-images[order], kind="stable")]
    parts = np.array(list(fractions.values()))
    assign = _assign_several if several else _assign
    chosen = assign(counts.to_numpy()[order], images[order], parts)
    names = list(fractions)
    split_of = {counts.index[patient]: names[split] for patient, split in zip(order, chosen, strict=True)}
    return samples["patient_id"].map(split_of).rename("split")


def _named(labels: "pd.Series[str]") -> pd.DataFrame:
    """By class (column) whether an image's labels name it, 1 or 0."""
    # no label at all is a class of its own in one of pandas' kinds of text, and none in the other
    return labels.str.get_dummies(SEPARATOR).drop(columns="", errors="ignore")


def _assign(counts: Counts, images: Counts, fractions: NDArray[np.float64]) -> Counts:
    """The split of every patient, by its images `[P]` and those of each class `[P, K]`; one class an image."""
    lacking = np.outer(fractions, counts.sum(axis=0))
    chosen = np.full(len(images), -1)
    carried = np.zeros(len(fractions))
    for label in np.argsort(counts.sum(axis=0), kind="stable"):
        lacking[:, label] += carried
        for patient in np.flatnonzero((counts[:, label] > 0) & (chosen < 0)):
            # rounded, so that equal needs are ties on every machine: then the first split, in the order given
            chosen[patient] = np.where(fractions > 0, lacking[:, label].round(9), -np.inf).argmax()
            lacking[chosen[patient]] -= counts[patient]
        carried = lacking[:, label]
    return chosen


def _assign_several(counts: Counts, images: Counts, fractions: NDArray[np.float64]) -> Counts:
    """The same with any number of classes an image."""
    lacking, lacking_images = np.outer(fractions, counts.sum(axis=0)), fractions * images.sum()
    chosen = np.full(len(images), -1)
    while (chosen < 0).any():
        left = np.where((chosen < 0)[:, None], counts, 0).sum(axis=0)
        if left.any():
            label = np.where(left > 0, left, left.max() + 1).argmin()
            patients, needs = np.flatnonzero((chosen < 0) & (counts[:, label] > 0)), lacking[:, label]
        else:
            patients, needs = np.flatnonzero(chosen < 0), np.zeros(len(fractions))
        for patient in patients:
            # rounded as above; a split of fraction 0 never lacks anything, and one of the others always does
            chosen[patient] = np.lexsort((-lacking_images.round(9), -needs.round(9)))[0]
            lacking[chosen[patient]] -= counts[patient]
            lacking_images[chosen[patient]] -= images[patient]
    return chosen


def _check_fractions(fractions: Mapping[str, float]) -> None:
    for name, fraction in fractions.items():
        if name not in SPLITS:
            raise InputError(f"Unknown split {name!r}. {near_names(name, SPLITS)}")
        if not 0 <= fraction <= 1:
            raise InputError(f"The fraction of {name!r} must lie in 0 to 1, got {fraction}.")
    if not math.isclose(sum(fractions.values()), 1, abs_tol=1e-6):
        raise InputError(
            f"The fractions must add up to 1, got {dict(fractions)}, together {sum(fractions.values()):g}."
        )


def check_splits(
    samples: pd.DataFrame, *, classes: Sequence[str] | None = None, required: Sequence[str] = SPLITS
) -> None:
    """Raise for splits that cannot be trained and tested on.

    A class without images in the test set is no error: its figures are undefined there and reported so.

    Args:
        samples: a table with `sample_id, patient_id, split` and `label`, or that of a multi-label data set.
        classes: that must have training images; by default all labels found.
        required: the splits that must not be empty.

    Raises:
        InputError: a sample without split, a patient in two splits, an empty split, a class without training images
            (with several labels an image: without one that has it, or one known not to have it); each is named.
    """
    undecided = samples.loc[samples["split"].isna(), "sample_id"]
    if len(undecided):
        raise InputError(
            f"No split for {some(undecided, len(undecided))}. Fill the column, or have them split by patient."
        )
    places = samples[["patient_id", "split"]].drop_duplicates()
    splits_of = places[places["patient_id"].duplicated(keep=False)].groupby("patient_id")["split"]
    if len(splits_of):
        leaking = (f"{patient} ({', '.join(sorted(names))})" for patient, names in splits_of)
        raise InputError(f"Patients in more than one split: {some(leaking, len(splits_of))}. A patient belongs to one.")
    for split in required:
        if not (samples["split"] == split).any():
            raise InputError(f"The split {split!r} is empty: give it images, or a larger fraction of the patients.")
    if "train" in required:
        trained = samples[samples["split"] == "train"]
        (_check_trained_several if "labels" in samples else _check_trained)(trained, samples, classes)


def _check_trained(trained: pd.DataFrame, samples: pd.DataFrame, classes: Sequence[str] | None) -> None:
    present = set(trained["label"])
    missing = [name for name in classes or sorted(set(samples["label"])) if name not in present]
    if missing:
        raise InputError(f"Classes without training images: {', '.join(missing)}. Add some, or leave the class out.")


def _check_trained_several(trained: pd.DataFrame, samples: pd.DataFrame, classes: Sequence[str] | None) -> None:
    names = classes or _named(samples["labels"]).columns
    for value, what in ((1, "that has it"), (0, "known not to have it")):
        missing = [name for name in names if not (trained[label_column(name)] == value).any()]
        if missing:
            raise InputError(
                f"Classes without a training image {what}: {', '.join(missing)}. Add some, change what uncertain and "
                "blank count as, or leave the class out."
            )
