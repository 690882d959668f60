"""The frames of `tables` as tables to be read: numbers as text, marks, places on a scale, words for what is missing."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from heatproof.report.cases import performance_of
from heatproof.report.layout import Bar, Block, Cell, Head, Line, Mark, Sheet, Table
from heatproof.report.summary import Finding, is_shown
from heatproof.report.tables import AREAS, CHANCE, OVERALL, is_control
from heatproof.report.text import counted, decimals_for, enough_decimals, fixed, interval_text
from heatproof.study.store import Run

ABSENT = "–"
CONTROLS = "Controls: maps that know nothing of the model"
BETTER = Mark("better", "▲", "better than every control")
WORSE = Mark("worse", "▼", "worse than a control")
DIFFERENT = Mark("different", "●", "the difference is shown")
_MARKS = {"better": (BETTER,), "worse": (WORSE,)}
_DIRECTIONS = {True: ("↑", "higher is better"), False: ("↓", "lower is better")}
_MEASURES = {
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "auroc_macro": "AUROC, mean",
    "auroc_weighted": "AUROC, weighted",
    "auprc_macro": "AUPRC, mean",
    "auprc_weighted": "AUPRC, weighted",
    "ece": "Calibration error (ECE)",
}
Row = Mapping[Any, Any]


@dataclass(frozen=True)
class Entry:
    """A method or metric as a reader needs it: its column, what it is, its options, its source."""

    label: str
    name: str
    summary: str
    options: str
    paper: str
    arrow: str = ""
    direction: str = ""

    @property
    def head(self) -> Head:
        """The head of its column."""
        summary = f"{self.summary} ({self.options})" if self.options else self.summary
        return Head(self.label, True, summary, self.arrow, self.direction)


def method_entries(run: Run) -> list[Entry]:
    """The methods, in the recipe's order."""
    from heatproof.explanation import methods

    found = [(spec, methods()[spec.name]) for spec in run.recipe.methods]
    return [Entry(spec.label, spec.name, e.summary, _options(spec.options), e.paper) for spec, e in found]


def metric_entries(run: Run) -> list[Entry]:
    """The metrics, in the recipe's order."""
    from heatproof.scoring import metrics

    found = [(spec, metrics()[spec.name]) for spec in run.recipe.metrics]
    return [
        Entry(spec.label, spec.name, e.summary, _options(spec.options), e.paper, *_DIRECTIONS[e.higher_is_better])
        for spec, e in found
    ]


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {value}" for name, value in options.items())


def frame_sheet(name: str, caption: str, frame: pd.DataFrame, heads: Sequence[Head], first: str) -> Sheet:
    """A sheet whose table shows the frame as it is, text by text, rows named by the column `first`."""
    columns = [column for column in frame.columns if column != first]
    lines = tuple(
        Line(str(row[first]), tuple(Cell(str(row[column])) for column in columns)) for row in frame.to_dict("records")
    )
    return Sheet(name, frame, (Table(caption, tuple(heads), (Block(lines),)),))


def data_sheet(run: Run, frame: pd.DataFrame) -> Sheet:
    """Images and patients of each split."""
    heads = [Head("Split", numeric=False), Head("Images"), Head("Patients"), *map(Head, run.classes)]
    return frame_sheet("data", "Images and patients of each split", frame, heads, "split")


def reduction_sheet(frame: pd.DataFrame) -> Sheet:
    """Options that differ from their defaults."""
    heads = [Head("Part", numeric=False), Head("Option", numeric=False), Head("This run"), Head("Default")]
    return frame_sheet("options", "Options that differ from their defaults", frame, heads, "part")


def failure_sheet(frame: pd.DataFrame) -> Sheet:
    """What failed."""
    named = frame[["stage", "model", "method", "metric", "sample_id", "error", "message"]]
    heads = [Head(name, numeric=False) for name in ("Stage", "Model", "Method", "Metric", "Image", "Error", "Message")]
    return frame_sheet("failures", "Failures", named, heads, "stage")


