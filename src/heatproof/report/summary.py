"""The run in plain words, generated from the numbers and never stronger than their intervals.

A model is said to do better than a constant answer, and a method better than a control, only where the interval of the
difference, paired by image, excludes zero. Everything else "is not shown".
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from heatproof.report.cases import is_multilabel, on_test_images, performance_of
from heatproof.report.tables import (
    CHANCE,
    COMPARED,
    ERROR,
    FEWEST_PATIENTS,
    LEVEL,
    accuracy,
    compares_samples,
    higher_is_better,
    is_compared,
    is_control,
)
from heatproof.report.text import UNDEFINED, counted, decimals_for, enough_decimals, fixed, interval_text, listed
from heatproof.statistics import patient_bootstrap
from heatproof.study.store import Run

FEW_PATIENTS = 30  # below this, the interval's coverage itself is uncertain
FEW_NAMES = 3  # more are counted where all share a verdict
PARTS = {
    "better": "better than every control",
    "worse": "worse than a control",
    "open": "not shown to be better than every control",
    "none": "no defined score",
}


@dataclass(frozen=True)
class Finding:
    """How the explainers of one model fare on one metric: in a sentence or two, and by part of `PARTS`."""

    model: str
    metric: str
    parts: Mapping[str, tuple[str, ...]]
    sentence: str

    @property
    def listed_parts(self) -> dict[str, str]:
        """The explainers of each part that has any; where one part has them all, their number."""
        parts = {part: names for part, names in self.parts.items() if names}
        if len(parts) == 1:
            [(part, names)] = parts.items()
            return {part: ", ".join(names) if len(names) <= FEW_NAMES else f"all {len(names)} explainers"}
        return {part: ", ".join(names) for part, names in parts.items()}


def model_sentences(run: Run) -> list[str]:
    """One paragraph a model: how well it classifies, with its interval, and whether that is more than a blind answer."""
    return [_model_sentence(run, model) for model in run.models]


def _model_sentence(run: Run, model: str) -> str:
    rows = on_test_images(run, model)
    if not len(rows):
        return f"{model} has no predictions of test images."
    if is_multilabel(rows):
        return _multilabel_sentence(run, model, rows)
    found = accuracy(run, model)
    right = int((rows["predicted"] == rows["label"]).sum())
    text = (
        f"{model} classifies {right} of {counted(found.n, 'test image')} ({counted(found.patients, 'patient')}) correctly: "
        f"accuracy {fixed(found.estimate)}, {100 * LEVEL:g} % interval {interval_text(found.low, found.high)}. "
    )
    return text + _against_constant(rows)


def _multilabel_sentence(run: Run, model: str, rows: pd.DataFrame) -> str:
    images, patients = counted(len(rows), "test image"), counted(rows["patient_id"].nunique(), "patient")
    found = performance_of(run, model) or {}
    area = found.get("auroc_macro")
    text = f"{model} names labels of {images} ({patients}): "
    if area is None:
        return f"{text}its mean AUROC is {UNDEFINED}."
    defined = sum(value is not None for value in found["auroc"].values())
    bounds = found.get("intervals", {}).get("auroc_macro", {})
    low, high = (math.nan if (bound := bounds.get(end)) is None else bound for end in ("low", "high"))
    interval = f"{100 * LEVEL:g} % interval {interval_text(low, high)}"
    text += f"mean AUROC of {counted(defined, 'label')} {fixed(area)}, {interval}. "
    enough = rows["patient_id"].nunique() >= FEWEST_PATIENTS
    if enough and low > 0.5:
        return f"{text}That is more than chance (0.50)."
    return text + (
        "That is less than chance (0.50)."
        if enough and high < 0.5
        else "That it is more than chance (0.50) is not shown."
    )


def _against_constant(rows: pd.DataFrame) -> str:
    """Whether the model is right more often than the constant answer that is right most often."""
    frequent = str(rows["label"].value_counts().idxmax())
    constant = rows["label"] == frequent
    better = (rows["predicted"] == rows["label"]).astype(float) - constant
    found = patient_bootstrap(better, rows["patient_id"], level=LEVEL, share=False)
    answer = f"always answering “{frequent}” ({fixed(constant.mean())})"
    bounds = f"difference {fixed(found.estimate)}, interval {interval_text(found.low, found.high)}"
    enough = found.patients >= FEWEST_PATIENTS
    if enough and found.low > 0:
        return f"That is more than {answer}: {bounds}."
    if enough and found.high < 0:
        return f"That is less than {answer}: {bounds}."
    return f"That it does better than {answer} is not shown: {bounds}."


def findings(run: Run, scores: pd.DataFrame, comparisons: pd.DataFrame, pairs: pd.DataFrame) -> list[Finding]:
    """For each model and metric of a compared category, how the explainers fare, in the recipe's order."""
    found = []
    for model in run.models:
        for metric in filter(lambda name: is_compared(run, name), run.metrics):
            mine, against, between = (
                frame[(frame["model"] == model) & (frame["metric"] == metric)] for frame in (scores, comparisons, pairs)
            )
            parts: dict[str, list[str]] = {part: [] for part in PARTS}
            for method, verdicts in against.groupby("method", sort=False)["verdict"]:
                parts[_part(set(verdicts))].append(str(method))
            sentence = _sentence(mine, against, between, higher=higher_is_better(run, metric))
            if mine["n"].sum() + mine["nan"].sum():
                found.append(Finding(model, metric, {part: tuple(names) for part, names in parts.items()}, sentence))
    return found


