"""The report's numbers as data frames: what the page shows and what stands in `tables/*.csv`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from heatproof.statistics import Interval, patient_bootstrap
from heatproof.study.store import Run

LEVEL = 0.95
AREAS = ("auroc", "auprc")
FEWEST_PATIENTS = 10  # below this, bootstrap intervals are too narrow to say that two methods differ
# where a map that knows nothing of the model has to lose; it may well be robust, or sparse
COMPARED = ("faithfulness", "localization")
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


def data_table(run: Run) -> pd.DataFrame:
    """Images, patients and images of each class, a row a split: split, images, patients, n_<class>..."""
    rows = []
    for split in ("train", "val", "test"):
        part = run.samples[run.samples["split"] == split]
        counts = part["label"].value_counts()
        by_class = {f"n_{name}": int(counts.get(name, 0)) for name in run.classes}
        rows.append({"split": split, "images": len(part), "patients": part["patient_id"].nunique(), **by_class})
    return pd.DataFrame(rows)


def on_test_images(run: Run, model: str) -> pd.DataFrame:
    """The model's predictions on the test images."""
    predictions = run.predictions
    return predictions[(predictions["model"] == model) & (predictions["split"] == "test")].reset_index(drop=True)


def accuracy(run: Run, model: str) -> Interval:
    """Share of the test images classified correctly."""
    rows = on_test_images(run, model)
    return patient_bootstrap(rows["predicted"] == rows["label"], rows["patient_id"], level=LEVEL)


def performance_table(run: Run) -> pd.DataFrame:
    """How well the models classify the test images: model, measure, class (empty: all of them), value, low, high.

    A value is NaN where it is undefined. Only accuracy has an interval. A model that is not there yet has no rows.
    """
    rows: list[dict[str, Any]] = []
    for model in run.models:
        right = accuracy(run, model)
        if not right.n:
            continue
        found = run.performance(model)
        overall = ["accuracy", *(f"{area}_{average}" for area in AREAS for average in ("macro", "weighted"))]
        rows += [{"model": model, "measure": measure, "class": "", "value": found[measure]} for measure in overall]
        rows[-len(overall)] |= {"low": right.low, "high": right.high}
        for area in AREAS:
            rows += [{"model": model, "measure": area, "class": k, "value": v} for k, v in found[area].items()]
    columns = ["model", "measure", "class", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns).astype({"value": float, "low": float, "high": float})


def score_table(run: Run) -> pd.DataFrame:
    """Mean and interval of every model, method and metric, in the recipe's order.

    Columns: model, method, control, metric, estimate, low, high, n (defined scores), patients, nan (undefined scores),
    missing (cases without a score, see the failures), interval (how the bounds came about), best (highest mean of the
    explainers, or lowest where lower is better; the first of equals).
    """
    groups = dict(list(run.scores.groupby(["model", "method", "metric"], sort=False)))
    rows = []
    for model in run.models:
        cases = len(run.cases(model))
        for method in run.methods:
            for metric in run.metrics:
                scores = groups.get((model, method, metric), run.scores.iloc[:0])
                rows.append({"model": model, "method": method, "control": is_control(run, method), "metric": metric})
                rows[-1].update(_cell(scores, cases, share=is_share(run, metric)))
    table = pd.DataFrame(rows)
    return table.assign(best=_best(run, table))


def _cell(scores: pd.DataFrame, cases: int, *, share: bool) -> dict[str, Any]:
    values = scores["value"].to_numpy(dtype=np.float64)
    interval = interval_of(values, scores["patient_id"].to_numpy(), level=LEVEL, share=share)
    return {
        "estimate": interval.estimate,
        "low": interval.low,
        "high": interval.high,
        "n": interval.n,
        "patients": interval.patients,
        "nan": interval.nan,
        "missing": cases - scores["sample_id"].nunique(),
        "interval": interval.method,
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


def _best(run: Run, table: pd.DataFrame) -> NDArray[np.bool_]:
    signs = {metric: 1 if higher_is_better(run, metric) else -1 for metric in run.metrics}
    quality = (table["estimate"] * table["metric"].map(signs))[~table["control"]].dropna()
    first = quality.groupby([table["model"], table["metric"]], sort=False).idxmax()
    return table.index.isin(first)


def comparisons(run: Run) -> pd.DataFrame:
    """Every explainer against every control, paired by image, in the metrics of the categories `COMPARED`.

    Columns: model, metric, method, control, difference (method minus control), low, high, n, patients, nan, level,
    verdict. The intervals of one model and metric share 5 % among them (Bonferroni), so `verdict` is `better` or
    `worse` only where that wider interval excludes zero, else `open`; `few` where fewer than ten patients have both
    scores.
    """
    controls = [method for method in run.methods if is_control(run, method)]
    explainers = [method for method in run.methods if method not in controls]
    columns = "model metric method control difference low high n patients nan level verdict".split()
    rows: list[tuple[Any, ...]] = []
    wanted = run.scores[run.scores["metric"].isin([metric for metric in run.metrics if is_compared(run, metric)])]
    for (model, metric), scores in wanted.groupby(["model", "metric"], sort=False):
        wide = scores.groupby(["sample_id", "patient_id", "method"], sort=False)["value"].mean().unstack("method")
        pairs = [(m, c) for m in explainers for c in controls if {m, c} <= set(wide.columns)]
        for method, control in pairs:
            found = _difference(wide[method] - wide[control], 1 - (1 - LEVEL) / len(pairs))
            said = verdict(found, higher_is_better=higher_is_better(run, str(metric)))
            numbers = (found.estimate, found.low, found.high, found.n, found.patients, found.nan)
            rows.append((model, metric, method, control, *numbers, 1 - (1 - LEVEL) / len(pairs), said))
    return pd.DataFrame(rows, columns=columns)


def _difference(values: "pd.Series[float]", level: float) -> Interval:
    patients = values.index.get_level_values("patient_id").to_numpy()
    return interval_of(values.to_numpy(dtype=np.float64), patients, level=level, draws=_MANY_DRAWS, share=False)


def verdict(difference: Interval, *, higher_is_better: bool) -> str:
    """What the interval of a mean difference allows to say of the first of the two.

    `better` or `worse` where it excludes zero, else `open`; `few` where fewer than ten patients stand behind it.
    """
    if difference.patients < FEWEST_PATIENTS:
        return "few"
    if difference.low > 0:
        return "better" if higher_is_better else "worse"
    if difference.high < 0:
        return "worse" if higher_is_better else "better"
    return "open"


def failure_table(run: Run) -> pd.DataFrame:
    """The failures, those of the same kind beside each other."""
    return run.failures.sort_values(
        ["stage", "model", "method", "metric", "sample_id"], kind="stable", ignore_index=True
    )


def write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    """Each table as CSV with all its digits, `<folder>/<name>.csv`."""
    folder.mkdir(parents=True)
    for name, table in tables.items():
        table.to_csv(folder / f"{name}.csv", index=False)