def gap_sheet(frame: pd.DataFrame) -> Sheet:
    """Where scores are undefined or missing."""
    heads = [Head(name, numeric=False) for name in ("Model", "Metric", "Method")]
    heads += [Head("Defined"), Head("Undefined"), Head("Missing")]
    return frame_sheet("gaps", "Undefined and missing scores", frame, heads, "model")


def score_sheet(run: Run, scores: pd.DataFrame, findings: Sequence[Finding]) -> Sheet:
    """The methods × metrics tables, one a model; a metric has the same digits and scale in all of them."""
    scales = {str(metric): _Scale.of(rows) for metric, rows in scores.groupby("metric", sort=False)}
    parts = {(f.model, f.metric, method): part for f in findings for part, names in f.parts.items() for method in names}
    found = {(row["model"], row["method"], row["metric"]): row for row in scores.to_dict("records")}
    first = next((method for method in run.methods if is_control(run, method)), None)

    def line(model: str, method: str) -> Line:
        rows = [found[model, method, metric] for metric in run.metrics]
        if all(row["n"] + row["nan"] == 0 for row in rows):
            return Line(method, absent=f"No scores. {_why_absent(run, model, method)}")
        lines = [found[model, first, metric]["estimate"] if first else math.nan for metric in run.metrics]
        marks = [_MARKS.get(parts.get((model, metric, method), ""), ()) for metric in run.metrics]
        return Line(method, tuple(map(_score_cell, rows, [scales[m] for m in run.metrics], lines, marks)))

    heads = (Head("Method", numeric=False), *(entry.head for entry in metric_entries(run)))
    tables = [
        Table(f"Mean scores of {model}", heads, _blocks(run, lambda m, model=model: line(model, m)), "scores", model)
        for model in run.models
    ]
    return Sheet("scores", scores, tuple(tables))


def _blocks(run: Run, line: Any) -> tuple[Block, ...]:
    """The explainers' lines, and the controls' apart."""
    explainers = tuple(line(method) for method in run.methods if not is_control(run, method))
    controls = tuple(line(method) for method in run.methods if is_control(run, method))
    return tuple(block for block in (Block(explainers), Block(controls, CONTROLS)) if block.lines)


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
        ends = rows[["low", "high", "estimate", CHANCE]].to_numpy(dtype=np.float64)
        ends = ends[np.isfinite(ends)]
        low, high = (float(ends.min()), float(ends.max())) if ends.size else (0.0, 1.0)
        return cls(decimals_for((rows["high"] - rows["low"]) / 2), low, high if high > low else low + 1)

    def place(self, value: float) -> float | None:
        """`value` as a percentage of the range, a little away from its ends."""
        return round(3 + 94 * (value - self.low) / (self.high - self.low), 2) if math.isfinite(value) else None


def _score_cell(row: Row, scale: _Scale, reference: float, marks: tuple[Mark, ...]) -> Cell:
    counts = {"undefined": row["nan"], "missing": row["missing"]}
    estimate, chance = row["estimate"], row[CHANCE]
    decimals = enough_decimals(estimate, scale.decimals)
    at = scale.place(estimate)
    places = (scale.place(value) for value in (row["low"], row["high"], reference, chance))
    return Cell(
        text=ABSENT if not row["n"] and not row["nan"] else fixed(estimate, decimals),
        sort=_sort(estimate),
        detail=interval_text(row["low"], row["high"], decimals) if row["n"] else "",
        notes=(f"n {row['n']}", *([] if math.isnan(chance) else [f"chance {fixed(chance, decimals)}"])),
        warnings=tuple(f"{number} {word}" for word, number in counts.items() if number),
        marks=marks,
        best=bool(row["best"]),
        bar=None if at is None else Bar(at, *places),
    )