def _part(verdicts: set[str]) -> str:
    if verdicts == {"better"}:
        return "better"
    if verdicts == {"none"}:
        return "none"
    return "worse" if "worse" in verdicts else "open"


def _sentence(scores: pd.DataFrame, against: pd.DataFrame, pairs: pd.DataFrame, *, higher: bool) -> str:
    """The best explainer, which others it is shown to exceed, and which controls; of one model and metric."""
    explainers = scores[~scores["control"] & scores["estimate"].notna()]
    if not len(explainers):
        return "No explainer has a defined score."
    best = explainers[explainers["best"]].iloc[0]
    name, decimals = str(best["method"]), decimals_for((explainers["high"] - explainers["low"]) / 2)
    decimals = enough_decimals(best["estimate"], decimals)
    numbers = f"{fixed(best['estimate'], decimals)}, interval {interval_text(best['low'], best['high'], decimals)}"
    rest = [str(method) for method in explainers["method"] if method != name]
    unclear = [other for other in rest if not is_better(pairs, name, other, higher=higher)]
    text = f"Of the explainers {name} has the best mean ({numbers})"
    if rest:
        text += _against_others(rest, unclear)
    return f"{text}. {_against_controls(name, against)}".strip()


def _against_others(rest: list[str], unclear: list[str]) -> str:
    if not unclear:
        return ", better than every other"
    if len(unclear) <= FEW_NAMES:
        return f"; that it is better than {listed(unclear)} is not shown"
    if len(unclear) == len(rest):
        return f"; that it is better than any of the other {len(rest)} is not shown"
    shown = [other for other in rest if other not in unclear]
    return f"; it is better than {listed(shown)}, which is not shown of the other {len(unclear)}"


def is_better(pairs: pd.DataFrame, method: str, other: str, *, higher: bool) -> bool:
    """Whether `method` is shown to be better than `other`: by the corrected test and by the interval, in ten patients."""
    there = pairs[(pairs["method_a"] == method) & (pairs["method_b"] == other)]
    back = pairs[(pairs["method_a"] == other) & (pairs["method_b"] == method)]
    sign = 1 if higher else -1
    rows = [*((row, sign) for row in there.to_dict("records")), *((row, -sign) for row in back.to_dict("records"))]
    return any(is_shown(row) and way * row["difference"] > 0 for row, way in rows)


def is_shown(pair: Mapping[Any, Any]) -> bool:
    """Whether a pair of methods differs by Holm's correction and by its interval, with ten patients at least."""
    excludes_zero = pair["low"] > 0 or pair["high"] < 0
    return bool(pair["p_holm"] < ERROR and excludes_zero and pair["patients"] >= FEWEST_PATIENTS)


