"""Confidence intervals by bootstrap over patients.

Images of one patient are not independent, so patients are drawn with replacement, each with all its images. The bounds
are bias-corrected and accelerated (`efron1987better`); the acceleration comes from the jackknife over patients.

Draws of few patients spread too little: by the factor `(k − 1) / k` in variance, and as a normal where Student's t is
due. So the normal quantile `z` of the level is replaced by `sqrt(k / (k − 1)) · t_(k−1)` (`hesterberg2015what`, here
within BCa), where `k = (Σ m)² / Σ m²` is the effective number of patients with m images each (`kish1965survey`). With a
hundred patients this changes little; with thirty, 95 % intervals that held the mean in about 92 of 100 data sets hold it
in about 94 (`benchmarks/results/statistics_coverage.md`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtr, ndtri, stdtrit

from heatproof.checks import check_choice, check_count
from heatproof.errors import InputError
from heatproof.statistics.resampling import (
    Floats,
    Indices,
    alike_columns,
    check_draws,
    drawn_counts,
    drawn_patients,
    patient_codes,
    sums_by_patient,
)

Method = Literal["bca", "percentile", "wilson", "point", "none"]

_SPREAD = 1e-12  # what differs by less, relative to its size, differs by rounding


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

    In simulations, 95 % intervals of thirty or more patients held the mean in 94 to 97 of 100 data sets, and in 91 to 93
    where scores were extremely skewed (log-normal, skewness 6); see `benchmarks/results/statistics_coverage.md`.

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
    column = np.asarray(values, dtype=np.float64)
    patient_codes(patients, column)
    return patient_bootstrap_columns(column[:, None], patients, draws=draws, seed=seed, level=level, share=share)[0]


def patient_bootstrap_columns(
    values: ArrayLike,
    patients: ArrayLike,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    share: bool = True,
) -> list[Interval]:
    """`patient_bootstrap` of every column of `values` `[N, M]`: the same M results from draws made once.

    Args:
        values: M scores an image (of M methods, say), `[N, M]`; NaN is left out and counted column by column.
        patients: as in `patient_bootstrap`, like all that follows.
        draws: bootstrap draws.
        seed: of the draws.
        level: coverage.
        share: the values lie within [0, 1].

    Raises:
        InputError: as `patient_bootstrap` does.

    Example:
        >>> scores, patients = [[0.2, 1.0], [0.4, 1.0], [0.9, 0.0]], ["a", "b", "c"]
        >>> both = patient_bootstrap_columns(scores, patients)
        >>> both == [patient_bootstrap(column, patients) for column in np.transpose(scores)]
        True
    """
    table = np.asarray(values, dtype=np.float64)
    check_draws(draws, level)
    if table.ndim != 2:
        raise InputError(f"values must be [N, M], N images with M scores each, got shape {list(table.shape)}.")
    codes = patient_codes(patients, table)
    if np.isinf(table).any():
        raise InputError("A score is infinite: an interval of its mean does not exist. Find the sample that has it.")
    return mean_intervals(table, codes, draws=draws, seed=seed, level=level, share=share)


def mean_intervals(
    values: Floats, codes: Indices, *, draws: int, seed: int, level: float, share: bool
) -> list[Interval]:
    """`patient_bootstrap_columns` of checked arguments, with `patient_codes` in place of patients."""
    defined = ~np.isnan(values)
    sums, images = sums_by_patient(values, codes), sums_by_patient(defined.astype(np.float64), codes)
    found: dict[int, Interval] = {}
    for people, columns in alike_columns(images > 0):
        table = np.stack([part[people, columns] for part in (sums, images)])
        drawn = intervals_of_sums(lambda total: total[0] / total[1], table, draws=draws, seed=seed, level=level)
        for i, m in enumerate(columns):
            found[m] = _without_spread(drawn[i], values[defined[:, m], m], table[..., i], level, share)
    return [replace(found[m], nan=int(nan)) for m, nan in enumerate((~defined).sum(axis=0))]


def _without_spread(drawn: Interval, values: Floats, table: Floats, level: float, share: bool) -> Interval:
    """`drawn`, or what stands in its place where the draws cannot differ."""
    sums, images = table  # of each patient
    if share and len(values) and values.min() == values.max() and values[0] in (0, 1):
        low, high = wilson(float(values[0]) * len(images), len(images), level)
        return replace(drawn, low=low, high=high, method="wilson")
    if len(images) > 1 and np.ptp(sums / images) <= _SPREAD * np.abs(values).max():
        return replace(drawn, low=drawn.estimate, high=drawn.estimate, method="point")
    return drawn


def intervals_of_sums(
    function: Callable[[Floats], Floats], sums: Floats, *, draws: int, seed: int, level: float
) -> list[Interval]:
    """The M intervals of a statistic that is a function of sums over patients, from draws made once.

    Args:
        function: `[K, ..., M] -> [..., M]`, K sums to the statistic of M columns; NaN where it is undefined.
        sums: `[K, P, M]`, those of each patient; the last of the K counts the patient's images.
        draws: as in `patient_bootstrap`, like all that follows.
        seed: of the draws.
        level: coverage.
    """
    total, people = sums.sum(axis=1), sums.shape[1]
    blocks = drawn_counts(people, draws, seed) if people > 1 else ()
    with np.errstate(invalid="ignore", divide="ignore"):  # nothing divided by nothing is NaN: undefined
        estimate, without = function(total), function(total[:, None] - sums)
        drawn = np.concatenate([np.empty((0, sums.shape[2])), *(function(counts @ sums) for counts in blocks)])
    return [
        interval_of_draws(float(estimate[m]), drawn[:, m], without[:, m], sums[-1, :, m], level=level)
        for m in range(sums.shape[2])
    ]


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
    check_draws(draws, level)
    check_choice("method", method, ("bca", "percentile"))
    if not columns:
        raise InputError("patient_bootstrap_statistic needs the columns that the statistic is computed from, got none.")
    codes = patient_codes(patients, *columns)
    images = np.bincount(codes)
    rows = np.split(np.argsort(codes, kind="stable"), np.cumsum(images)[:-1]) if len(codes) else []

    def statistic(chosen: Sequence[NDArray[np.intp]]) -> float:
        index = np.concatenate(chosen)
        return float(function(*(column[index] for column in columns)))

    estimate = statistic(rows) if rows else math.nan
    if len(rows) < 2 or math.isnan(estimate):
        return Interval(estimate, math.nan, math.nan, len(codes), len(rows), nan=0, method="none")
    drawn = [statistic([rows[p] for p in d]) for block in drawn_patients(len(rows), draws, seed) for d in block]
    without = [statistic(rows[:p] + rows[p + 1 :]) for p in range(len(rows))] if method == "bca" else None
    return interval_of_draws(estimate, drawn, without, images, level=level)


def interval_of_draws(
    estimate: float, drawn: ArrayLike, jackknife: ArrayLike | None, images: ArrayLike, *, level: float = 0.95
) -> Interval:
    """The interval of a statistic from its values in draws of patients, wherever they were computed.

    Args:
        estimate: on all images.
        drawn: in each draw, `[draws]` (the weights of the patients come from `drawn_counts`); NaN is left out and counted.
        jackknife: without each patient in turn, `[P]`. None asks for percentiles; a NaN among them leaves no other choice.
        images: of each patient, `[P]`.
        level: coverage.

    Example:
        >>> values, images = np.array([0.1, 0.4, 0.9]), np.ones(3)
        >>> draws = np.concatenate([counts @ values / 3 for counts in drawn_counts(3, draws=2000, seed=0)])
        >>> found = interval_of_draws(values.mean(), draws, (values.sum() - values) / 2, images)
        >>> found == patient_bootstrap(values, ["a", "b", "c"])
        True
    """
    values, per_patient = np.asarray(drawn, dtype=np.float64), np.asarray(images, dtype=np.float64)
    without = np.array([math.nan]) if jackknife is None else np.asarray(jackknife, dtype=np.float64)
    exists = values[~np.isnan(values)]
    base: dict[str, Any] = {"n": int(per_patient.sum()), "patients": len(per_patient), "nan": 0}
    base["nan_draws"] = len(values) - len(exists)
    if not len(exists) or math.isnan(estimate) or len(per_patient) < 2:
        return Interval(estimate, math.nan, math.nan, **base, method="none")
    if np.ptp(exists) <= _SPREAD * np.abs(exists).max():
        return Interval(estimate, estimate, estimate, **base, method="point")
    z = _normal_quantile(per_patient, level)
    if np.isnan(without).any():
        low, high = np.quantile(exists, ndtr([-z, z]))
        return Interval(estimate, float(low), float(high), **base, method="percentile")
    low, high = np.quantile(exists, _bca_shares(estimate, exists, without, z))
    return Interval(estimate, float(low), float(high), **base)


def wilson(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (`wilson1927probable`).

    Args:
        successes: from 0 to `n`.
        n: independent trials.
        level: coverage.

    Raises:
        InputError: `n` is no count, `successes` lies outside 0..n, or `level` is out of range.

    Example:
        >>> low, high = wilson(1, 10)
        >>> round(low, 3), round(high, 3)
        (0.018, 0.404)
    """
    check_draws(check_count("n", n), level)
    if not 0 <= successes <= n:
        raise InputError(f"successes must lie between 0 and n = {n}, got {successes!r}.")
    share = successes / n
    z = float(ndtri((1 + level) / 2))
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # exact where all agree: rounding must not turn 0 into a bound above it
    return (0.0 if share == 0 else centre - half), (1.0 if share == 1 else centre + half)


def _normal_quantile(images: Floats, level: float) -> float:
    """Where the draws have their bounds of a two-sided `level`, on the scale of a standard normal."""
    effective = images.sum() ** 2 / (images**2).sum()
    return math.sqrt(effective / (effective - 1)) * float(stdtrit(effective - 1, (1 + level) / 2))


def _bca_shares(estimate: float, drawn: Floats, jackknife: Floats, z: float) -> list[float]:
    """The shares of the draws below the two bounds."""
    # ties count half, so a discrete statistic is not shifted by them; the clip keeps z0 finite
    below = ((drawn < estimate).mean() + (drawn <= estimate).mean()) / 2
    z0 = float(ndtri(np.clip(below, 0.5 / len(drawn), 1 - 0.5 / len(drawn))))
    influence = jackknife.mean() - jackknife
    spread = float((influence**2).sum())
    acceleration = float((influence**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    return [_bca_share(z0, acceleration, sign * z) for sign in (-1, 1)]


def _bca_share(z0: float, acceleration: float, z: float) -> float:
    shrink = 1 - acceleration * (z0 + z)
    if shrink <= 0:  # beyond the pole of the acceleration: the outermost draw
        return float(z0 + z > 0)
    return float(ndtr(z0 + (z0 + z) / shrink))