def _sort(value: float) -> str:
    return "" if math.isnan(value) else repr(float(value))


def lift_sheet(run: Run, scores: pd.DataFrame, comparisons: pd.DataFrame) -> Sheet | None:
    """Mean of score minus chance, one table a model; None where no metric has a chance level."""
    columns = ["model", "method", "control", "metric", CHANCE, "lift", "lift_low", "lift_high"]
    frame = scores.loc[scores["lift"].notna(), columns]
    metrics = [entry for entry in metric_entries(run) if (frame["metric"] == entry.label).any()]
    if not metrics:
        return None
    said = comparisons[comparisons["control"] == CHANCE].set_index(["model", "method", "metric"])["verdict"].to_dict()
    found = {(row["model"], row["method"], row["metric"]): row for row in frame.to_dict("records")}
    decimals = {str(m): decimals_for((r["lift_high"] - r["lift_low"]) / 2) for m, r in frame.groupby("metric")}
    marks = {"better": (Mark("better", "▲", "above chance"),), "worse": (Mark("worse", "▼", "below chance"),)}

    def cell(model: str, method: str, metric: str) -> Cell:
        row, digits = found.get((model, method, metric)), decimals[metric]
        if row is None:
            return Cell(ABSENT, sort="")
        detail = interval_text(row["lift_low"], row["lift_high"], digits)
        sign = marks.get(said.get((model, method, metric), ""), ())
        notes = (f"chance {fixed(row[CHANCE], digits)}",)
        return Cell(_signed(row["lift"], digits), _sort(row["lift"]), detail, notes, marks=sign)

    def table(model: str) -> Table:
        def line(method: str) -> Line:
            return Line(method, tuple(cell(model, method, entry.label) for entry in metrics))

        heads = (Head("Method", numeric=False), *(entry.head for entry in metrics))
        return Table(f"Lift over chance of {model}", heads, _blocks(run, line), "scores", model)

    return Sheet("lift", frame, tuple(map(table, run.models)))


def _signed(value: float, decimals: int) -> str:
    """With its sign, where it is not zero."""
    text = fixed(value, decimals)
    return f"+{text}" if value > 0 and text.strip("0.") else text


def control_sheet(comparisons: pd.DataFrame) -> Sheet:
    """Every explainer against every control and chance: mean differences with their wider intervals."""
    heads = [Head(name, numeric=False) for name in ("Model", "Metric", "Method", "Control")]
    heads += [Head("Difference"), Head("Images"), Head("Patients"), Head("Undefined")]
    marks = {"better": (Mark("better", "▲", "better"),), "worse": (Mark("worse", "▼", "worse"),)}
    decimals = {
        str(metric): decimals_for((rows["high"] - rows["low"]) / 2) for metric, rows in comparisons.groupby("metric")
    }

    def line(row: Row) -> Line:
        digits = decimals[row["metric"]]
        detail = interval_text(row["low"], row["high"], digits)
        sign = marks.get(row["verdict"], ())
        difference = Cell(_signed(row["difference"], digits), _sort(row["difference"]), detail, marks=sign)
        names = (Cell(row[name]) for name in ("metric", "method", "control"))
        return Line(row["model"], (*names, difference, *(Cell(str(row[name])) for name in ("n", "patients", "nan"))))

    lines = tuple(map(line, comparisons.to_dict("records")))
    caption = "Explainers minus controls, with intervals that share 5 % error within a model and metric"
    return Sheet("controls", comparisons, (Table(caption, tuple(heads), (Block(lines),)),))


