"""The report's numbers against a second computation from the files of the run."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from heatproof.report import tables
from heatproof.statistics import Interval, compare, patient_bootstrap
from heatproof.study.store import Run
from support.runs import CHANCE, FAILED_METRIC, MISSING, RunFolder

LOWER = {"max_sensitivity", "avg_sensitivity"}


@pytest.fixture(scope="module")
def raw(run_path: Path) -> pd.DataFrame:
    return pd.concat(
        [pd.read_parquet(path) for path in sorted((run_path / "scores").rglob("*.parquet"))], ignore_index=True
    )


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


def test_performance_measures_and_intervals_are_those_of_the_file(run: Run, run_path: Path) -> None:
    table = tables.performance_table(run).set_index(["model", "measure", "class"])
    for model in run.models:
        found = json.loads((run_path / "models" / model / "performance.json").read_text(encoding="utf-8"))
        names = [*tables.OVERALL, *(f"{area}.{name}" for area in tables.AREAS for name in run.classes)]
        assert len(table.loc[model]) == len(names) == 7 + 2 * 3
        for name in names:
            measure, _, of = name.partition(".")
            row, interval = table.loc[(model, measure, of)], found["intervals"][name]
            value = found[measure][of] if of else found[measure]
            assert tuple(row[["value", "low", "high"]]) == (value, interval["low"], interval["high"])
            assert row["positives"] == (10 if of else None) or (not of and np.isnan(row["positives"]))


def test_performance_without_intervals_has_none(tmp_path: Path) -> None:
    path = RunFolder(tmp_path / "run", models=["vit"], cases=6, methods=["gradcam"], metrics=["sparseness"]).write()
    file = path / "models" / "vit" / "performance.json"
    found = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({k: v for k, v in found.items() if k not in ("intervals", "ece")}), encoding="utf-8")
    table = tables.performance_table(Run(path))
    assert table["low"].isna().all()
    assert set(table["measure"]) == {*tables.OVERALL, *tables.AREAS} - {"ece"}
    assert table["value"].notna().any()


def test_comparisons_are_paired_by_image_at_a_shared_level(run: Run, raw: pd.DataFrame) -> None:
    found = tables.comparisons(run)
    assert set(found["metric"]) == {
        "faithfulness_estimate",
        "pointing_game",
        "iou_rectangle_20",
        "relevance_mass_accuracy",
    }
    explainers = {"vit": 6, "densenet": 3}
    for row in found[found["control"] != "chance"].itertuples():
        parts = raw[(raw["model"] == row.model) & (raw["metric"] == row.metric)]
        mine = parts[parts["method"] == row.method].set_index("sample_id")
        other = parts[parts["method"] == row.control].set_index("sample_id")
        difference = (mine["value"] - other["value"]).dropna()
        assert row.n == len(difference)
        assert row.difference == pytest.approx(difference.mean())
        controls = 2 if row.metric == "faithfulness_estimate" else 3  # it has no chance level
        assert row.level == pytest.approx(1 - 0.05 / (explainers[row.model] * controls))
        patients = other.loc[difference.index, "patient_id"]
        interval = patient_bootstrap(difference, patients, level=row.level, draws=10_000, share=False)
        assert (row.low, row.high) == pytest.approx((interval.low, interval.high))


def test_chance_stands_among_the_controls_where_a_metric_has_it(run: Run, raw: pd.DataFrame) -> None:
    found = tables.comparisons(run)
    found = found[found["control"] == "chance"]
    assert set(found["metric"]) == set(CHANCE)
    for row in found.itertuples():
        part = raw[(raw["model"] == row.model) & (raw["metric"] == row.metric) & (raw["method"] == row.method)]
        lift = (part["value"] - CHANCE[row.metric]).dropna()
        assert (row.n, row.difference) == (len(lift), pytest.approx(lift.mean()))
        if part["value"].nunique() > 1:
            people = part.loc[lift.index, "patient_id"].to_numpy()
            interval = patient_bootstrap(lift.to_numpy(), people, level=row.level, draws=10_000, share=False)
            assert (row.low, row.high) == pytest.approx((interval.low, interval.high))


def test_lift_of_scores_that_are_all_zero_has_wilsons_interval() -> None:
    """No spread in 12 patients is not certainty: the upper bound of 0 of 12 is z² / (12 + z²)."""
    people = np.arange(12)
    lift = tables.lift_of(np.zeros(12), np.full(12, 0.06), people, share=True, level=0.95)
    z = 1.959963984540054
    assert (lift.estimate, lift.low) == (pytest.approx(-0.06), pytest.approx(-0.06))
    assert lift.high == pytest.approx(z**2 / (12 + z**2) - 0.06)
    assert tables.verdict(lift, higher_is_better=True) == "open"


def test_wilsons_interval_of_the_lift_counts_cases_with_both_numbers() -> None:
    values, chance = np.append(np.zeros(12), 1.0), np.append(np.full(12, 0.06), np.nan)
    lift = tables.lift_of(values, chance, np.arange(13), share=True, level=0.95)
    assert (lift.method, lift.n, lift.low) == ("wilson", 12, pytest.approx(-0.06))


def test_lift_leaves_out_cases_without_score_or_chance() -> None:
    values, chance = np.array([0.5, 0.7, np.nan, 0.9]), np.array([0.1, np.nan, 0.1, 0.2])
    lift = tables.lift_of(values, chance, np.array(["a", "b", "c", "d"]), share=True, level=0.95)
    assert (lift.n, lift.nan, lift.estimate) == (2, 2, pytest.approx(0.55))


def test_score_table_has_chance_and_lift_where_there_is_a_chance_level(scores: pd.DataFrame, raw: pd.DataFrame) -> None:
    for cell in scores.itertuples():
        rows = raw[(raw["model"] == cell.model) & (raw["method"] == cell.method) & (raw["metric"] == cell.metric)]
        if cell.metric not in CHANCE or not rows["value"].notna().any():
            assert np.isnan([cell.chance, cell.lift, cell.lift_low, cell.lift_high]).all()
        else:
            assert cell.chance == pytest.approx(CHANCE[cell.metric])
            assert cell.lift == pytest.approx(rows["value"].mean() - CHANCE[cell.metric])
            assert cell.lift_low <= cell.lift <= cell.lift_high


def test_a_run_without_chance_levels_has_no_lift(tmp_path: Path) -> None:
    found = Run(RunFolder(tmp_path / "run", models=["vit"], cases=6, chance=False).write())
    assert "chance" not in found.scores
    assert tables.score_table(found)[["chance", "lift"]].isna().all(axis=None)
    assert "chance" not in set(tables.comparisons(found)["control"])


def test_several_targets_of_an_image_are_several_cases(label_report: Path) -> None:
    """Paired by image and class: 60 differences of 30 images, which a mean over classes would make 30."""
    labels = Run(label_report.parent)
    scores = tables.score_table(labels).set_index(["model", "method", "metric"])
    assert scores.loc[("vit", "lime_200", "sparseness"), "n"] == 60
    found = tables.comparisons(labels)
    row = found[
        (found["model"] == "vit") & (found["method"] == "lime_200") & (found["metric"] == "faithfulness_estimate")
    ]
    assert set(row["n"]) == {60}
    raw = labels.scores[(labels.scores["model"] == "vit") & (labels.scores["metric"] == "faithfulness_estimate")]
    wide = raw.pivot(index=["sample_id", "target"], columns="method", values="value")
    first = row[row["control"] == "control_random"].iloc[0]
    assert first["difference"] == pytest.approx((wide["lime_200"] - wide["control_random"]).mean())


def test_images_of_a_class_are_counted_in_every_label(label_report: Path) -> None:
    labels = Run(label_report.parent)
    rows = tables.data_table(labels).set_index("split")
    expected = [int((labels.samples[f"label_{name}"] == 1).sum()) for name in labels.classes]
    assert rows.loc["test"].tolist() == [30, 20, *expected]


def test_pairs_are_those_of_the_statistics(run: Run) -> None:
    found = tables.pair_table(run)
    assert (found["model"] == "vit").sum() == 7 * 8 * 7 / 2
    assert (found["model"] == "densenet").sum() == 7 * 5 * 4 / 2
    pd.testing.assert_frame_equal(found, compare(run.scores))


def test_ranks_by_hand(run: Run) -> None:
    scores = pd.DataFrame(
        [
            ("vit", method, metric, value)
            for metric, values in {
                "pointing_game": (0.5, 0.9, 0.5),
                "faithfulness_estimate": (0.1, np.nan, 0.3),
            }.items()
            for method, value in zip(("gradcam", "lrp_z", "control_random"), values, strict=True)
        ],
        columns=["model", "method", "metric", "estimate"],
    )
    found = tables.rank_table(run, scores).set_index(["model", "method"])
    assert found.loc[("vit", "gradcam"), ["pointing_game", "faithfulness_estimate"]].tolist() == [2.5, 2.0]
    assert found.loc[("vit", "control_random"), ["pointing_game", "faithfulness_estimate"]].tolist() == [2.5, 1.0]
    assert found.loc[("vit", "lrp_z"), "pointing_game"] == 1.0
    assert found["mean"].isna().all()  # two of the compared metrics have no ranks here
    full = tables.rank_table(run, tables.score_table(run)).set_index(["model", "method"])
    assert full.loc[("vit", "gradcam"), "mean"] == pytest.approx(full.loc[("vit", "gradcam")].iloc[1:-1].mean())
    assert full.loc[("vit", "control_center"), "control"]


def test_lower_is_better_ranks_the_other_way(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(tables, "COMPARED", ("robustness",))
    scores = tables.score_table(run)
    ranks = tables.rank_table(run, scores).set_index(["model", "method"])["max_sensitivity"]
    means = scores[scores["metric"] == "max_sensitivity"].set_index(["model", "method"])["estimate"]
    for model in run.models:
        assert ranks[model].idxmin() == means[model].idxmin()


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
    assert (found.loc[found["control"] != "chance", ["low", "high"]] == 0).all(axis=None)


def test_verdicts_follow_the_interval(tmp_path: Path) -> None:
    found = tables.comparisons(Run(Crafted(tmp_path / "run", models=["vit"]).write()))
    verdicts = found.set_index(["metric", "method", "control"])["verdict"]
    for metric, control in set(zip(found["metric"], found["control"], strict=True)):
        if control != "chance" or metric in CHANCE:
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
        (np.nan, np.nan, 0, "none", "none"),
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
    for name, table in (("scores", tables.score_table(run)), ("controls", tables.comparisons(run))):
        read = pd.read_csv(report / "tables" / f"{name}.csv")
        pd.testing.assert_frame_equal(read, table, check_dtype=False, check_exact=True)
    failures = pd.read_csv(report / "tables" / "failures.csv", keep_default_na=False)
    assert sorted(map(tuple, failures[run.failures.columns].to_numpy())) == sorted(map(tuple, run.failures.to_numpy()))
