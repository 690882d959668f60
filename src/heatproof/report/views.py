"""What the page shows of each table: numbers as text, places on a scale, marks."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from heatproof.report.summary import findings
from heatproof.report.tables import AREAS, is_control
from heatproof.report.text import counted, decimals_for, enough_decimals, fixed, interval_text
from heatproof.study.store import Run

ABSENT = "–"
_DIRECTIONS = {True: ("↑", "higher is better"), False: ("↓", "lower is better")}


@dataclass(frozen=True)
class Head:
    """A method or metric as a reader needs it: its column, what it is, its options, its source."""

    label: str
    name: str
    summary: str
    options: str
    paper: str
    arrow: str = ""
    direction: str = ""


@dataclass(frozen=True)
class Cell:
    """A mean score. Places on the column's scale (`at`, `from_`, `to`, `reference`) are percentages, None where absent."""

    estimate: str
    interval: str
    n: int
    absent: str
    best: bool
    part: str
    sort: str
    at: float | None = None
    from_: float | None = None
    to: float | None = None
    reference: float | None = None


@dataclass(frozen=True)
class Row:
    """A method's cells, one a metric; or in `absent` why there is none."""

    method: str
    cells: tuple[Cell, ...]
    absent: str = ""


@dataclass(frozen=True)
class ScoreView:
    """The methods × metrics table of one model, the controls apart."""

    model: str
    explainers: tuple[Row, ...]
    controls: tuple[Row, ...]


def method_heads(run: Run) -> list[Head]:
    """The methods, in the recipe's order."""
    from heatproof.explanation import methods

    return [
        Head(
            label=spec.label,
            name=spec.name,
            summary=methods()[spec.name].summary,
            options=_options(spec.options),
            paper=methods()[spec.name].paper,
        )
        for spec in run.recipe.methods
    ]


def metric_heads(run: Run) -> list[Head]:
    """The metrics, in the recipe's order."""
    from heatproof.scoring import metrics

    heads = []
    for spec in run.recipe.metrics:
        entry = metrics()[spec.name]
        arrow, direction = _DIRECTIONS[entry.higher_is_better]
        heads.append(Head(spec.label, spec.name, entry.summary, _options(spec.options), entry.paper, arrow, direction))
    return heads


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in options.items())


def score_views(run: Run, scores: pd.DataFrame, comparisons: pd.DataFrame) -> list[ScoreView]:
    """The methods × metrics tables, one a model; a metric has the same digits and scale in all of them."""
    scales = {metric: _Scale.of(rows) for metric, rows in scores.groupby("metric", sort=False)}
    parts = {
        (finding.model, finding.metric, method): part
        for finding in findings(run, comparisons)
        for part, names in finding.parts.items()
        for method in names
    }
    cells = {(row["model"], row["method"], row["metric"]): row for row in scores.to_dict("records")}
    reference = next((method for method in run.methods if is_control(run, method)), None)

    def row(model: str, method: str) -> Row:
        found = [cells[model, method, metric] for metric in run.metrics]
        if all(cell["n"] + cell["nan"] == 0 for cell in found):
            return Row(method, (), absent=_why_absent(run, model, method))
        lines = [cells[model, reference, metric]["estimate"] if reference else math.nan for metric in run.metrics]
        marks = [parts.get((model, metric, method), "") for metric in run.metrics]
        ranges = [scales[metric] for metric in run.metrics]
        return Row(method, tuple(map(_cell, found, ranges, lines, marks)))

    views = []
    for model in run.models:
        rows = {method: row(model, method) for method in run.methods}
        controls = tuple(found for method, found in rows.items() if is_control(run, method))
        explainers = tuple(found for method, found in rows.items() if not is_control(run, method))
        views.append(ScoreView(model, explainers, controls))
    return views


def _why_absent(run: Run, model: str, method: str) -> str:
    rows = run.failures[(run.failures["model"] == model) & (run.failures["method"] == method)]
    reasons = [f"{row['error']}: {row['message']}" for row in rows.to_dict("records")]
    return reasons[0] if reasons else "not computed yet"


