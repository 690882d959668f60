"""The run in plain words, generated from the numbers and never stronger than their intervals.

A model is said to do better than a constant answer, and a method better than a control, only where the interval of the
difference, paired by image, excludes zero. Everything else "is not shown".
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from heatproof.report.tables import COMPARED, LEVEL, accuracy, is_control, on_test_images
from heatproof.report.text import UNDEFINED, counted, fixed, interval_text, listed
from heatproof.statistics import patient_bootstrap
from heatproof.study.store import Run

FEW_PATIENTS = 30  # below this, the interval's coverage itself is uncertain
PARTS = {"better": "better than every control", "worse": "worse than a control", "open": "no difference shown"}


@dataclass(frozen=True)
class Finding:
    """How the explainers of one model fare on one metric against the controls; method names by part of `PARTS`."""

    model: str
    metric: str
    parts: Mapping[str, tuple[str, ...]]


def model_sentences(run: Run) -> list[str]:
    """One paragraph a model: accuracy with its interval, and whether it beats the most frequent class."""
    return [_model_sentence(run, model) for model in run.models]


def _model_sentence(run: Run, model: str) -> str:
    rows, found = on_test_images(run, model), accuracy(run, model)
    if not found.n:
        return f"{model} has no predictions of test images."
    right = int((rows["predicted"] == rows["label"]).sum())
    text = (
        f"{model} classifies {right} of {counted(found.n, 'test image')} ({counted(found.patients, 'patient')}) correctly: "
        f"accuracy {fixed(found.estimate)}, {100 * LEVEL:g} % interval {interval_text(found.low, found.high)}. "
    )
    return text + _against_constant(rows)


def _against_constant(rows: pd.DataFrame) -> str:
    """Whether the model is right more often than the constant answer that is right most often."""
    frequent = str(rows["label"].value_counts().idxmax())
    constant = rows["label"] == frequent
    better = (rows["predicted"] == rows["label"]).astype(float) - constant
    found = patient_bootstrap(better, rows["patient_id"], level=LEVEL, share=False)
    answer = f"always answering “{frequent}” ({fixed(constant.mean())})"
    bounds = f"difference {fixed(found.estimate)}, interval {interval_text(found.low, found.high)}"
    if found.low > 0:
        return f"That is more than {answer}: {bounds}."
    if found.high < 0:
        return f"That is less than {answer}: {bounds}."
    return f"That it does better than {answer} is not shown: {bounds}."


def findings(run: Run, comparisons: pd.DataFrame) -> list[Finding]:
    """For each model and metric, the explainers by how they compare with the controls, in the recipe's order."""
    found = []
    for model in run.models:
        for metric in run.metrics:
            rows = comparisons[(comparisons["model"] == model) & (comparisons["metric"] == metric)]
            parts: dict[str, list[str]] = {part: [] for part in PARTS}
            for method, verdicts in rows.groupby("method", sort=False)["verdict"]:
                parts[_part(set(verdicts))].append(str(method))
            if len(rows):
                found.append(Finding(model, metric, {part: tuple(names) for part, names in parts.items()}))
    return found


def _part(verdicts: set[str]) -> str:
    if verdicts == {"better"}:
        return "better"
    return "worse" if "worse" in verdicts else "open"


def comparison_note(run: Run, comparisons: pd.DataFrame) -> str:
    """How the comparison was made; or that there was nothing to compare with."""
    controls = [method for method in run.methods if is_control(run, method)]
    if not controls:
        return "The run has no control explainer, so nothing here says whether a method does better than chance."
    if not len(comparisons):
        return "No score of an explainer can be compared with a control."
    few = int((comparisons["verdict"] == "few").sum())
    return (
        f"Controls ({listed(controls)}) know nothing of the model. A method counts as better or worse only where the "
        f"interval of the mean difference on the same images excludes zero; the intervals of one model and metric share "
        f"{100 * (1 - LEVEL):g} % error among them (Bonferroni). Only metrics of {listed(COMPARED)} are compared: a map "
        "that ignores the image can well be robust or sparse."
        + (f" {counted(few, 'comparison')} with fewer than ten patients: none is claimed." if few else "")
    )


