"""The report's numbers as data frames, with all their digits: what the page shows and what stands in `tables/*.csv`."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from heatproof.report.cases import explained_cases, names_in, on_test_images, performance_of
from heatproof.statistics import Interval, compare, patient_bootstrap
from heatproof.study.store import Run

LEVEL, ERROR = 0.95, 0.05  # of intervals, and of tests
AREAS = ("auroc", "auprc")
OVERALL = (
    "accuracy",
    "balanced_accuracy",
    *(f"{area}_{mean}" for area in AREAS for mean in ("macro", "weighted")),
    "ece",
)
FEWEST_PATIENTS = 10  # below this, bootstrap intervals are too narrow to say that two methods differ
# where a map that knows nothing of the model has to lose; it may well be robust, or sparse
COMPARED = ("faithfulness", "localization")
CHANCE = "chance"  # stands among the controls where a metric has a chance level
_MANY_DRAWS = 10_000  # a corrected level looks far into the tails


def is_control(run: Run, method: str) -> bool:
    """Whether the method's column is a control explainer, which knows nothing of the model."""
    from heatproof.explanation import methods

    return methods()[run.recipe.method(method).name].family == "control"


def is_signed(run: Run, method: str) -> bool:
    """Whether the maps of the method's column are signed."""
    from heatproof.explanation import methods

    return bool(methods()[run.recipe.method(method).name].signed)


def higher_is_better(run: Run, metric: str) -> bool:
    """The direction of the metric's column."""
    from heatproof.scoring import metrics

    return bool(metrics()[run.recipe.metric(metric).name].higher_is_better)


def is_share(run: Run, metric: str) -> bool:
    """Whether the metric's values lie within [0, 1]."""
    from heatproof.scoring import metrics

    return metrics()[run.recipe.metric(metric).name].bounds == (0, 1)


def is_compared(run: Run, metric: str) -> bool:
    """Whether explainers are compared with the controls on the metric's column."""
    from heatproof.scoring import metrics

    return metrics()[run.recipe.metric(metric).name].category in COMPARED


def compares_samples(run: Run, metric: str) -> bool:
    """Whether the metric's score of one sample depends on the other samples."""
    from heatproof.scoring import metrics

    return "cohort" in metrics()[run.recipe.metric(metric).name].needs


def scores_of(run: Run) -> pd.DataFrame:
    """`Run.scores` with a column `chance`, NaN where the metric has no chance level or the run has not kept it."""
    scores = run.scores
    return scores if CHANCE in scores.columns else scores.assign(**{CHANCE: math.nan})


def data_table(run: Run) -> pd.DataFrame:
    """Images, patients and images of each class, a row a split: split, images, patients, n_<class>..."""
    rows = []
    for split in ("train", "val", "test"):
        part = run.samples[run.samples["split"] == split]
        by_class = {f"n_{name}": _images_of(part, name) for name in run.classes}
        rows.append({"split": split, "images": len(part), "patients": part["patient_id"].nunique(), **by_class})
    return pd.DataFrame(rows)


def _images_of(samples: pd.DataFrame, name: str) -> int:
    if "labels" in samples.columns:
        return sum(name in names_in(labels) for labels in samples["labels"])
    return int((samples["label"] == name).sum())


def accuracy(run: Run, model: str) -> Interval:
    """Share of the test images classified correctly, of a model that says one class an image."""
    rows = on_test_images(run, model)
    return patient_bootstrap(rows["predicted"] == rows["label"], rows["patient_id"], level=LEVEL)


def performance_table(run: Run) -> pd.DataFrame:
    """How well the models classify the test images.

    Columns: model, measure, class (empty: all of them), value, low, high, n, patients, nan, positives (test images of the
    class). A value is NaN where it is undefined, a bound where there is no interval. A model that is not there yet has
    no rows.
    """
    rows = [row for model in run.models for row in _performance_rows(run, model)]
    columns = "model measure class value low high n patients nan positives".split()
    return pd.DataFrame(rows, columns=columns).astype({"value": float, "low": float, "high": float})