@dataclass(frozen=True)
class _Scale:
    """The digits and the range of a metric's column."""

    decimals: int
    low: float
    high: float

    @classmethod
    def of(cls, rows: pd.DataFrame) -> "_Scale":
        ends = rows[["low", "high", "estimate"]].to_numpy(dtype=np.float64)
        ends = ends[np.isfinite(ends)]
        low, high = (float(ends.min()), float(ends.max())) if ends.size else (0.0, 1.0)
        return cls(decimals_for((rows["high"] - rows["low"]) / 2), low, high if high > low else low + 1)

    def place(self, value: float) -> float | None:
        """`value` as a percentage of the range, a little away from its ends."""
        return round(3 + 94 * (value - self.low) / (self.high - self.low), 2) if math.isfinite(value) else None


def _cell(cell: Mapping[Any, Any], scale: _Scale, reference: float, part: str) -> Cell:
    absent = {"undefined": cell["nan"], "missing": cell["missing"]}
    estimate = cell["estimate"]
    decimals = enough_decimals(estimate, scale.decimals)
    return Cell(
        estimate=ABSENT if not cell["n"] and not cell["nan"] else fixed(estimate, decimals),
        interval=interval_text(cell["low"], cell["high"], decimals) if cell["n"] else "",
        n=cell["n"],
        absent=", ".join(f"{number} {word}" for word, number in absent.items() if number),
        best=bool(cell["best"]),
        part=part,
        sort="" if math.isnan(estimate) else repr(float(estimate)),
        at=scale.place(estimate),
        from_=scale.place(cell["low"]),
        to=scale.place(cell["high"]),
        reference=scale.place(reference),
    )


@dataclass(frozen=True)
class PerformanceRow:
    """A class, or an average, with AUROC and AUPRC of each model in turn, as (text, whether it is undefined)."""

    name: str
    images: int
    values: tuple[tuple[str, bool], ...]
    average: bool


@dataclass(frozen=True)
class PerformanceView:
    """The performance of all models; `accuracies` are (value, interval) a model."""

    images: int
    rows: tuple[PerformanceRow, ...]
    accuracies: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


_AVERAGES = {"Mean of the classes": "_macro", "Weighted mean": "_weighted"}


def performance_view(run: Run, performance: pd.DataFrame) -> PerformanceView:
    """The performance table, models side by side; undefined numbers in words, and counted."""
    found = {(row["model"], row["measure"], row["class"]): row for row in performance.to_dict("records")}
    counts = run.samples.loc[run.samples["split"] == "test", "label"].value_counts()

    def row(name: str, suffix: str = "", images: int | None = None) -> PerformanceRow:
        keys = [(model, area + suffix, "" if suffix else name) for model in run.models for area in AREAS]
        positives = int(counts.get(name, 0)) if images is None else images
        return PerformanceRow(name, positives, tuple(_area(found.get(key), positives) for key in keys), bool(suffix))

    total = int(counts.sum())
    rows = [*map(row, run.classes), *(row(name, suffix, total) for name, suffix in _AVERAGES.items())]
    right = [found.get((model, "accuracy", "")) for model in run.models]
    accuracies = tuple((fixed(r["value"]), interval_text(r["low"], r["high"])) if r else (ABSENT, "") for r in right)
    return PerformanceView(total, tuple(rows), accuracies, tuple(_performance_notes(run, performance)))


def _area(row: Mapping[Any, Any] | None, positives: int) -> tuple[str, bool]:
    if row is None:
        return ABSENT, False
    undefined = math.isnan(row["value"])
    return ("undefined (no positives)" if undefined and not positives else fixed(row["value"])), undefined


def _performance_notes(run: Run, performance: pd.DataFrame) -> Iterator[str]:
    yield "The weighted mean counts a class by its test images. Chance is 0.5 for AUROC, the class's share for AUPRC."
    undefined = performance[performance["value"].isna() & (performance["class"] != "")]["class"].nunique()
    if undefined:
        verb = "has" if undefined == 1 else "have"
        yield f"{counted(undefined, 'class', 'classes')} {verb} an undefined value, left out of the means."
    baseline = run.data["baseline_auroc"]
    if baseline is not None:
        yield f"For comparison: a logistic regression on 16 × 16 pixels reaches a mean AUROC of {fixed(baseline)}."
