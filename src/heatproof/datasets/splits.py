"""Splits by patient: no patient's images stand on two sides."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from heatproof.datasets.table import SPLITS, some
from heatproof.errors import InputError, near_names

DEFAULT_FRACTIONS: Mapping[str, float] = {"train": 0.7, "val": 0.1, "test": 0.2}


def split_by_patient(
    samples: pd.DataFrame, *, fractions: Mapping[str, float] = DEFAULT_FRACTIONS, seed: int = 0
) -> "pd.Series[str]":
    """A split for every row of `samples` (patient_id, label), whole patients at a time, stratified by label.

    Iterative stratification (sechidis2011stratification): the rarest class first, each of its patients goes to the
    split that lacks most images of it, large patients before small ones, in seeded order; what rounding left is carried
    to the next class. The result depends on the seed and on the set of rows, not on their order.

    Args:
        samples: a table with `patient_id` and `label`.
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
    counts = pd.crosstab(samples["patient_id"], samples["label"]).sort_index().sort_index(axis=1)
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(-counts.to_numpy().sum(axis=1)[order], kind="stable")]
    rarest_first = np.argsort(counts.to_numpy().sum(axis=0), kind="stable")
    chosen = _assign(counts.to_numpy()[order], np.array(list(fractions.values())), rarest_first)
    names = list(fractions)
    split_of = {counts.index[patient]: names[split] for patient, split in zip(order, chosen, strict=True)}
    return samples["patient_id"].map(split_of).rename("split")


def _assign(counts: Any, fractions: Any, rarest_first: Any) -> Any:
    """The split of every patient, by its images a class `[P, K]`."""
    lacking = np.outer(fractions, counts.sum(axis=0))
    chosen = np.full(len(counts), -1)
    carried = np.zeros(len(fractions))
    for label in rarest_first:
        lacking[:, label] += carried
        for patient in np.flatnonzero((counts[:, label] > 0) & (chosen < 0)):
            # rounded, so that equal needs are ties on every machine: then the first split, in the order given
            chosen[patient] = np.where(fractions > 0, lacking[:, label].round(9), -np.inf).argmax()
            lacking[chosen[patient]] -= counts[patient]
        carried = lacking[:, label]
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
        samples: a table with `sample_id, patient_id, label, split`.
        classes: that must have training images; by default all labels found.
        required: the splits that must not be empty.

    Raises:
        InputError: a sample without split, a patient in two splits, an empty split, a class without training images;
            each is named.
    """
    undecided = samples.loc[samples["split"].isna(), "sample_id"]
    if len(undecided):
        raise InputError(
            f"No split for {some(undecided, len(undecided))}. Fill the column, or have them split by patient."
        )
    splits_of = samples.groupby("patient_id")["split"].unique()
    leaking = [f"{patient} ({', '.join(sorted(names))})" for patient, names in splits_of.items() if len(names) > 1]
    if leaking:
        raise InputError(f"Patients in more than one split: {some(leaking, len(leaking))}. A patient belongs to one.")
    for split in required:
        if not (samples["split"] == split).any():
            raise InputError(f"The split {split!r} is empty: give it images, or a larger fraction of the patients.")
    trained = set(samples.loc[samples["split"] == "train", "label"])
    missing = [name for name in classes or sorted(set(samples["label"])) if name not in trained]
    if missing and "train" in required:
        raise InputError(f"Classes without training images: {', '.join(missing)}. Add some, or leave the class out.")