def _performance_rows(run: Run, model: str) -> list[dict[str, Any]]:
    found = performance_of(run, model)
    if found is None:
        return []
    intervals, support = found.get("intervals", {}), found["support"]

    def row(measure: str, name: str, value: float | None) -> dict[str, Any]:
        interval = intervals.get(f"{measure}.{name}" if name else measure, {})
        counts = {key: interval.get(key) for key in ("low", "high", "n", "patients", "nan")}
        positives = support[name] if name else None
        return {"model": model, "measure": measure, "class": name, "value": value, **counts, "positives": positives}

    overall = [row(measure, "", found[measure]) for measure in OVERALL if measure in found]
    return overall + [row(area, name, value) for area in AREAS for name, value in found[area].items()]


def score_table(run: Run) -> pd.DataFrame:
    """Mean and interval of every model, method and metric, in the recipe's order.

    Columns: model, method, control, metric, estimate, low, high, n (defined scores), patients, nan (undefined scores),
    missing (cases without a score, see the failures), interval (how the bounds came about), chance (mean chance level of
    the cases with a score), lift, lift_low, lift_high (mean of score minus chance; all NaN for a metric without chance),
    best (highest mean of the explainers, or lowest where lower is better; the first of equals).
    """
    groups = dict(list(scores_of(run).groupby(["model", "method", "metric"], sort=False)))
    rows = []
    for model in run.models:
        cases = len(explained_cases(run, model))
        for method in run.methods:
            for metric in run.metrics:
                scores = groups.get((model, method, metric), scores_of(run).iloc[:0])
                rows.append({"model": model, "method": method, "control": is_control(run, method), "metric": metric})
                rows[-1].update(_cell(scores, cases, share=is_share(run, metric)))
    table = pd.DataFrame(rows)
    return table.assign(best=_best(run, table))


def _cell(scores: pd.DataFrame, cases: int, *, share: bool) -> dict[str, Any]:
    values, chance = (scores[name].to_numpy(dtype=np.float64) for name in ("value", CHANCE))
    patients = scores["patient_id"].to_numpy()
    interval = interval_of(values, patients, level=LEVEL, share=share)
    lift = lift_of(values, chance, patients, level=LEVEL, share=share)
    both = np.isfinite(values - chance)
    return {
        "estimate": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
        "patients": interval.patients,
        "nan": interval.nan,
        "missing": cases - len(scores),
        "interval": interval.method,
        CHANCE: chance[both].mean() if both.any() else math.nan,
        "lift": lift.estimate,
        "lift_low": lift.low,
        "lift_high": lift.high,
    }


def interval_of(values: NDArray[Any], patients: NDArray[Any], **options: Any) -> Interval:
    """`patient_bootstrap`; a mean that is infinite stands there as such, without bounds."""
    infinite = np.isinf(values)
    if not infinite.any():
        return patient_bootstrap(values, patients, **options)
    defined = ~np.isnan(values)
    people = len(set(patients[defined]))
    total = float(values[defined].sum())  # NaN where both infinities occur
    return Interval(total, np.nan, np.nan, int(defined.sum()), people, int((~defined).sum()), method="none")


def lift_of(
    values: NDArray[Any], chance: NDArray[Any], patients: NDArray[Any], *, share: bool, **options: Any
) -> Interval:
    """The mean of score minus chance, with the interval that `interval_of` gives its mean.

    Where all scores are 0, or all are 1, resampling shows no spread: the interval is then Wilson's of the scores, moved by
    the mean chance level.
    """
    lift = interval_of(values - chance, patients, share=False, **options)
    both = ~np.isnan(values - chance)
    scores = interval_of(values[both], patients[both], share=share, **options)
    if scores.method != "wilson":
        return lift
    mean = chance[both].mean()
    return replace(lift, low=scores.low - mean, high=scores.high - mean, method="wilson")


def _best(run: Run, table: pd.DataFrame) -> NDArray[np.bool_]:
    signs = {metric: 1 if higher_is_better(run, metric) else -1 for metric in run.metrics}
    quality = (table["estimate"] * table["metric"].map(signs))[~table["control"]].dropna()
    first = quality.groupby([table["model"], table["metric"]], sort=False).idxmax()
    return table.index.isin(first)