def _against_controls(best: str, against: pd.DataFrame) -> str:
    verdicts = dict(against.loc[against["method"] == best, ["control", "verdict"]].to_numpy())
    if not verdicts:
        return ""
    everywhere = against.groupby("control", sort=False)["verdict"].agg(lambda found: set(found) == {"worse"})
    winners = [str(control) for control in everywhere.index[everywhere]]
    if winners:
        return f"Every explainer is worse than {listed(winners)}."
    worse, unclear = (
        [c for c, said in verdicts.items() if (said == "worse") == lost and said != "better"] for lost in (True, False)
    )
    if worse:
        return f"It is worse than {listed(worse)}."
    if unclear:
        every = len(unclear) == len(verdicts) > FEW_NAMES
        return f"That it is better than {'any control' if every else listed(unclear)} is not shown."
    return f"It is better than {listed(verdicts)}."


def comparison_note(run: Run, comparisons: pd.DataFrame) -> str:
    """How the comparison was made; or that there was nothing to compare with."""
    controls = [method for method in run.methods if is_control(run, method)]
    if not controls and not len(comparisons):
        return "The run has no control explainer, so nothing here says whether a method does better than chance."
    if not len(comparisons):
        return "No score of an explainer can be compared with a control."
    few = int((comparisons["verdict"] == "few").sum())
    known = (
        f"Controls ({listed(controls)}) know nothing of the model." if controls else "The run has no control explainer."
    )
    sentences = [
        known,
        *_chance_sentences(comparisons),
        "A method counts as better or worse only where the interval of the mean difference on the same images excludes "
        f"zero; the intervals of one model and metric share {100 * ERROR:g} % error among them (Bonferroni).",
        f"Only metrics of {listed(COMPARED)} are compared: a map that ignores the image can well be robust or sparse.",
        "One explainer counts as better than another where Holm's correction over all pairs leaves p below "
        f"{ERROR:.2f} and the interval excludes zero.",
    ]
    if few:
        sentences.append(f"{counted(few, 'comparison')} with fewer than ten patients: none is claimed.")
    return " ".join(sentences)


def _chance_sentences(comparisons: pd.DataFrame) -> Iterator[str]:
    if (comparisons["control"] == CHANCE).any():
        yield "Where a metric has a chance level, the mean score of random maps on the same region, it counts as a control."


def caveats(run: Run, scores: pd.DataFrame, reductions: pd.DataFrame) -> list[str]:
    """What limits the numbers: an unfinished run, few patients, what was noticed in the data, gaps, options off default."""
    return [*_caveats(run, scores, reductions)]


def _caveats(run: Run, scores: pd.DataFrame, reductions: pd.DataFrame) -> Iterator[str]:
    if not run.complete:
        yield "The run is not finished: this report shows what is there so far."
    explained = run.samples[run.samples["sample_id"].isin(explained_samples(run))]
    patients = explained["patient_id"].nunique()
    if patients < FEW_PATIENTS:
        yield (
            f"{counted(len(explained), 'explained image')} of {counted(patients, 'patient')}: intervals from fewer than "
            f"{FEW_PATIENTS} patients are themselves uncertain, and too narrow where scores are very skewed."
        )
    if together := [metric for metric in run.metrics if compares_samples(run, metric)]:
        yield (
            f"{listed(together)} {'compares' if len(together) == 1 else 'compare'} the samples with each other, so that "
            "intervals over patients are only approximate there."
        )
    yield from run.data["notes"]
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


def _targets(run: Run) -> str:
    """What the maps explain, in words."""
    wanted = run.recipe.target
    if isinstance(wanted, str):
        return {"predicted": "the predicted class", "label": "the true class"}.get(wanted, f"“{wanted}”")
    return listed([f"“{name}”" for name in wanted])


def run_paragraph(run: Run) -> str:
    """What was run, in one paragraph."""
    recipe, samples = run.recipe, run.samples
    models = listed([f"{spec.name} ({spec.source})" for spec in recipe.models])
    patients = counted(samples["patient_id"].nunique(), "patient")
    return (
        f"Data set {run.data['name']}: {counted(len(samples), 'image')} of {patients} in "
        f"{counted(len(run.classes), 'class', 'classes')}, split by patient. {_explained_part(run)} "
        f"{counted(len(run.models), 'model')}, {models}; {counted(len(run.methods), 'explainer')} and "
        f"{counted(len(run.metrics), 'metric')}. The maps explain {_targets(run)}. Seed {recipe.seed}."
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
