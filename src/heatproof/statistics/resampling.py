"""Draws of whole patients: with replacement for intervals, by sign for tests.

Images of one patient are not independent, so nothing here ever draws an image.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from heatproof.checks import check_count
from heatproof.errors import InputError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Indices = NDArray[np.intp]

# Draws are made in blocks of about this many table cells, so that memory does not grow with the number of patients.
_BLOCK_CELLS = 2**22


def patient_codes(patients: ArrayLike, *columns: NDArray[Any]) -> Indices:
    """A number for each row's patient, in the order of the patients' names, so that the rows' order does not matter.

    Args:
        patients: `[N]`.
        columns: arrays that must have N rows too.

    Raises:
        InputError: lengths differ, or a patient is missing.

    Example:
        >>> patient_codes(["b", "a", "b"])
        array([1, 0, 1])
    """
    names = pd.Series(np.asarray(patients, dtype=object))
    for column in columns:
        if column.ndim < 1 or len(column) != len(names):
            raise InputError(f"One patient a row is needed: got {len(names)} patients for shape {column.shape}.")
    if names.isna().any():
        raise InputError(f"{int(names.isna().sum())} rows have no patient. Give each its own where it is unknown.")
    return np.unique(names.astype(str).to_numpy(dtype=str), return_inverse=True)[1]


def drawn_patients(patients: int, draws: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """The patients of each draw, with replacement: blocks `[draws, patients]`, the same whatever the block size."""
    random = np.random.default_rng(seed)
    for size in _blocks(patients, draws):
        yield random.integers(0, patients, size=(size, patients))


def drawn_counts(patients: int, draws: int, seed: int) -> Iterator[Floats]:
    """How often each patient was drawn: blocks `[draws, patients]`, together `draws` rows.

    `counts @ sums` turns a table of per-patient sums into those of every draw, and `counts[:, codes]` are the weights of
    the images in each draw.

    Example:
        >>> (counts,) = drawn_counts(3, draws=4, seed=0)
        >>> counts.shape, counts.sum(axis=1)
        ((4, 3), array([3., 3., 3., 3.]))
    """
    for drawn in drawn_patients(patients, draws, seed):
        cells = drawn + patients * np.arange(len(drawn))[:, None]
        yield np.bincount(cells.ravel(), minlength=cells.size).reshape(cells.shape).astype(np.float64)


def drawn_signs(patients: int, draws: int, seed: int) -> Iterator[Floats]:
    """A sign for each patient: blocks `[draws, patients]` of 1 and -1, the same whatever the block size."""
    random = np.random.default_rng(seed)
    for size in _blocks(patients, draws):
        words = random.integers(0, 2**32, size=(size, -(-patients // 32)), dtype=np.uint32)
        yield 2 * np.unpackbits(words.view(np.uint8), axis=1, count=patients).astype(np.float64) - 1


def all_signs(patients: int) -> Floats:
    """Every way to give each patient a sign: `[2 ** patients, patients]`."""
    return 2 * (np.arange(2**patients)[:, None] >> np.arange(patients) & 1).astype(np.float64) - 1


def sums_by_patient(values: Floats, codes: Indices) -> Floats:
    """`[N, M]` -> `[P, M]`; an undefined value adds nothing."""
    columns = np.nan_to_num(values, nan=0.0).T
    patients = int(codes.max(initial=-1)) + 1
    return np.stack([np.bincount(codes, weights=column, minlength=patients) for column in columns], axis=1)


def alike_columns(present: Bools) -> Iterator[tuple[Indices, Indices]]:
    """The columns of `present` `[P, M]` by their number of patients, because the same draws serve equally many.

    A patient without a value in a column must not be drawn for it. Yields `people` `[P', m]` and `columns` `[m]`, so that
    `sums[people, columns]` has what each column's own patients add to it.

    Example:
        >>> present = np.array([[True, False, True], [True, True, False], [True, True, True]])
        >>> [(people.T.tolist(), columns.tolist()) for people, columns in alike_columns(present)]
        [([[1, 2], [0, 2]], [1, 2]), ([[0, 1, 2]], [0])]
    """
    numbers = present.sum(axis=0)
    present_first = np.argsort(~present, axis=0, kind="stable")
    for number in np.unique(numbers):
        columns = np.flatnonzero(numbers == number)
        yield present_first[:number, columns], columns


def check_draws(draws: int, level: float) -> None:
    """Raise `InputError` unless `draws` is a count and `level` lies between 0 and 1."""
    check_count("draws", draws)
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1 (0.95 is usual), got {level}.")


def _blocks(patients: int, draws: int) -> Iterator[int]:
    size = max(1, _BLOCK_CELLS // patients)
    for start in range(0, draws, size):
        yield min(size, draws - start)