def rank_sheet(run: Run, ranks: pd.DataFrame) -> Sheet:
    """Ranks of the methods, one table a model."""
    metrics = [entry for entry in metric_entries(run) if entry.label in ranks.columns]
    found = {(row["model"], row["method"]): row for row in ranks.to_dict("records")}

    def cell(value: float, digits: int = 1) -> Cell:
        whole = value == round(value) if math.isfinite(value) else False
        return Cell(ABSENT if math.isnan(value) else fixed(value, 0 if whole and digits == 1 else digits), _sort(value))

    def table(model: str) -> Table:
        def line(method: str) -> Line:
            row = found[model, method]
            return Line(method, (cell(row["mean"], 2), *(cell(row[entry.label]) for entry in metrics)))

        heads = (Head("Method", numeric=False), Head("Mean rank"), *(Head(entry.label) for entry in metrics))
        return Table(f"Ranks of the methods of {model}", heads, _blocks(run, line), "plain", model)

    return Sheet("ranks", ranks, tuple(map(table, run.models)))


def pair_sheet(run: Run, pairs: pd.DataFrame, scores: pd.DataFrame) -> Sheet:
    """The mean differences of all pairs: a matrix of each model and metric, methods from the best mean to the worst."""
    shown = pairs[["model", "metric"]].drop_duplicates()
    tables = [
        _matrix(
            entry,
            model,
            pairs[(pairs["model"] == model) & (pairs["metric"] == entry.label)],
            scores[(scores["model"] == model) & (scores["metric"] == entry.label)],
        )
        for model in run.models
        for entry in metric_entries(run)
        if ((shown["model"] == model) & (shown["metric"] == entry.label)).any()
    ]
    return Sheet("pairs", pairs, tuple(tables))


def _matrix(entry: Entry, model: str, pairs: pd.DataFrame, scores: pd.DataFrame) -> Table:
    ascending = entry.arrow == _DIRECTIONS[False][0]
    order = scores.dropna(subset="estimate").sort_values("estimate", ascending=ascending, kind="stable")["method"]
    decimals = decimals_for((pairs["high"] - pairs["low"]) / 2)
    rows = {(row["method_a"], row["method_b"]): (row, 1) for row in pairs.to_dict("records")}
    rows |= {(b, a): (row, -1) for (a, b), (row, _) in rows.items()}

    def cell(method: str, other: str) -> Cell:
        if method == other or (method, other) not in rows:
            return Cell("", sort="")
        row, sign = rows[method, other]
        low, high = sorted((sign * row["low"], sign * row["high"]))
        difference = sign * row["difference"]
        p = f"p {'< 0.001' if row['p_holm'] < 0.001 else fixed(row['p_holm'], 3)}"
        notes = (p, f"n {row['n']}")
        marks = (DIFFERENT,) if is_shown(row) else ()
        return Cell(
            _signed(difference, decimals), _sort(difference), interval_text(low, high, decimals), notes, marks=marks
        )

    lines = tuple(Line(method, tuple(cell(method, other) for other in order)) for method in order)
    heads = (Head("Method minus", numeric=False), *map(Head, order))
    caption = f"Differences of {entry.label}, {model}; {entry.direction}"
    return Table(caption, heads, (Block(lines),), "matrix", f"{model}, {entry.label} {entry.arrow}")


def overview_sheet(run: Run, performance: pd.DataFrame) -> Sheet:
    """The measures over all classes, a row a model."""
    overall = performance[performance["class"] == ""].drop(columns=["class", "positives"])
    found = {(row["model"], row["measure"]): row for row in overall.to_dict("records")}
    measures = [measure for measure in OVERALL if (overall["measure"] == measure).any()]
    heads = (Head("Model", numeric=False), *(Head(_MEASURES[measure]) for measure in measures))
    lines = tuple(Line(m, tuple(_measure(found.get((m, measure))) for measure in measures)) for m in run.models)
    return Sheet("performance", overall, (Table("Performance on the test images", heads, (Block(lines),)),))


