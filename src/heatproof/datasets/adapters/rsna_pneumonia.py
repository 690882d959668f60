"""The RSNA Pneumonia Detection Challenge of 2018, stage 2 (`shih2019augmenting`): boxes about opacities of the lung.

Layout: https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data lists `stage_2_train_labels.csv` (`patientId, x, y,
width, height, Target`: a row a box, x and y its upper left corner; without box where `Target` is 0),
`stage_2_detailed_class_info.csv` (`patientId, class`) and `stage_2_train_images/<patientId>.dcm`. That page asks for an
account; the columns are those that readers of the challenge quote, such as
https://ogre51.medium.com/exploratory-data-analysis-on-rsna-pneumonia-dataset-de1b440c8d93. The images of the test have no
labels there and are not read.
"""

from pathlib import Path

import pandas as pd

from heatproof.checks import check_choice
from heatproof.datasets.adapters.official import box_texts, numbers, read_official, region_rows
from heatproof.datasets.adapters.registry import Found, Problem, adapter, not_there
from heatproof.datasets.cells import some
from heatproof.datasets.labels import LabelForm
from heatproof.errors import InputError

_IMAGES = "stage_2_train_images"
_LABELS, _DETAILS = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"
_TARGETS = {"0": "no pneumonia", "1": "pneumonia"}
_OPACITY = "Lung Opacity"
_CLASSES = {
    "target": tuple(_TARGETS.values()),
    "class": ("Normal", "No Lung Opacity / Not Normal", _OPACITY),
}


@adapter(
    "rsna_pneumonia",
    title="RSNA Pneumonia Detection Challenge 2018 (stage 2)",
    licence="Academic research, education and other purposes, commercial ones too, with RSNA's terms of attribution.",
    home="https://www.rsna.org/education/ai-resources-and-training/ai-image-challenge/rsna-pneumonia-detection-challenge-2018",
    paper="shih2019augmenting",
)
def rsna_pneumonia(folder: Path, *, label: str = "target") -> Found:
    """Frontal chest radiographs of the NIH, read again by radiologists who drew boxes about opacities of the lung.

    One label an image. Sample ids are the `patientId`s. The boxes are regions `lesion` of the positive label; an image
    without them is annotated as empty. There is no official split of the labelled images.

    Args:
        folder: the one with the tables.
        label: `target`, pneumonia or not, or `class`, the three of the detailed information (`Normal`, `No Lung Opacity /
            Not Normal`, `Lung Opacity`).

    Raises:
        InputError: a table is missing or otherwise than described.
    """
    check_choice("label", label, tuple(_CLASSES))
    path = folder / _LABELS
    table = read_official(path, ("patientId", "x", "y", "width", "height", "Target"))
    details = read_official(folder / _DETAILS, ("patientId", "class"))
    _refuse_others(table["Target"], tuple(_TARGETS), path)
    _refuse_others(details["class"], _CLASSES["class"], folder / _DETAILS)
    first = table.drop_duplicates("patientId").reset_index(drop=True)
    ids = first["patientId"]
    said = details.drop_duplicates("patientId").set_index("patientId")["class"].reindex(ids).reset_index(drop=True)
    labels = first["Target"].map(_TARGETS) if label == "target" else said.fillna("")
    samples = pd.DataFrame(
        {"sample_id": ids, "image": f"{_IMAGES}/" + ids + ".dcm", "patient_id": ids, "label": labels}
    )
    regions = _boxes(table, path, _CLASSES[label][-1])
    problems = [
        *_disagreements(table, details, first, said),
        *_without_box(first[first["Target"] == "1"], regions),
        *not_there(samples["image"].tolist(), folder, ids.tolist(), "images"),
    ]
    notes = [
        "No official splits.",
        "Every image has a patientId of its own, also where several are of one patient of the NIH: a split may part "
        "them.",
    ]
    return Found(samples, LabelForm(classes=_CLASSES[label]), regions, notes, problems)


def _refuse_others(column: "pd.Series[str]", allowed: tuple[str, ...], path: Path) -> None:
    others = sorted(map(repr, set(column) - set(allowed)))
    if others:
        raise InputError(
            f"{path}: the column {column.name!r} holds {some(others, len(others))}. Expected are {', '.join(allowed)}."
        )


def _boxes(table: pd.DataFrame, path: Path, label: str) -> pd.DataFrame:
    x, y, width, height = numbers(table, ("x", "y", "width", "height"), path)
    texts = pd.Series(box_texts(x, y, x + width, y + height), index=table.index, dtype=object)
    empty = x.isna() | y.isna() | width.isna() | height.isna()
    return region_rows(table["patientId"], label, "box", texts.mask(empty, ""))


def _without_box(positive: pd.DataFrame, regions: pd.DataFrame) -> list[Problem]:
    lacking = sorted(set(positive["patientId"]) - set(regions["sample_id"][regions["data"] != ""]))
    if not lacking:
        return []
    text = f"{len(lacking):,} images of {_LABELS} have Target 1 and no box: {some(lacking, len(lacking))}."
    return [Problem(text, frozenset(lacking))]


def _disagreements(
    table: pd.DataFrame, details: pd.DataFrame, first: pd.DataFrame, said: "pd.Series[str]"
) -> list[Problem]:
    """Images about which the rows or the tables do not agree."""
    several = [
        name
        for rows, column in ((table, "Target"), (details, "class"))
        for name, count in rows.groupby("patientId")[column].nunique().items()
        if count > 1
    ]
    unlike = first["patientId"][said.notna() & ((first["Target"] == "1") != (said == _OPACITY))]
    only = set(details["patientId"]) - set(table["patientId"])
    problems = []
    for names, text in (
        (set(several), "have rows that contradict one another"),
        (set(unlike), f"are {_OPACITY!r} in one table and not in the other ({_LABELS}, {_DETAILS})"),
        (set(first["patientId"][said.isna()]), f"are missing in {_DETAILS}"),
        (only, f"are in {_DETAILS} but not in {_LABELS}"),
    ):
        found = sorted(map(str, names))
        if found:
            problems.append(Problem(f"{len(found):,} images {text}: {some(found, len(found))}.", frozenset(found)))
    return problems
