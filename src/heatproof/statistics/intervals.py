"""Confidence intervals by bootstrap over patients.

Images of one patient are not independent, so patients are drawn with replacement, each with all its images. The bounds
are bias-corrected and accelerated (`efron1987better`); the acceleration comes from the jackknife over patients.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri

from heatproof.checks import check_choice, check_count
from heatproof.errors import InputError

Floats = NDArray[np.float64]
Method = Literal["bca", "percentile", "wilson", "point", "none"]

# Draws are made in blocks of about this many table cells, so that memory does not grow with the number of patients.
_BLOCK_CELLS = 2**22


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence bounds.

    `n` images of `patients` patients stand behind it; `nan` values were left out because they are undefined, and
    `nan_draws` bootstrap draws because the statistic is undefined there. `method` says how the bounds came about:
    `bca`, `percentile`, `wilson`, `point` (every patient has the same value, so every draw gives the estimate) or
    `none` (fewer than two patients, or a statistic that is undefined: the bounds are NaN).
    """

    estimate: float
    low: float
    high: float
    n: int
    patients: int
    nan: int
    method: Method = "bca"
    nan_draws: int = 0


def patient_bootstrap(
    values: ArrayLike,
    patients: ArrayLike,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    share: bool = True,
) -> Interval:
    """The mean of `values` over images with its interval by bootstrap over patients.

    Where all values are 0, or all are 1, resampling shows no spread at all; the bounds are then Wilson's
    (`wilson1927probable`), counting patients and not images, because the images of a patient may be one observation
    repeated. It is right for binary scores and wide enough for any score within [0, 1]; for scores that can be larger,
    `share=False` takes equal values as what they are, a point.

    Args:
        values: one score an image, `[N]`; NaN (undefined) is left out and counted.
        patients: the patient of each image, `[N]`.
        draws: bootstrap draws.
        seed: of the draws; the rows' order does not matter.
        level: coverage.
        share: the values lie within [0, 1].

    Raises:
        InputError: lengths differ, a value is infinite, a patient is missing, or `draws` or `level` is out of range.

    Example:
        >>> patient_bootstrap([1, 1, 1, 1], ["a", "a", "b", "c"])  # doctest: +ELLIPSIS
        Interval(estimate=1.0, low=0.4385..., high=1.0, n=4, patients=3, nan=0, method='wilson', nan_draws=0)
    """
    scores = np.asarray(values, dtype=np.float64)
    _check_options(draws, level)
    codes = _patient_codes(patients, scores)
    if np.isinf(scores).any():
        raise InputError("A score is infinite: an interval of its mean does not exist. Find the sample that has it.")
    defined = ~np.isnan(scores)
    scores, codes = scores[defined], np.unique(codes[defined], return_inverse=True)[1]
    counts = np.bincount(codes)
    base: dict[str, Any] = {"n": len(scores), "patients": len(counts), "nan": int((~defined).sum())}
    if not len(scores):
        return Interval(math.nan, math.nan, math.nan, **base, method="none")
    estimate = float(scores.sum() / len(scores))
    if share and scores.min() == scores.max() and estimate in (0.0, 1.0):
        low, high = _wilson(estimate, len(counts), level)
        return Interval(estimate, low, high, **base, method="wilson")
    if len(counts) < 2:
        return Interval(estimate, math.nan, math.nan, **base, method="none")
    sums = np.bincount(codes, weights=scores)
    if np.ptp(sums / counts) <= 1e-12 * np.abs(scores).max():
        return Interval(estimate, estimate, estimate, **base, method="point")
    drawn = np.concatenate([(table @ sums) / (table @ counts) for table in _drawn_counts(len(counts), draws, seed)])
    jackknife = (sums.sum() - sums) / (counts.sum() - counts)
    low, high = _bca(estimate, drawn, jackknife, level)
    return Interval(estimate, low, high, **base)