def caveats(run: Run, scores: pd.DataFrame, reductions: pd.DataFrame) -> list[str]:
    """What limits the numbers: an unfinished run, few patients, undefined and missing scores, options off their default."""
    return [*_caveats(run, scores, reductions)]


def _caveats(run: Run, scores: pd.DataFrame, reductions: pd.DataFrame) -> Iterator[str]:
    if not run.complete:
        yield "The run is not finished: this report shows what is there so far."
    explained = run.samples[run.samples["sample_id"].isin(explained_samples(run))]
    patients = explained["patient_id"].nunique()
    if patients < FEW_PATIENTS:
        yield (
            f"{counted(len(explained), 'explained image')} of {counted(patients, 'patient')}: intervals from fewer than "
            f"{FEW_PATIENTS} patients are themselves uncertain and tend to be too narrow."
        )
    yield from _gaps(scores, "see the failures" if run.complete else "not yet, or see the failures")
    if len(reductions):
        verb = "is" if len(reductions) == 1 else "are"
        yield f"{counted(len(reductions), 'option')} {verb} not at the default, see below."


def _gaps(scores: pd.DataFrame, why: str) -> Iterator[str]:
    """Which scores are not there, whole rows of the table apart from single ones."""
    empty = (scores["n"] + scores["nan"]).groupby([scores["model"], scores["method"]]).transform("sum") == 0
    for model, cells in scores[empty].groupby("model", sort=False):
        yield f"{model} has no scores of {listed(dict.fromkeys(cells['method']))} ({why})."
    rest = scores[~empty]
    undefined, missing = int(rest["nan"].sum()), int(rest["missing"].sum())
    if undefined or missing:
        total = counted(int(rest["n"].sum()) + undefined + missing, "score")
        verb = "is" if undefined == 1 else "are"
        yield (
            f"Of {total}{' besides' if empty.any() else ''}, {undefined:,} {verb} {UNDEFINED} (a region empty or not "
            f"annotated, a constant map) and {missing:,} missing ({why}); means are over the others."
        )


def explained_samples(run: Run) -> set[str]:
    """The ids of the cases that any model explains."""
    return {sample for model in run.models for sample in run.cases(model)}


def run_paragraph(run: Run) -> str:
    """What was run, in one paragraph."""
    recipe, samples = run.recipe, run.samples
    target = {"predicted": "the predicted class", "label": "the true class"}.get(recipe.target, f"“{recipe.target}”")
    models = listed([f"{spec.name} ({spec.source})" for spec in recipe.models])
    patients = counted(samples["patient_id"].nunique(), "patient")
    return (
        f"Data set {run.data['name']}: {counted(len(samples), 'image')} of {patients} in "
        f"{counted(len(run.classes), 'class', 'classes')}, split by patient. {_explained_part(run)} "
        f"{counted(len(run.models), 'model')}, {models}; {counted(len(run.methods), 'explainer')} and "
        f"{counted(len(run.metrics), 'metric')}. The maps explain {target}. Seed {recipe.seed}."
    )


def _explained_part(run: Run) -> str:
    test, explained = int((run.samples["split"] == "test").sum()), len(explained_samples(run))
    if explained >= test:
        return f"All {counted(test, 'test image')} are explained."
    return (
        f"{explained:,} of {counted(test, 'test image')} are explained, chosen by seed in equal shares of the classes, "
        "annotated ones first."
    )


def provenance(run: Run, written: str) -> str:
    """Versions, device, and the dates of the run's start and of the report."""
    environment: Mapping[str, Any] = run.environment
    return (
        f"Heatproof {environment['heatproof']}, Python {environment['python']}, PyTorch {environment['torch']['version']}, "
        f"device {environment['device']['name']}, {counted(environment['threads'], 'thread')}. "
        f"Run started {environment['created'][:10]}, report written {written}."
    )
