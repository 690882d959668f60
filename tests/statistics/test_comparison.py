"""Sign flips against scipy's permutation test and the binomial distribution, Holm against its definition by hand."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from heatproof.errors import InputError
from heatproof.statistics import (
    compare,
    holm,
    patient_bootstrap,
    patient_bootstrap_statistic,
    resampling,
    sign_flip_test,
)

NAN = pytest.approx(math.nan, nan_ok=True)


def brute_force(differences, patients):
    """The definition: every way to flip whole patients, the mean over images each time."""
    names = sorted(set(patients))
    observed, count = abs(np.mean(differences)), 0
    for signs in itertools.product([1, -1], repeat=len(names)):
        flipped = [d * signs[names.index(p)] for d, p in zip(differences, patients, strict=True)]
        count += abs(np.mean(flipped)) >= observed * (1 - 1e-9)
    return count / 2 ** len(names)


@pytest.mark.parametrize("seed", range(5))
def test_every_flip_of_whole_patients_is_counted(seed):
    random = np.random.default_rng(seed)
    patients = [f"p{i}" for i in random.permutation(np.repeat(np.arange(7), random.integers(1, 5, size=7)))]
    differences = random.normal(0.4, 1, size=len(patients))
    found = sign_flip_test(differences, patients)
    assert found.exact
    assert found.p == pytest.approx(brute_force(differences, patients), abs=1e-12)


def test_one_image_a_patient_is_scipys_paired_permutation_test():
    differences = np.random.default_rng(0).normal(0.5, 1, size=12)
    theirs = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_test(differences, np.arange(12)).p == pytest.approx(theirs.pvalue, abs=1e-12)


@pytest.mark.parametrize(("patients", "exact"), [(13, True), (14, False)])
def test_all_flips_up_to_the_draws_else_a_draw_of_them(patients, exact):
    """Differences of +1 or -1: the number of positive signs is binomial."""
    differences = np.where(np.arange(patients) < 3, -1.0, 1.0)
    found = sign_flip_test(differences, np.arange(patients))
    expected = 2 * stats.binom.cdf(3, patients, 0.5)
    assert found.exact is exact  # 2 ** 13 ways do not exceed 10,000 draws
    error = 1e-12 if exact else 5 * math.sqrt(expected / 10_000) + 1e-4
    assert found.p == pytest.approx(expected, abs=error)
    assert exact or round(found.p * 10_001, 6) % 1 == 0


def test_drawn_flips_agree_with_all_of_them():
    differences = np.random.default_rng(1).exponential(size=10) - 0.45
    every, drawn = sign_flip_test(differences, np.arange(10)), sign_flip_test(differences, np.arange(10), draws=1000)
    assert (every.exact, drawn.exact) == (True, False)
    assert drawn.p == pytest.approx(every.p, abs=5 * math.sqrt(every.p * (1 - every.p) / 1000))


def test_as_many_flips_as_draws_are_still_all_of_them():
    differences = [0.4, 0.1, -0.2, 0.3]
    assert [sign_flip_test(differences, list("abcd"), draws=draws).exact for draws in (15, 16, 17)] == [
        False,
        True,
        True,
    ]


def test_p_is_never_zero_and_equal_flips_count():
    assert sign_flip_test(np.full(200, 0.1), np.arange(200), draws=99).p == 1 / 100
    assert sign_flip_test(np.zeros(200), np.arange(200), draws=99).p == 1
    # 0.1 + 0.2 + 0.3 and its permutations differ by rounding only; every patient's sum is 0.6
    values = [0.1, 0.2, 0.3, 0.3, 0.2, 0.1, 0.2, 0.3, 0.1]
    assert sign_flip_test(values, np.repeat([0, 1, 2], 3)).p == 2 / 8


def test_patients_not_images_are_the_units():
    """Two patients cannot show anything, however many images they have."""
    assert sign_flip_test(np.full(1000, 0.3), np.repeat(["a", "b"], 500)).p == 0.5
    assert sign_flip_test([0.3, 0.2], ["a", "a"]).p == 1


def test_the_difference_is_the_interval_of_its_mean_and_nan_is_counted():
    random = np.random.default_rng(2)
    patients, differences = np.repeat(np.arange(20), 3), random.normal(size=60)
    differences[[3, 4, 5, 17]] = math.nan  # patient 1 has no pair at all
    found = sign_flip_test(differences, patients, seed=4, level=0.9)
    assert found.difference == patient_bootstrap(differences, patients, seed=4, level=0.9, share=False)
    assert (found.difference.n, found.difference.patients, found.difference.nan) == (56, 19, 4)
    assert (found.standardized.n, found.standardized.patients, found.standardized.nan) == (56, 19, 4)
    kept = ~np.isnan(differences)  # the same test with signs of its own
    assert sign_flip_test(differences[kept], patients[kept], seed=4).p == pytest.approx(found.p, abs=0.03)


def test_a_patient_without_a_pair_does_not_count_for_the_flips():
    found = sign_flip_test([0.3, 0.1, 0.2, *[math.nan] * 50], np.arange(53))
    assert (found.p, found.exact, found.difference.patients) == (2 / 8, True, 3)


@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_standardized_difference_is_mean_over_deviation_in_every_draw(shift):
    """Against the definition by image in each bootstrap sample; a large mean does not cancel the deviation away."""
    random = np.random.default_rng(3)
    patients = np.repeat(np.arange(15), random.integers(1, 6, size=15))
    differences = random.gamma(2, size=len(patients)) + shift
    found = sign_flip_test(differences, patients, seed=1).standardized

    def ratio(rows):
        return rows.mean() / rows.std(ddof=1)

    want = patient_bootstrap_statistic(ratio, patients, differences, seed=1)
    assert (found.estimate, found.low, found.high) == pytest.approx((want.estimate, want.low, want.high), rel=1e-6)
    assert found.method == "bca"


def test_standardized_difference_of_equal_differences_does_not_exist():
    found = sign_flip_test([0.1, 0.1, 0.1 + 1e-17], ["a", "b", "c"])
    assert found.difference.method == "point"
    assert sign_flip_test([1.0, 1.0, 1.0], ["a", "b", "c"]).difference.method == "point"  # a difference is no share
    assert (found.standardized.estimate, found.standardized.method) == (NAN, "none")
    # where it is undefined in some draws only, they are counted
    found = sign_flip_test([1.0, 1.0, 1.0, 0.0], list("abcd"))
    assert found.standardized.nan_draws / 2000 == pytest.approx(0.75**4 + 0.25**4, abs=0.06)
    assert found.standardized.estimate == pytest.approx(0.75 / 0.5)


def test_no_pair_no_test():
    found = sign_flip_test([math.nan, math.nan], ["a", "b"])
    assert (found.p, found.exact, found.difference.n, found.difference.nan) == (NAN, False, 0, 2)


def test_rows_in_any_order_and_blocks_of_any_size_give_the_same_test(monkeypatch):
    random = np.random.default_rng(5)
    differences, patients = random.normal(0.2, 1, size=60), random.integers(0, 25, size=60)
    order = random.permutation(60)
    whole = sign_flip_test(differences, patients)
    assert sign_flip_test(differences[order], patients[order]).p == whole.p
    assert sign_flip_test(differences, patients, seed=1).p != whole.p
    monkeypatch.setattr(resampling, "_BLOCK_CELLS", 100)
    assert sign_flip_test(differences, patients).p == whole.p


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"differences": [1.0, math.inf], "patients": ["a", "b"]}, "infinite"),
        ({"differences": [[1.0]], "patients": ["a"]}, "shape"),
        ({"differences": [1.0], "patients": ["a", "b"]}, "2 patients"),
        ({"differences": [1.0], "patients": [None]}, "no patient"),
        ({"differences": [1.0], "patients": ["a"], "draws": 0}, "draws"),
        ({"differences": [1.0], "patients": ["a"], "interval_draws": 0}, "interval_draws"),
        ({"differences": [1.0], "patients": ["a"], "level": 1.5}, "level"),
    ],
)
def test_bad_tests(given, message):
    with pytest.raises(InputError, match=message):
        sign_flip_test(**given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # Holm's step-down by hand: times 4, 3, 2, 1 in order of size, never falling
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.4, 0.3], [0.9, 0.9, 0.9]),  # 0.3 x 3; 0.4 x 2 and 0.5 x 1 would be less
        ([0.6, 0.7], [1.0, 1.0]),  # at most 1
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.02], [0.02]),
        ([], []),
    ],
)
def test_holm_by_hand(given, expected):
    assert holm(given) == pytest.approx(expected, abs=1e-15)


def test_holm_rejects_what_the_step_down_procedure_rejects():
    """The definition: go up the sorted values while p_(i) <= alpha / (m + 1 - i), stop at the first that is not."""
    random = np.random.default_rng(6)
    for _ in range(50):
        values = random.beta(0.3, 3, size=random.integers(1, 12))
        alpha, rejected = random.uniform(0.01, 0.2), set()
        for place, index in enumerate(np.argsort(values)):
            if values[index] > alpha / (len(values) - place):
                break
            rejected.add(index)
        assert set(np.flatnonzero(holm(values) <= alpha)) == rejected


def test_holm_does_not_count_nan():
    found = holm([0.01, math.nan, 0.03, math.nan])
    assert list(found) == [0.02, NAN, 0.03, NAN]


@pytest.mark.parametrize("given", [[-0.1], [1.1], [[0.1]]])
def test_holm_bad_input(given):
    with pytest.raises(InputError, match="p values from 0 to 1"):
        holm(given)


def long(values, **same):
    """A score frame: method -> one value an image, three images of each of ten patients."""
    count = len(next(iter(values.values())))
    frames = [
        pd.DataFrame({"sample_id": [f"s{i:02d}" for i in range(count)], "patient_id": [f"p{i // 3}" for i in range(count)],
                      "method": method, "value": column, **same})
        for method, column in values.items()
    ]  # fmt: skip
    return pd.concat(frames, ignore_index=True)


@pytest.fixture
def values():
    random = np.random.default_rng(7)
    base = random.normal(size=30)
    return {
        name: base + shift + 0.3 * random.normal(size=30) for name, shift in (("lrp", 0.4), ("cam", 0.1), ("lime", 0))
    }


def test_every_pair_is_its_sign_flip_test_and_holm_is_over_all_of_the_family(values):
    values["cam"][[2, 8]] = math.nan
    values["lime"][[8, 9]] = math.nan
    frame = pd.concat([long(values, model=m, metric=k) for m in ("vit", "cnn") for k in ("iou", "road")])
    frame.loc[(frame.model == "cnn") & (frame.metric == "road"), "value"] *= -1
    order = {"lrp": 0, "cam": 1, "lime": 2}
    shuffled = frame.sample(frac=1, random_state=0).sort_values("method", key=lambda m: m.map(order), kind="stable")
    found = compare(shuffled, seed=3, level=0.9)
    assert len(found) == 4 * 3
    patients = [f"p{i // 3}" for i in range(30)]
    for (model, metric), rows in found.groupby(["model", "metric"]):
        assert list(zip(rows.method_a, rows.method_b, strict=True)) == list(itertools.combinations(values, 2))
        assert list(rows.dropped) == [2, 2, 3]
        assert list(rows.n) == [28, 28, 27]
        sign = -1 if (model, metric) == ("cnn", "road") else 1
        for row in rows.itertuples():
            single = sign_flip_test(sign * (values[row.method_a] - values[row.method_b]), patients, seed=3, level=0.9)
            size, mean = single.standardized, single.difference
            assert (row.difference, row.low, row.high) == pytest.approx((mean.estimate, mean.low, mean.high), rel=1e-12)
            assert (row.standardized, row.standardized_low, row.standardized_high) == pytest.approx(
                (size.estimate, size.low, size.high), rel=1e-9
            )
            assert (row.p, row.exact, row.patients, row.interval) == (single.p, single.exact, 10, "bca")
        assert list(rows.p_holm) == pytest.approx(list(holm(rows.p)), abs=1e-15)


def test_pairs_are_by_image_and_target_and_missing_rows_are_dropped(values):
    """Two targets of an image are two pairs of one patient; a row that is not there counts like NaN."""
    two = pd.concat([long(values, target="mass"), long({k: v + 1 for k, v in values.items()}, target="edema")])
    two = two[~((two.sample_id == "s00") & (two.target == "mass") & (two.method == "cam"))]
    row = compare(two, draws=500).iloc[0]
    differences = np.concatenate([(values["lrp"] - values["cam"])[1:], values["lrp"] - values["cam"]])
    patients = [f"p{i // 3}" for i in (*range(1, 30), *range(30))]
    single = sign_flip_test(differences, patients, draws=500)
    assert (row.method_a, row.method_b, row.n, row.dropped, row.patients) == ("lrp", "cam", 59, 1, 10)
    assert (row.difference, row.low, row.high) == pytest.approx(
        (single.difference.estimate, single.difference.low, single.difference.high), rel=1e-9
    )


def test_data_sets_are_families_of_their_own(values):
    first, second = long(values, dataset="chest"), long(values, dataset="knee")
    second["patient_id"] += "k"  # the same ids of samples in two data sets are two samples
    found = compare(pd.concat([first, second]))
    assert list(found.dataset) == ["chest"] * 3 + ["knee"] * 3
    alone = compare(first)
    for name in ("difference", "p", "p_holm"):
        assert list(found[name]) == pytest.approx([*alone[name], *alone[name]], rel=1e-12)


def test_an_infinite_score_leaves_the_pair_undefined(values):
    values["cam"][4] = math.inf
    found = compare(long(values)).set_index(["method_a", "method_b"])
    bad = found.loc[("lrp", "cam")]
    assert [bad.difference, bad.low, bad.standardized, bad.p, bad.p_holm] == [NAN] * 5
    assert (bad.interval, bad.n, bad.dropped) == ("none", 30, 0)
    other = found.loc[("lrp", "lime")]
    assert other.p_holm == other.p < 1  # the only one of the family


def test_one_method_makes_no_pair(values):
    found = compare(long({"lrp": values["lrp"]}, metric="iou"))
    assert len(found) == 0
    assert {"metric", "method_a", "difference", "p_holm", "dropped"} <= set(found)


def test_compare_bad_input(values):
    frame = long(values, metric="iou")
    with pytest.raises(InputError, match="patient_id.*missing"):
        compare(frame.drop(columns="patient_id"))
    with pytest.raises(InputError, match="twice.*s00"):
        compare(pd.concat([frame, frame.iloc[:1]]))
    with pytest.raises(InputError, match="2 patients"):
        compare(frame.assign(patient_id=[f"q{i}" for i in range(len(frame))]).iloc[[0, 31, 30]])
    with pytest.raises(InputError, match="no method"):
        compare(frame.assign(method=None))
    with pytest.raises(InputError, match="draws"):
        compare(frame, draws=0)
    with pytest.raises(InputError, match="level"):
        compare(frame, level=95)