def patient_bootstrap_statistic(
    function: Callable[..., float],
    patients: ArrayLike,
    *arrays: ArrayLike,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    method: Literal["bca", "percentile"] = "bca",
) -> Interval:
    """A statistic of several columns (accuracy, AUROC) with its interval by bootstrap over patients.

    `function(*arrays)` is called once for each draw and each patient, on the rows of the patients drawn. Draws for
    which it gives NaN (no positive among the patients drawn, say) are left out and counted in `nan_draws`; the interval
    is then one for samples in which the statistic exists. Where leaving out one patient makes it NaN, the acceleration
    does not exist and the bounds are percentiles: `method` of the result says so.

    Args:
        function: takes the arrays' rows, returns one number.
        patients: the patient of each row, `[N]`.
        arrays: each `[N, ...]`.
        draws: bootstrap draws.
        seed: of the draws.
        level: coverage.
        method: `bca` or `percentile`.

    Raises:
        InputError: lengths differ, a patient is missing, an unknown method, or `draws` or `level` is out of range.

    Example:
        >>> right = np.array([1, 1, 0, 1, 1, 0])
        >>> interval = patient_bootstrap_statistic(np.mean, ["a", "a", "b", "b", "c", "c"], right)
        >>> interval == patient_bootstrap(right, ["a", "a", "b", "b", "c", "c"])
        True
    """
    columns = [np.asarray(array) for array in arrays]
    _check_options(draws, level)
    check_choice("method", method, ("bca", "percentile"))
    if not columns:
        raise InputError("patient_bootstrap_statistic needs the columns that the statistic is computed from, got none.")
    codes = _patient_codes(patients, *columns)
    rows = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1]) if len(codes) else []
    base: dict[str, Any] = {"n": len(codes), "patients": len(rows), "nan": 0}

    def statistic(chosen: Sequence[NDArray[np.intp]]) -> float:
        index = np.concatenate(chosen)
        return float(function(*(column[index] for column in columns)))

    estimate = statistic(rows) if rows else math.nan
    if len(rows) < 2 or math.isnan(estimate):
        return Interval(estimate, math.nan, math.nan, **base, method="none")
    drawn = np.array(
        [statistic([rows[p] for p in d]) for block in _drawn_patients(len(rows), draws, seed) for d in block]
    )
    base["nan_draws"] = int(np.isnan(drawn).sum())
    drawn = drawn[~np.isnan(drawn)]
    if not len(drawn):
        return Interval(estimate, math.nan, math.nan, **base, method="none")
    if np.ptp(drawn) <= 1e-12 * np.abs(drawn).max():
        return Interval(estimate, estimate, estimate, **base, method="point")
    jackknife = np.array([statistic(rows[:p] + rows[p + 1 :]) for p in range(len(rows))] if method == "bca" else [])
    if method == "percentile" or np.isnan(jackknife).any():
        low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
        return Interval(estimate, float(low), float(high), **base, method="percentile")
    low, high = _bca(estimate, drawn, jackknife, level)
    return Interval(estimate, low, high, **base)


def _check_options(draws: int, level: float) -> None:
    check_count("draws", draws)
    if not 0 < level < 1:
        raise InputError(f"level must lie between 0 and 1 (0.95 is usual), got {level}.")


def _patient_codes(patients: ArrayLike, *columns: NDArray[Any]) -> NDArray[np.intp]:
    """A number for each row's patient, in the order of the patients' names, so that the rows' order does not matter."""
    names = pd.Series(np.asarray(patients, dtype=object))
    for column in columns:
        if column.ndim < 1 or len(column) != len(names):
            raise InputError(f"One patient a row is needed: got {len(names)} patients for shape {column.shape}.")
    if names.isna().any():
        raise InputError(f"{int(names.isna().sum())} rows have no patient. Give each its own where it is unknown.")
    return np.unique(names.astype(str).to_numpy(dtype=str), return_inverse=True)[1]


def _drawn_patients(patients: int, draws: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """The patients of each draw, with replacement: blocks `[draws, patients]`, the same whatever the block size."""
    random = np.random.default_rng(seed)
    block = max(1, _BLOCK_CELLS // patients)
    for start in range(0, draws, block):
        yield random.integers(0, patients, size=(min(block, draws - start), patients))


def _drawn_counts(patients: int, draws: int, seed: int) -> Iterator[Floats]:
    """The same draws as counts: blocks `[draws, patients]` of how often each patient was drawn."""
    for drawn in _drawn_patients(patients, draws, seed):
        cells = drawn + patients * np.arange(len(drawn))[:, None]
        yield np.bincount(cells.ravel(), minlength=cells.size).reshape(cells.shape).astype(np.float64)


def _bca(estimate: float, drawn: Floats, jackknife: Floats, level: float) -> tuple[float, float]:
    # ties count half, so a discrete statistic is not shifted by them; the clip keeps z0 finite
    below = ((drawn < estimate).mean() + (drawn <= estimate).mean()) / 2
    z0 = float(ndtri(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn))))
    influence = jackknife.mean() - jackknife
    spread = float((influence**2).sum())
    acceleration = float((influence**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    bounds = [_bca_quantile(z0, acceleration, float(ndtri((1 + sign * level) / 2))) for sign in (-1, 1)]
    low, high = np.quantile(drawn, bounds)
    return float(low), float(high)


def _bca_quantile(z0: float, acceleration: float, z: float) -> float:
    shrink = 1 - acceleration * (z0 + z)
    if shrink <= 0:  # beyond the pole of the acceleration: the outermost draw
        return float(z0 + z > 0)
    return float(ndtr(z0 + (z0 + z) / shrink))


def _wilson(share: float, n: int, level: float) -> tuple[float, float]:
    z = float(ndtri((1 + level) / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # exact where all agree: rounding must not turn 0 into a bound above it
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)