def class_sheet(run: Run, performance: pd.DataFrame) -> Sheet:
    """AUROC and AUPRC of each class, the models side by side."""
    areas = performance[performance["class"] != ""].reset_index(drop=True)
    found = {(row["model"], row["measure"], row["class"]): row for row in areas.to_dict("records")}
    columns = [(model, area) for model in run.models for area in AREAS]
    heads = [Head("Class", numeric=False), Head("Test images")]
    heads += [Head(f"{area.upper()} {model}" if len(run.models) > 1 else area.upper()) for model, area in columns]

    def line(name: str) -> Line:
        rows = [found.get((model, area, name)) for model, area in columns]
        positives = next((int(row["positives"]) for row in rows if row), 0)
        return Line(name, (Cell(str(positives)), *(_measure(row) for row in rows)))

    table = Table("Performance by class on the test images", tuple(heads), (Block(tuple(map(line, run.classes))),))
    return Sheet("classes", areas, (table,))


def _measure(row: Row | None) -> Cell:
    if row is None:
        return Cell(ABSENT, sort="")
    if math.isnan(row["value"]):
        return Cell("undefined", "", warnings=("no positives",) if row.get("positives") == 0 else ())
    interval = "" if math.isnan(row["low"]) else interval_text(row["low"], row["high"])
    return Cell(fixed(row["value"]), _sort(row["value"]), interval)


def performance_notes(run: Run, performance: pd.DataFrame) -> Iterator[str]:
    """What one has to know to read the performance."""
    yield "The weighted mean counts a class by its test images. Chance is 0.5 for AUROC, the class's share for AUPRC."
    undefined = performance[performance["value"].isna() & (performance["class"] != "")]["class"].nunique()
    if undefined:
        verb = "has" if undefined == 1 else "have"
        yield f"{counted(undefined, 'class', 'classes')} {verb} an undefined value, left out of the means."
    baseline = run.data["baseline_auroc"]
    if baseline is not None:
        yield f"For comparison: a logistic regression on 16 × 16 pixels reaches a mean AUROC of {fixed(baseline)}."


def confusion_sheet(run: Run) -> Sheet | None:
    """How often each class was taken for each, one table a model; None where the run has not kept it."""
    frames, tables = [], []
    for model in run.models:
        found = _confusion(run, model)
        if found is not None:
            frame, table = found
            frames.append(frame.assign(model=model))
            tables.append(table)
    return Sheet("confusion", pd.concat(frames, ignore_index=True), tuple(tables)) if tables else None


def _confusion(run: Run, model: str) -> tuple[pd.DataFrame, Table] | None:
    matrix = (performance_of(run, model) or {}).get("confusion")
    if matrix is None:
        return None
    if isinstance(matrix, Mapping):
        return _label_confusion(model, matrix)
    cells = [(t, p, int(matrix[i][j])) for i, t in enumerate(run.classes) for j, p in enumerate(run.classes)]
    lines = []
    for name, counts in zip(run.classes, matrix, strict=True):
        total = sum(counts)
        shares = [count / total if total else 0.0 for count in counts]
        lines.append(Line(name, tuple(Cell(str(c), shade=s) for c, s in zip(counts, shares, strict=True))))
    heads = (Head("True class", numeric=False), *(Head(f"said: {name}") for name in run.classes))
    table = Table(f"Confusion matrix of {model}, test images", heads, (Block(tuple(lines)),), "plain", model)
    return pd.DataFrame(cells, columns=["truth", "predicted", "images"]), table


def _label_confusion(model: str, matrix: Mapping[str, Any]) -> tuple[pd.DataFrame, Table]:
    names = ("true positive", "false negative", "false positive", "true negative")
    rows = [(name, tp, fn, fp, tn) for name, ((tn, fp), (fn, tp)) in matrix.items()]
    lines = tuple(Line(name, tuple(Cell(str(count)) for count in counts)) for name, *counts in rows)
    heads = (Head("Label", numeric=False), *map(Head, names))
    table = Table(f"Right and wrong labels of {model}, test images", heads, (Block(lines),), "plain", model)
    return pd.DataFrame(rows, columns=["label", *(name.replace(" ", "_") for name in names)]), table
