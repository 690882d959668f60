"""Intervals against scipy's bootstrap on the same resamples, and Wilson's closed form."""

import math

import numpy as np
import pytest
from scipy import stats

from heatproof.errors import InputError
from heatproof.statistics import (
    Interval,
    drawn_counts,
    interval_of_draws,
    patient_bootstrap,
    patient_bootstrap_columns,
    patient_bootstrap_statistic,
    resampling,
    wilson,
)


def _names(counts):
    """Patient names whose sorted order is the order of appearance."""
    return [f"p{i:04d}" for i, count in enumerate(counts) for _ in range(count)]


def _widened(level, counts):
    """The level at which draws of few patients have their bounds, from the definitions."""
    k = sum(counts) ** 2 / sum(count**2 for count in counts)
    return 2 * stats.norm.cdf(math.sqrt(k / (k - 1)) * stats.t.ppf((1 + level) / 2, k - 1)) - 1


def _scipy(values, counts, level):
    """scipy's BCa over patients: the ratio of two sums, resampled together, from the same random stream."""
    sums = np.array([part.sum() for part in np.split(values, np.cumsum(counts)[:-1])])
    return stats.bootstrap(
        (sums, np.asarray(counts, float)), lambda s, c, axis: s.sum(axis) / c.sum(axis), paired=True, vectorized=True,
        n_resamples=2000, batch=2000, rng=np.random.default_rng(3), confidence_level=_widened(level, counts),
    ).confidence_interval  # fmt: skip


@pytest.mark.parametrize("level", [0.95, 0.8])
@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("tied", [False, True])  # many draws equal the estimate
def test_mean_equals_scipy_bca_on_the_same_resamples(tied, clustered, level):
    random = np.random.default_rng(0)
    counts = random.integers(1, 5, size=23) if clustered else np.ones(23, int)
    values = random.exponential(size=counts.sum())
    values = (values > 1.4).astype(float) if tied else values
    got = patient_bootstrap(values, _names(counts), seed=3, level=level)
    want = _scipy(values, counts, level)
    assert got.estimate == pytest.approx(values.mean(), rel=1e-12)
    assert (got.low, got.high) == pytest.approx((want.low, want.high), rel=1e-10)
    assert (got.n, got.patients, got.nan, got.method) == (len(values), 23, 0, "bca")


def test_statistic_equals_scipy_bca_and_percentile():
    random = np.random.default_rng(1)
    x = random.normal(size=40)
    y = x + random.normal(size=40)

    def correlation(a, b):
        return float(np.corrcoef(a, b)[0, 1])

    for method, theirs in (("bca", "BCa"), ("percentile", "percentile")):
        got = patient_bootstrap_statistic(correlation, _names([1] * 40), x, y, seed=3, draws=500, method=method)
        want = stats.bootstrap(
            (x, y), correlation, paired=True, vectorized=False, n_resamples=500, batch=500, method=theirs,
            rng=np.random.default_rng(3), confidence_level=_widened(0.95, [1] * 40),
        ).confidence_interval  # fmt: skip
        assert (got.low, got.high) == pytest.approx((want.low, want.high), rel=1e-9)
        assert got.method == method


def test_columns_are_the_bootstraps_of_each_whatever_is_undefined():
    """A patient without a value in a column is not drawn for it; every special case keeps its own bounds."""
    random = np.random.default_rng(8)
    patients = [f"p{i}" for i in random.integers(0, 12, size=40)]
    table = random.normal(size=(40, 8))
    table[np.isin(patients, ["p3", "p7"]), 1] = np.nan
    table[random.random(40) < 0.3, 2] = np.nan
    table[:, 3] = np.nan
    table[:, 4], table[:, 5] = 1.0, 0.25
    table[np.array(patients) != "p1", 6] = np.nan  # one patient only
    found = patient_bootstrap_columns(table, patients, seed=2, draws=300)
    assert [f.method for f in found] == ["bca", "bca", "bca", "none", "wilson", "point", "none", "bca"]
    assert [f.patients for f in found] == [12, 10, 11, 0, 12, 12, 1, 12]
    for column, one in zip(table.T, found, strict=True):
        alone = patient_bootstrap(column, patients, seed=2, draws=300)
        assert (one.method, one.n, one.patients, one.nan) == (alone.method, alone.n, alone.patients, alone.nan)
        assert (one.estimate, one.low, one.high) == pytest.approx(
            (alone.estimate, alone.low, alone.high), rel=1e-12, nan_ok=True
        )
        kept = ~np.isnan(column)
        dropped = patient_bootstrap(column[kept], np.array(patients)[kept], seed=2, draws=300)
        assert (alone.low, alone.high) == pytest.approx((dropped.low, dropped.high), rel=1e-12, nan_ok=True)


