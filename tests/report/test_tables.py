"""The report's numbers against a second computation from the files of the run."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from heatproof.report import tables
from heatproof.statistics import Interval, patient_bootstrap
from heatproof.study.store import Run
from support.runs import FAILED_METRIC, MISSING, RunFolder

LOWER = {"max_sensitivity", "avg_sensitivity"}


@pytest.fixture(scope="module")
def raw(run_path: Path) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(path) for path in sorted((run_path / "scores").rglob("*.parquet"))])


@pytest.fixture(scope="module")
def scores(run: Run) -> pd.DataFrame:
    return tables.score_table(run)


def test_every_cell_equals_a_second_computation_from_the_files(scores: pd.DataFrame, raw: pd.DataFrame) -> None:
    assert len(scores) == 2 * 8 * 7
    for cell in scores.itertuples():
        rows = raw[(raw["model"] == cell.model) & (raw["method"] == cell.method) & (raw["metric"] == cell.metric)]
        defined = [value for value in rows["value"] if value == value]
        assert cell.n == len(defined)
        assert cell.nan == len(rows) - len(defined)
        assert cell.missing == 30 - len(rows)
        assert cell.estimate == pytest.approx(sum(defined) / len(defined) if defined else np.nan, nan_ok=True)


def test_intervals_are_those_of_the_patient_bootstrap(scores: pd.DataFrame, raw: pd.DataFrame) -> None:
    for cell in scores[scores["n"] > 0].itertuples():
        rows = raw[(raw["model"] == cell.model) & (raw["method"] == cell.method) & (raw["metric"] == cell.metric)]
        interval = patient_bootstrap(rows["value"], rows["patient_id"])
        expected = (interval.low, interval.high, interval.patients, interval.method)
        assert (cell.low, cell.high, cell.patients, cell.interval) == expected


def test_known_gaps_are_counted_where_they_are(scores: pd.DataFrame) -> None:
    def cell(model: str, method: str, metric: str) -> pd.Series:
        found = scores[(scores["model"] == model) & (scores["method"] == method) & (scores["metric"] == metric)]
        return found.iloc[0]

    assert tuple(cell("vit", "lrp_z", "max_sensitivity")[["n", "nan", "missing"]]) == (29, 0, 1), FAILED_METRIC
    assert tuple(cell("vit", "gradcam", "sparseness")[["n", "nan", "missing"]]) == (29, 0, 1), MISSING
    assert tuple(cell("vit", "lime_200", "pointing_game")[["n", "nan", "missing"]]) == (20, 10, 0)
    assert tuple(cell("densenet", "attention", "iou_rectangle_20")[["n", "nan", "missing"]]) == (0, 0, 30)


def test_best_is_the_extreme_mean_of_the_explainers_in_the_metrics_direction(scores: pd.DataFrame) -> None:
    assert set(scores.loc[scores["control"], "method"]) == {"control_random", "control_center"}
    for (_, metric), cells in scores.groupby(["model", "metric"]):
        means = cells[~cells["control"]].set_index("method")["estimate"].dropna()
        expected = means.idxmin() if metric in LOWER else means.idxmax()
        assert list(cells.loc[cells["best"], "method"]) == [expected]


def test_data_table_counts_images_patients_and_classes(run: Run) -> None:
    rows = tables.data_table(run).set_index("split")
    assert rows.loc["train"].tolist() == [48, 24, 16, 16, 16]
    assert rows.loc["val"].tolist() == [12, 6, 4, 4, 4]
    assert rows.loc["test"].tolist() == [30, 20, 10, 10, 10]


def test_performance_equals_scikit_learn(run: Run, run_path: Path) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    table = tables.performance_table(run).set_index(["model", "measure", "class"])
    for model in run.models:
        p = pd.read_parquet(run_path / "predictions" / f"{model}.parquet")
        for name in run.classes:
            truth = p["label"] == name
            assert table.loc[(model, "auroc", name), "value"] == pytest.approx(roc_auc_score(truth, p[f"p_{name}"]))
            area = average_precision_score(truth, p[f"p_{name}"])
            assert table.loc[(model, "auprc", name), "value"] == pytest.approx(area)
        right = (p["predicted"] == p["label"]).to_numpy(float)
        interval = patient_bootstrap(right, p["patient_id"])
        row = table.loc[(model, "accuracy", "")]
        assert tuple(row) == (pytest.approx(right.mean()), interval.low, interval.high)


def test_comparisons_are_paired_by_image_at_a_shared_level(run: Run, raw: pd.DataFrame) -> None:
    found = tables.comparisons(run)
    assert set(found["metric"]) == {
        "faithfulness_estimate",
        "pointing_game",
        "iou_rectangle_20",
        "relevance_mass_accuracy",
    }
    pairs = {"vit": 6 * 2, "densenet": 3 * 2}
    for row in found.itertuples():
        parts = raw[(raw["model"] == row.model) & (raw["metric"] == row.metric)]
        mine = parts[parts["method"] == row.method].set_index("sample_id")
        other = parts[parts["method"] == row.control].set_index("sample_id")
        difference = (mine["value"] - other["value"]).dropna()
        assert row.n == len(difference)
        assert row.difference == pytest.approx(difference.mean())
        assert row.level == pytest.approx(1 - 0.05 / pairs[row.model])
        patients = other.loc[difference.index, "patient_id"]
        interval = patient_bootstrap(difference, patients, level=row.level, draws=10_000, share=False)
        assert (row.low, row.high) == pytest.approx((interval.low, interval.high))


class Crafted(RunFolder):
    """gradcam far above the controls, lime far below them, the others like them; in every metric."""

    def _values(self, method: str, metric: str, n: int) -> np.ndarray:
        return {"gradcam": 2.0, "lime_200": -2.0}.get(method, 0.0) + self.random.normal(0, 0.1, n)


class Equal(RunFolder):
    """Every method scores 0 everywhere."""

    def _values(self, method: str, metric: str, n: int) -> np.ndarray:
        return np.zeros(n)


def test_equal_scores_are_no_difference(tmp_path: Path) -> None:
    found = tables.comparisons(Run(Equal(tmp_path / "run", models=["vit"]).write()))
    assert set(found["verdict"]) == {"open"}
    assert (found[["low", "high"]] == 0).all(axis=None)


def test_verdicts_follow_the_interval(tmp_path: Path) -> None:
    found = tables.comparisons(Run(Crafted(tmp_path / "run", models=["vit"]).write()))
    verdicts = found.set_index(["metric", "method", "control"])["verdict"]
    for metric in set(found["metric"]):
        for control in ("control_random", "control_center"):
            assert verdicts[metric, "gradcam", control] == "better"
            assert verdicts[metric, "lime_200", control] == "worse"
    for row in found[found["verdict"] == "open"].itertuples():
        assert row.low <= 0 <= row.high


@pytest.mark.parametrize(
    ("low", "high", "patients", "upwards", "downwards"),
    [
        (0.1, 0.3, 10, "better", "worse"),
        (-0.3, -0.1, 10, "worse", "better"),
        (-0.1, 0.3, 99, "open", "open"),
        (-0.3, 0.1, 99, "open", "open"),
        (0.0, 0.3, 99, "open", "open"),
        (-0.3, 0.0, 99, "open", "open"),
        (np.nan, np.nan, 99, "open", "open"),
        (0.1, 0.3, 9, "few", "few"),
    ],
)
def test_a_verdict_needs_an_interval_without_zero_and_ten_patients(
    low: float, high: float, patients: int, upwards: str, downwards: str
) -> None:
    interval = Interval(0.1 if low < 0 < high else (low + high) / 2, low, high, 99, patients, 0)
    assert tables.verdict(interval, higher_is_better=True) == upwards
    assert tables.verdict(interval, higher_is_better=False) == downwards


def test_nothing_is_claimed_from_few_patients(tmp_path: Path) -> None:
    found = tables.comparisons(Run(Crafted(tmp_path / "run", cases=12, models=["vit"]).write()))
    assert found["patients"].max() == 8
    assert set(found["verdict"]) == {"few"}


def test_an_infinite_score_stands_there_without_bounds() -> None:
    interval = tables.interval_of(np.array([1.0, np.inf, np.nan]), np.array(["a", "b", "c"]))
    assert interval.estimate == np.inf
    assert np.isnan(interval.low)
    assert (interval.n, interval.nan, interval.patients) == (2, 1, 2)


def test_csv_files_hold_every_digit(run: Run, report: Path) -> None:
    for name, table in (("scores", tables.score_table(run)), ("comparisons", tables.comparisons(run))):
        read = pd.read_csv(report / "tables" / f"{name}.csv")
        pd.testing.assert_frame_equal(read, table, check_dtype=False, check_exact=True)
    failures = pd.read_csv(report / "tables" / "failures.csv", keep_default_na=False)
    assert sorted(map(tuple, failures.to_numpy())) == sorted(map(tuple, run.failures.to_numpy()))
