"""What a model says of an image and what is true of it, the same way for one class an image and for several labels.

A case is one image under one model and one explained class. Where an image has one class, a prediction is correct if it
is that class. Where it has several labels, the question is asked of the explained class alone: does it apply, and does
the model say so (p ≥ 0.5)? A label that nobody knows leaves it open.
"""

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from heatproof.study.store import Run

YES, NO, UNKNOWN = "yes", "no", "unknown"
SEPARATOR = "|"  # between the labels of an image
Row = Mapping[Any, Any]


def predictions_of(run: Run, model: str) -> pd.DataFrame:
    """The model's rows of the predictions."""
    return run.predictions[run.predictions["model"] == model].reset_index(drop=True)


def on_test_images(run: Run, model: str) -> pd.DataFrame:
    """The model's predictions on the test images."""
    rows = predictions_of(run, model)
    return rows[rows["split"] == "test"].reset_index(drop=True)


def performance_of(run: Run, model: str) -> Mapping[str, Any] | None:
    """`Run.performance`, or None where the study has not come so far."""
    there = (run.path / "models" / run.recipe.model(model).name / "performance.json").is_file()
    return run.performance(model) if there else None


def is_multilabel(rows: pd.DataFrame) -> bool:
    """Whether a model's predictions are of several labels an image."""
    return "labels" in rows.columns and bool(rows["labels"].notna().any())


def names_in(text: str) -> list[str]:
    """The class names in a text of labels.

    >>> names_in("edema|effusion"), names_in("")
    (['edema', 'effusion'], [])
    """
    return [name for name in text.split(SEPARATOR) if name]


def truth_of(row: Row, target: str, *, multilabel: bool) -> str:
    """Whether the class `target` applies to the image: `yes`, `no` or `unknown`."""
    if not multilabel:
        return YES if row["label"] == target else NO
    value = float(row[f"label_{target}"])
    return UNKNOWN if math.isnan(value) else YES if value == 1 else NO


def outcome_of(row: Row, target: str, *, multilabel: bool) -> str:
    """Whether the prediction is correct: `yes`, `no` or `unknown`.

    >>> outcome_of({"label_edema": 1.0, "p_edema": 0.5}, "edema", multilabel=True)
    'yes'
    """
    if not multilabel:
        return YES if row["predicted"] == row["label"] else NO
    truth = truth_of(row, target, multilabel=True)
    return truth if truth == UNKNOWN else YES if (truth == YES) == (float(row[f"p_{target}"]) >= 0.5) else NO


def explained_cases(run: Run, model: str) -> list[tuple[str, str | None]]:
    """(sample id, explained class) of every case, in the order of the data; None where an image has no map at all."""
    scored = run.scores.loc[run.scores["model"] == model, ["sample_id", "target"]].drop_duplicates()
    seen = {(str(sample), str(target)) for sample, target in zip(scored["sample_id"], scored["target"], strict=True)}
    seen |= {(s, t) for method in run.methods for s in run.cases(model) for t in run.targets(model, method, s)}
    cases: list[tuple[str, str | None]] = []
    for sample in run.cases(model):
        cases += [(sample, name) for name in run.classes if (sample, name) in seen] or [(sample, None)]
    return cases