def test_a_patient_with_nearly_all_images_leaves_the_bounds_at_the_outermost_draws():
    """Then the effective number of patients is near one, and the draws show nothing."""
    values, patients = np.r_[np.zeros(1000), 1.0, 0.5], ["a"] * 1000 + ["b", "c"]
    found = patient_bootstrap(values, patients)
    assert (found.low, found.high) == (0, 1)  # a, a, a and b, b, b


def test_draws_of_one_patient_or_of_nothing_bound_nothing():
    nan = pytest.approx(math.nan, nan_ok=True)
    for found in (
        interval_of_draws(0.5, [0.5, 0.5], None, [3]),
        interval_of_draws(math.nan, [0.5, 0.4], None, [3, 1]),
        interval_of_draws(0.5, [math.nan] * 2, None, [3, 1]),
    ):
        assert (found.low, found.high, found.method) == (nan, nan, "none")
    assert (found.n, found.patients, found.nan_draws) == (4, 2, 2)


def test_drawn_counts_are_those_of_the_draws():
    counts = np.concatenate(list(drawn_counts(7, draws=50, seed=3)))
    patients = np.concatenate(list(resampling.drawn_patients(7, draws=50, seed=3)))
    assert counts.shape == (50, 7)
    for weights, drawn in zip(counts, patients, strict=True):
        assert list(weights) == [list(drawn).count(p) for p in range(7)]


def test_statistic_of_the_mean_is_the_fast_path():
    random = np.random.default_rng(2)
    counts = random.integers(1, 4, size=15)
    values, names = random.normal(size=counts.sum()), _names(counts)
    slow = patient_bootstrap_statistic(np.mean, names, values, seed=5)
    fast = patient_bootstrap(values, names, seed=5)
    assert (slow.estimate, slow.low, slow.high) == pytest.approx((fast.estimate, fast.low, fast.high), rel=1e-10)


def test_patients_are_drawn_whole():
    """The bootstrap variance of patient means, in closed form: with equal patients it is var(means) / patients."""
    random = np.random.default_rng(3)
    means = random.normal(size=200)
    got = patient_bootstrap(np.repeat(means, 5), np.repeat(np.arange(200), 5), level=0.6827)
    assert got.high - got.low == pytest.approx(2 * means.std() / math.sqrt(200), rel=0.05)


def test_rows_in_any_order_give_the_same_interval():
    random = np.random.default_rng(4)
    values, patients = random.normal(size=30), random.integers(0, 9, size=30)
    order = random.permutation(30)
    one, other = patient_bootstrap(values, patients), patient_bootstrap(values[order], patients[order])
    assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-12)


def test_block_size_does_not_matter_and_the_seed_does(monkeypatch):
    values, patients = np.random.default_rng(5).normal(size=30), np.arange(30)
    whole, other = patient_bootstrap(values, patients), patient_bootstrap(values, patients, seed=1)
    monkeypatch.setattr(resampling, "_BLOCK_CELLS", 100)
    assert patient_bootstrap(values, patients) == whole
    assert other.low != whole.low


def test_undefined_values_are_left_out_and_counted():
    values, patients = np.array([0.1, np.nan, 0.5, 0.9, np.nan]), ["a", "a", "b", "c", "d"]
    got = patient_bootstrap(values, patients)
    want = patient_bootstrap([0.1, 0.5, 0.9], ["a", "b", "c"])
    assert got == Interval(want.estimate, want.low, want.high, n=3, patients=3, nan=2)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_agreeing_binary_scores_get_wilsons_interval(share):
    """The bounds solve (p - share)^2 = z^2 p (1 - p) / n, n the number of patients."""
    got = patient_bootstrap(np.full(24, share), np.repeat(np.arange(12), 2))
    z2 = stats.norm.ppf(0.975) ** 2
    roots = np.sort(np.roots([1 + z2 / 12, -(2 * share + z2 / 12), share**2]).real)
    assert (got.low, got.high) == pytest.approx(tuple(roots), abs=1e-12)
    assert got.method == "wilson"