def comparisons(run: Run) -> pd.DataFrame:
    """Every explainer against every control, paired by image and explained class, in the metrics of `COMPARED`.

    Where a metric has a chance level, that counts as one control more, `CHANCE`. Columns: model, metric, method, control,
    difference (method minus control), low, high, n, patients, nan, level, verdict. The intervals of one model and metric
    share 5 % among them (Bonferroni), so `verdict` is `better` or `worse` only where that wider interval excludes zero,
    else `open`; `few` where fewer than ten patients have both scores; `none` where no case has.
    """
    controls = [method for method in run.methods if is_control(run, method)]
    explainers = [method for method in run.methods if method not in controls]
    columns = "model metric method control difference low high n patients nan level verdict".split()
    rows: list[tuple[Any, ...]] = []
    scores = scores_of(run)
    wanted = scores[scores["metric"].isin([metric for metric in run.metrics if is_compared(run, metric)])]
    for (model, metric), part in wanted.groupby(["model", "metric"], sort=False):
        values, chance = (_wide(part, column) for column in ("value", CHANCE))
        patients = values.index.get_level_values("patient_id").to_numpy()
        pairs = [(m, c) for m in explainers for c in controls if {m, c} <= set(values)]
        pairs += [(m, CHANCE) for m in explainers if m in chance and chance[m].notna().any()]
        level = 1 - ERROR / max(1, len(pairs))
        options: dict[str, Any] = {"level": level, "draws": _MANY_DRAWS}
        for method, control in pairs:
            mine = values[method].to_numpy()
            if control == CHANCE:
                share = is_share(run, str(metric))
                interval = lift_of(mine, chance[method].to_numpy(), patients, share=share, **options)
            else:
                interval = interval_of(mine - values[control].to_numpy(), patients, share=False, **options)
            said = verdict(interval, higher_is_better=higher_is_better(run, str(metric)))
            numbers = (interval.estimate, interval.low, interval.high, interval.n, interval.patients, interval.nan)
            rows.append((model, metric, method, control, *numbers, level, said))
    return pd.DataFrame(rows, columns=columns)


def _wide(scores: pd.DataFrame, column: str) -> pd.DataFrame:
    """The column by case (rows) and method (columns)."""
    wide = scores.set_index(["sample_id", "target", "patient_id", "method"])[column].unstack("method")
    return wide.astype(np.float64)


def verdict(difference: Interval, *, higher_is_better: bool) -> str:
    """What the interval of a mean difference allows to say of the first of the two.

    `better` or `worse` where it excludes zero, else `open`; `few` where fewer than ten patients stand behind it, `none`
    where nobody does.
    """
    if difference.patients < FEWEST_PATIENTS:
        return "few" if difference.patients else "none"
    if difference.low > 0:
        return "better" if higher_is_better else "worse"
    if difference.high < 0:
        return "worse" if higher_is_better else "better"
    return "open"


def pair_table(run: Run) -> pd.DataFrame:
    """All pairs of methods, controls included, within each model and metric: see `statistics.compare`."""
    return compare(run.scores)


def rank_table(run: Run, scores: pd.DataFrame) -> pd.DataFrame:
    """Ranks of the methods' means, controls included: model, method, control, a column a metric, mean.

    Rank 1 is the best mean; equal means share the mean of their ranks. Only metrics in which explainers are compared
    with the controls are ranked. `mean` is over the metrics, NaN for a method that has no rank in one of them. The
    metrics depend on one another, so the mean rank describes and tests nothing.
    """
    metrics = [metric for metric in run.metrics if is_compared(run, metric)]
    part = scores[scores["metric"].isin(metrics)]
    sign = part["metric"].map({metric: 1 if higher_is_better(run, metric) else -1 for metric in metrics}).astype(float)
    quality = part["estimate"] * sign
    ranks = quality.groupby([part["model"], part["metric"]]).rank(ascending=False)
    order = pd.MultiIndex.from_product([run.models, run.methods], names=["model", "method"])
    wide = part.assign(rank=ranks).pivot(index=["model", "method"], columns="metric", values="rank")
    wide = wide.reindex(index=order, columns=metrics)
    table = wide.assign(mean=wide.mean(axis=1, skipna=False)).reset_index()
    table.insert(2, "control", [is_control(run, method) for method in table["method"]])
    return table.rename_axis(columns=None)


def gap_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Where scores are undefined or missing: model, metric, method, defined, undefined, missing; complete cells left out."""
    found = scores.rename(columns={"n": "defined", "nan": "undefined"})
    found = found[(found["undefined"] > 0) | (found["missing"] > 0)]
    return found[["model", "metric", "method", "defined", "undefined", "missing"]].reset_index(drop=True)


def failure_table(run: Run) -> pd.DataFrame:
    """The failures, those of the same kind beside each other."""
    return run.failures.sort_values(
        ["stage", "model", "method", "metric", "sample_id"], kind="stable", ignore_index=True
    )
