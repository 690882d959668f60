"""Intervals against scipy's bootstrap on the same resamples, Wilson's closed form, and their coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from heatproof.errors import InputError
from heatproof.statistics import Interval, intervals, patient_bootstrap, patient_bootstrap_statistic


def _names(counts):
    """Patient names whose sorted order is the order of appearance."""
    return [f"p{i:04d}" for i, count in enumerate(counts) for _ in range(count)]


def _scipy(values, counts, **options):
    """scipy's BCa over patients: the ratio of two sums, resampled together, from the same random stream."""
    sums = np.array([part.sum() for part in np.split(values, np.cumsum(counts)[:-1])])
    result = stats.bootstrap(
        (sums, np.asarray(counts, float)), lambda s, c, axis: s.sum(axis) / c.sum(axis), paired=True, vectorized=True,
        n_resamples=2000, batch=2000, rng=np.random.default_rng(3), **options,
    )  # fmt: skip
    return result.confidence_interval


@pytest.mark.parametrize("level", [0.95, 0.8])
@pytest.mark.parametrize("clustered", [False, True])
def test_mean_equals_scipy_bca_on_the_same_resamples(clustered, level):
    random = np.random.default_rng(0)
    counts = random.integers(1, 5, size=23) if clustered else np.ones(23, int)
    values = random.exponential(size=counts.sum())
    got = patient_bootstrap(values, _names(counts), seed=3, level=level)
    want = _scipy(values, counts, method="BCa", confidence_level=level)
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
            rng=np.random.default_rng(3),
        ).confidence_interval  # fmt: skip
        assert (got.low, got.high) == pytest.approx((want.low, want.high), rel=1e-9)
        assert got.method == method


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
    monkeypatch.setattr(intervals, "_BLOCK_CELLS", 100)
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


def test_degenerate_cases_are_as_documented():
    nan = pytest.approx(math.nan, nan_ok=True)
    empty = patient_bootstrap([np.nan, np.nan], ["a", "b"])
    assert (empty.estimate, empty.low, empty.high, empty.n, empty.nan, empty.method) == (nan, nan, nan, 0, 2, "none")
    single = patient_bootstrap([0.2, 0.4], ["a", "a"])
    assert (single.estimate, single.low, single.high, single.method) == (pytest.approx(0.3), nan, nan, "none")
    point = patient_bootstrap([0.0, 0.6, 0.0, 0.6], ["a", "a", "b", "b"])
    assert (point.estimate, point.low, point.high, point.method) == (0.3, 0.3, 0.3, "point")
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
    assert (got.estimate, got.low, got.high, got.method) == (0.25, 0.25, 0.75, "percentile")


def test_coverage():
    """Images within a patient agree: patients as units cover 95 %, images as units do not."""
    random = np.random.default_rng(6)
    covered = np.zeros(2)
    counts = np.tile([1, 3, 5], 13)
    patients = np.repeat(np.arange(39), counts)
    for _ in range(300):
        values = random.gamma(2, 0.5, size=39)[patients] + 0.1 * random.normal(size=len(patients))
        for unit, names in enumerate((patients, np.arange(len(patients)))):
            interval = patient_bootstrap(values, names, draws=1000)
            covered[unit] += interval.low <= 1 <= interval.high
    right, wrong = covered / 300
    assert 0.90 <= right <= 0.98  # 0.95 less BCa's small-sample shortfall, three standard errors of 300 replicates
    assert wrong < 0.85


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