@pytest.mark.parametrize(("successes", "n", "level"), [(0, 1, 0.95), (1, 10, 0.95), (7, 12, 0.9), (50, 50, 0.99)])
def test_wilson_is_scipys(successes, n, level):
    theirs = stats.binomtest(successes, n).proportion_ci(confidence_level=level, method="wilson")
    assert wilson(successes, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize("given", [(1, 0), (-1, 5), (6, 5), (1, 2.5), (1, 5, 1.0)])
def test_wilson_bad_input(given):
    with pytest.raises(InputError, match=r"n must be|successes must|level must"):
        wilson(*given)


def test_degenerate_cases_are_as_documented():
    nan = pytest.approx(math.nan, nan_ok=True)
    empty = patient_bootstrap([np.nan, np.nan], ["a", "b"])
    assert (empty.estimate, empty.low, empty.high, empty.n, empty.nan, empty.method) == (nan, nan, nan, 0, 2, "none")
    single = patient_bootstrap([0.2, 0.4], ["a", "a"])
    assert (single.estimate, single.low, single.high, single.method) == (pytest.approx(0.3), nan, nan, "none")
    point = patient_bootstrap([0.0, 0.6, 0.0, 0.6], ["a", "a", "b", "b"])
    assert (point.estimate, point.low, point.high, point.method) == (0.3, 0.3, 0.3, "point")
    # the two sums differ by rounding, which is much where they cancel
    assert patient_bootstrap([0.1, 0.2, 0.3, 0.3, 0.2, 0.1], list("aaabbb")).method == "point"
    assert patient_bootstrap([0.1, 0.2, -0.3, -0.3, 0.2, 0.1], list("aaabbb"), share=False).method == "point"
    two = patient_bootstrap([0.2, 0.4], ["a", "b"])  # the draws are 0.2, 0.3, 0.3 and 0.4
    assert (two.low, two.high, two.method) == (pytest.approx(0.2), pytest.approx(0.4), "bca")


def test_undefined_draws_are_counted_and_an_undefined_jackknife_gives_percentiles():
    def ratio(a):  # undefined where the only positive is not drawn
        return float(a.sum() / (a > 0).sum()) if (a > 0).any() else math.nan

    values = np.array([0, 0, 0, 2.0])
    got = patient_bootstrap_statistic(ratio, list("abcd"), values, draws=4000)
    assert got.method == "point"  # the mean of the positives is 2 wherever it exists
    assert got.nan_draws / 4000 == pytest.approx(0.75**4, abs=0.03)

    def share(a):
        return float((a > 0).mean()) if (a > 0).any() else math.nan

    got = patient_bootstrap_statistic(share, list("abcd"), values)
    # one draw of 175 that have the positive is four times it: at four patients that is within the bounds
    assert (got.estimate, got.low, got.high, got.method) == (0.25, 0.25, 1.0, "percentile")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": [1, 2], "patients": ["a"]}, "1 patients"),
        ({"values": [1, np.inf], "patients": ["a", "b"]}, "infinite"),
        ({"values": [1, 2], "patients": ["a", None]}, "1 rows have no patient"),
        ({"values": [1, 2], "patients": ["a", "b"], "draws": 0}, "draws"),
        ({"values": [1, 2], "patients": ["a", "b"], "level": 95}, "level"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(InputError, match=message):
        patient_bootstrap(**arguments)


def test_statistic_bad_input():
    with pytest.raises(InputError, match="method"):
        patient_bootstrap_statistic(np.mean, ["a"], [1], method="basic")
    with pytest.raises(InputError, match="columns"):
        patient_bootstrap_statistic(np.mean, ["a"])


def test_equal_values_of_an_unbounded_score_are_a_point() -> None:
    found = patient_bootstrap([0.0, 0.0, 0.0], ["a", "b", "c"], share=False)
    assert (found.estimate, found.low, found.high, found.method) == (0.0, 0.0, 0.0, "point")
    assert patient_bootstrap([0.0, 0.0, 0.0], ["a", "b", "c"]).method == "wilson"


@pytest.mark.parametrize("patients", range(2, 40))
def test_rounding_never_lifts_a_wilson_bound_off_its_end(patients: int) -> None:
    names = [str(n) for n in range(patients)]
    assert patient_bootstrap([0.0] * patients, names).low == 0
    assert patient_bootstrap([1.0] * patients, names).high == 1
