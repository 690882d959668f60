"""Two methods on the same images: paired tests by sign flips over patients, and their correction for many pairs."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from heatproof.checks import check_count
from heatproof.errors import InputError
from heatproof.statistics.intervals import Interval, intervals_of_sums, mean_intervals
from heatproof.statistics.resampling import (
    Bools,
    Floats,
    Indices,
    alike_columns,
    all_signs,
    check_draws,
    drawn_signs,
    patient_codes,
    sums_by_patient,
)

FAMILY = ("dataset", "model", "metric")  # within these, all pairs of methods are corrected together
NUMBERS = """difference low high interval standardized standardized_low standardized_high p exact p_holm n patients
    dropped""".split()
_ROUNDING = 1e-12  # sums that differ by less of the sum of their sizes are equal


@dataclass(frozen=True)
class SignFlipTest:
    """A paired comparison: how large the difference is, and how often chance alone gives one as large.

    `difference` is the mean difference; `standardized` is it in units of the differences' standard deviation over images
    (Cohen's d_z, `cohen1988statistical`), NaN where all differences are equal. `p` is two-sided, NaN where there is no
    pair; `exact` says that all sign flips were counted and not a draw of them. Pairs, patients and undefined pairs are
    counted in `difference`.
    """

    difference: Interval
    standardized: Interval
    p: float
    exact: bool


def sign_flip_test(
    differences: ArrayLike,
    patients: ArrayLike,
    *,
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    interval_draws: int = 2000,
) -> SignFlipTest:
    """Whether the mean of paired differences is zero, by flipping the signs of whole patients.

    If neither method is better, a patient's differences are as likely as their negatives, all of them together because
    they are not independent. So the mean over images is computed under random signs, one for each patient, and `p` is
    the share of flips, the unflipped one included, whose mean is at least as far from zero: `(1 + count) / (1 + draws)`
    (`phipson2010permutation`), never 0. Where there are no more than `draws` ways to flip, each is counted once.

    Args:
        differences: one paired difference an image, `[N]`; NaN (undefined) is left out and counted.
        patients: the patient of each image, `[N]`.
        draws: sign flips.
        seed: of the flips and of the intervals' draws.
        level: coverage of the intervals.
        interval_draws: bootstrap draws of the intervals.

    Raises:
        InputError: lengths differ, a difference is infinite, a patient is missing, or an option is out of range.

    Example:
        >>> test = sign_flip_test([0.3, 0.1, 0.2, 0.4], ["a", "a", "b", "c"])
        >>> test.difference.estimate, test.p, test.exact  # the same sign in three patients: 2 of 8 flips are as extreme
        (0.25, 0.25, True)
    """
    column = np.asarray(differences, dtype=np.float64)
    check_draws(draws, level)
    check_count("interval_draws", interval_draws)
    codes = patient_codes(patients, column)
    if column.ndim != 1:
        raise InputError(f"differences must be [N], one an image, got shape {list(column.shape)}.")
    if np.isinf(column).any():
        raise InputError("A difference is infinite: its mean does not exist. Find the sample that has it.")
    return _tests(column[:, None], codes, draws, seed, level, interval_draws)[0]


def holm(pvalues: ArrayLike) -> Floats:
    """P values corrected for their number by Holm's step-down procedure (`holm1979simple`).

    The i-th smallest of m is multiplied by `m + 1 - i`, is at least as large as the one before, and at most 1. NaN (no
    test was possible) stays NaN and does not count.

    Args:
        pvalues: from 0 to 1 or NaN, `[M]`.

    Raises:
        InputError: a value lies outside 0..1, or they are not one list.

    Example:
        >>> holm([0.01, 0.04, float("nan"), 0.03])
        array([0.03, 0.06,  nan, 0.06])
    """
    values = np.asarray(pvalues, dtype=np.float64)
    if values.ndim != 1 or ((values < 0) | (values > 1)).any():
        raise InputError(f"holm needs a list of p values from 0 to 1 (NaN where there is none), got {pvalues!r}.")
    order = np.argsort(values)[: int((~np.isnan(values)).sum())]  # NaN comes last
    corrected = np.full(len(values), math.nan)
    weights = np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(weights * values[order]), 1)
    return corrected


def compare(
    scores: pd.DataFrame,
    *,
    draws: int = 10_000,
    seed: int = 0,
    level: float = 0.95,
    interval_draws: int = 2000,
) -> pd.DataFrame:
    """All pairs of methods within each data set, model and metric, paired by image.

    Holm's correction is over all pairs of such a family, whatever is shown of them. An image (each target of it, where
    there are several) in which one of the two scores is undefined or missing is left out of the pair and counted. Where
    a score is infinite there is no mean difference: the row's numbers are NaN, and it does not count for Holm.

    Args:
        scores: a row a score, as `Run.scores` has them: sample_id, patient_id, method, value and, as far as they are
            there, dataset, model, metric and target.
        draws: sign flips of each test, see `sign_flip_test`.
        seed: of all draws.
        level: coverage of the intervals, each by itself.
        interval_draws: bootstrap draws of the intervals.

    Returns:
        A row a pair, methods in the order of their appearance: the family's columns, method_a, method_b, difference
        (mean of a minus b) with low, high and interval (how the bounds came about), standardized with
        standardized_low and standardized_high, p, exact, p_holm, n (images, or targets of images), patients, dropped.

    Raises:
        InputError: a column is missing, a score is there twice, a sample has two patients, or an option is out of range.

    Example:
        >>> scores = pd.DataFrame({"sample_id": [1, 2, 3] * 2, "patient_id": list("abc") * 2, "metric": "iou",
        ...                        "method": ["lrp"] * 3 + ["lime"] * 3, "value": [0.5, 0.6, 0.9, 0.25, 0.5, 0.25]})
        >>> compare(scores)[["method_a", "method_b", "difference", "p_holm", "n"]].round(3).to_dict("records")
        [{'method_a': 'lrp', 'method_b': 'lime', 'difference': 0.333, 'p_holm': 0.25, 'n': 3}]
    """
    check_draws(draws, level)
    check_count("interval_draws", interval_draws)
    _check_scores(scores)
    family = [name for name in FAMILY if name in scores]
    groups = scores.groupby(family, sort=False, dropna=False) if family else [((), scores)]
    found = [
        dict(zip(family, key, strict=True)) | row
        for key, rows in groups
        for row in _pairs(rows, draws, seed, level, interval_draws)
    ]
    return pd.DataFrame(found, columns=[*family, "method_a", "method_b", *NUMBERS])


def _check_scores(scores: pd.DataFrame) -> None:
    needed = ("sample_id", "patient_id", "method", "value")
    missing = [name for name in needed if name not in scores]
    if missing:
        raise InputError(f"compare needs the columns {', '.join(needed)}; {missing} are missing of {list(scores)}.")
    for name in ("sample_id", "patient_id", "method"):
        if scores[name].isna().any():
            raise InputError(f"{int(scores[name].isna().sum())} scores have no {name}: give every score its own.")
    cell = [name for name in (*FAMILY, "method", "sample_id", "target") if name in scores]
    again = scores.duplicated(cell)
    if again.any():
        raise InputError(
            f"{int(again.sum())} scores are there twice, the first for {scores.loc[again, cell].iloc[0].to_dict()}: "
            f"keep one score for each {', '.join(cell)}."
        )
    sample = [name for name in ("dataset", "sample_id") if name in scores]
    torn = scores.groupby(sample, dropna=False)["patient_id"].nunique()
    if (torn > 1).any():
        raise InputError(f"Sample {torn.idxmax()!r} belongs to {torn.max()} patients: name one in all its scores.")


def _pairs(rows: pd.DataFrame, draws: int, seed: int, level: float, interval_draws: int) -> list[dict[str, Any]]:
    """A row for each pair of methods of one family."""
    unit = rows.groupby([name for name in ("sample_id", "target") if name in rows], sort=False, dropna=False).ngroup()
    column, methods = pd.factorize(rows["method"])
    pairs = list(combinations(range(len(methods)), 2))
    if not pairs:
        return []
    table = np.full((int(unit.max()) + 1, len(methods)), math.nan)
    table[unit, column] = rows["value"]
    first, second = (table[:, list(side)] for side in zip(*pairs, strict=True))  # [N, M] each
    infinite = (np.isinf(first) | np.isinf(second)) & ~np.isnan(first) & ~np.isnan(second)
    with np.errstate(invalid="ignore"):
        differences = np.where(infinite, 0, first - second)
    codes = patient_codes(rows["patient_id"].groupby(unit).first())
    tests = _tests(differences, codes, draws, seed, level, interval_draws)
    tests = [_undefined(test) if bad else test for test, bad in zip(tests, infinite.any(axis=0), strict=True)]
    corrected = holm([test.p for test in tests]).tolist()
    return [
        {"method_a": methods[a], "method_b": methods[b], **_numbers(test), "p_holm": p}
        for (a, b), test, p in zip(pairs, tests, corrected, strict=True)
    ]


def _undefined(test: SignFlipTest) -> SignFlipTest:
    none = replace(test.difference, estimate=math.nan, low=math.nan, high=math.nan, method="none")
    return SignFlipTest(none, none, math.nan, exact=False)


def _numbers(test: SignFlipTest) -> dict[str, Any]:
    mean, size = test.difference, test.standardized
    return {
        "difference": mean.estimate,
        "low": mean.low,
        "high": mean.high,
        "interval": mean.method,
        "standardized": size.estimate,
        "standardized_low": size.low,
        "standardized_high": size.high,
        "p": test.p,
        "exact": test.exact,
        "n": mean.n,
        "patients": mean.patients,
        "dropped": mean.nan,
    }


def _tests(
    differences: Floats, codes: Indices, draws: int, seed: int, level: float, interval_draws: int
) -> list[SignFlipTest]:
    """The test of each column of differences `[N, M]`, finite or NaN."""
    options: dict[str, Any] = {"draws": interval_draws, "seed": seed, "level": level}
    means = mean_intervals(differences, codes, share=False, **options)
    standardized = _standardized(differences, codes, **options)
    p, exact = _chances(differences, codes, draws, seed)
    return [SignFlipTest(*parts) for parts in zip(means, standardized, p.tolist(), exact.tolist(), strict=True)]


def _standardized(differences: Floats, codes: Indices, **options: Any) -> list[Interval]:
    """Mean over standard deviation of each column, `[N, M]`, with intervals."""
    defined = ~np.isnan(differences)
    images = sums_by_patient(defined.astype(np.float64), codes)
    centre = sums_by_patient(differences, codes).sum(axis=0) / np.maximum(images.sum(axis=0), 1)
    deviations = np.where(defined, differences - centre, 0)  # so that nothing cancels in the sums of squares
    far, size = (np.abs(part).max(axis=0, initial=0) for part in (deviations, np.nan_to_num(differences)))
    least = _ROUNDING * far**2 + (_ROUNDING * size) ** 2  # a variance that is rounding alone
    sums = np.stack([sums_by_patient(deviations, codes), sums_by_patient(deviations**2, codes), images])
    found: dict[int, Interval] = {}
    for people, columns in alike_columns(images > 0):
        group = sums[:, people, columns]
        ratio = partial(_ratio, centre=centre[columns], least=least[columns])
        found |= dict(zip(columns.tolist(), intervals_of_sums(ratio, group, **options), strict=True))
    return [replace(found[m], nan=int(nan)) for m, nan in enumerate((~defined).sum(axis=0))]


def _ratio(total: Floats, *, centre: Floats, least: Floats) -> Floats:
    """`[3, ..., M] -> [..., M]`: sums of deviations from `centre`, of their squares, and the number of images."""
    deviations, squares, images = total
    variance = (squares - deviations**2 / images) / (images - 1)
    alike = variance <= least
    return np.where(alike, math.nan, (centre + deviations / images) / np.sqrt(np.where(alike, 1, variance)))


def _chances(differences: Floats, codes: Indices, draws: int, seed: int) -> tuple[Floats, Bools]:
    """P value of each column and whether it is exact, `[M]` both."""
    sums, present = sums_by_patient(differences, codes), sums_by_patient(1.0 * ~np.isnan(differences), codes) > 0
    people = present.sum(axis=0)
    exact = (people > 0) & (people <= math.log2(draws))
    p = np.full(len(people), math.nan)
    for m in np.flatnonzero(exact):
        p[m] = _extreme([all_signs(people[m])], sums[present[:, m], m]) / 2 ** people[m]
    drawn = (people > 0) & ~exact
    if drawn.any():  # the sign of a patient without a pair changes nothing, so one draw serves all columns
        p[drawn] = (1 + _extreme(drawn_signs(len(sums), draws, seed), sums[:, drawn])) / (1 + draws)
    return p, exact


def _extreme(blocks: Iterable[Floats], sums: Floats) -> Floats:
    """How many flips bring the sum over patients `[P, ...]` at least as far from zero as it is."""
    least = np.abs(sums.sum(axis=0)) - _ROUNDING * np.abs(sums).sum(axis=0)
    return np.asarray(sum((np.abs(signs @ sums) >= least).sum(axis=0) for signs in blocks))
