"""A stand-in of CheXpert v1.0, with the release of CheXlocalize in `chexlocalize/`.

Layout: the README and the sample of https://github.com/rajpurkarlab/cheXlocalize. `CheXpert/val_labels.csv` of the release
is not written, as its paths are not described there; nor are its heatmaps and the readings of the human benchmark.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage
from skimage.measure import find_contours

from heatproof.datasets.phantom.anatomy import Mask
from heatproof.datasets.standins.chest_pictures import column_runs, draw_chest, findings_of, write_picture
from heatproof.datasets.standins.registry import standin

COLUMNS = (
    "No Finding|Enlarged Cardiomediastinum|Cardiomegaly|Lung Opacity|Lung Lesion|Edema|Consolidation|Pneumonia|Atelectasis|"
    "Pneumothorax|Pleural Effusion|Pleural Other|Fracture|Support Devices"
).split("|")
TASKS = (
    "Enlarged Cardiomediastinum|Cardiomegaly|Lung Lesion|Airspace Opacity|Edema|Consolidation|Atelectasis|Pneumothorax|"
    "Pleural Effusion|Support Devices"
).split("|")
FIRST = {"train": 1, "valid": 64541, "test": 64741}  # the number of each part's first patient

Rows = list[dict[str, Any]]


@standin("chexpert")
def write_chexpert(folder: Path, *, patients: int, size: int, seed: int) -> None:
    """`CheXpert-v1.0/` and `chexlocalize/`; of three patients or more a fifth each in valid and test.

    A lateral view is one more frontal picture with the same findings, as the phantom has no other. Where train says
    nothing of a finding, cells are empty, 0 or -1 in turn.
    """
    release = folder / "chexlocalize"
    tables: dict[str, Rows] = {"train": [], "valid": [], "test": []}
    segmented: dict[str, dict[str, dict[str, Mask]]] = {"train": {}, "valid": {}, "test": {}}
    for index, (part, name) in enumerate(_patients(patients)):
        for number, (study, view, side) in enumerate(_views(part, index)):
            picture = draw_chest(index, number, findings_of(index, study - 1), size, seed)
            masks = {label: picture.lesions[finding] for label, finding in _present(picture.lesions, index).items()}
            file = f"{name}/study{study}/view{view}_{side}.jpg"
            tables[part].append(_row(part, file, side, masks, index))
            for place in _places(folder, release, part):
                write_picture(place / file, picture.pixels)
            if masks:
                segmented[part][f"{name}_study{study}_view{view}_{side}"] = masks
    for part in ("train", "valid"):
        pd.DataFrame(tables[part]).to_csv(folder / f"CheXpert-v1.0/{part}.csv", index=False)
    pd.DataFrame(tables["test"]).to_csv(release / "CheXpert/test_labels.csv", index=False)
    (release / "CheXlocalize").mkdir(parents=True)
    for part, short in (("valid", "val"), ("test", "test")):
        for what, texts in (("segmentations", _segmentations), ("annotations", _annotations)):
            text = json.dumps({name: texts(masks, size) for name, masks in segmented[part].items()})
            (release / f"CheXlocalize/gt_{what}_{short}.json").write_text(text, encoding="utf-8")


def _patients(count: int) -> list[tuple[str, str]]:
    """The part that each patient is in, and the patient's name there."""
    held_out = max(1, count // 5)
    counts = {"train": count - 2 * held_out, "valid": held_out, "test": held_out}
    return [(part, f"patient{FIRST[part] + n:05d}") for part, size in counts.items() for n in range(size)]


def _views(part: str, index: int) -> list[tuple[int, int, str]]:
    """Study, view and side of a patient's images."""
    views = [(1, 1, "frontal")]
    if index % 3 == 0:
        views.append((1, 2, "lateral"))
    if part == "train" and index % 2:
        views.append((2, 1, "frontal"))
    return views


def _places(folder: Path, release: Path, part: str) -> list[Path]:
    """The folders of a part's images."""
    return {
        "train": [folder / "CheXpert-v1.0/train"],
        "valid": [folder / "CheXpert-v1.0/valid", release / "CheXpert/val"],
        "test": [release / "CheXpert/test"],
    }[part]


def _present(shown: Mapping[str, Mask], index: int) -> dict[str, str]:
    """The observations of an image, each with the finding of the phantom that stands for it."""
    turn = index // 6
    observations = {
        "opacity": ("Lung Opacity", ("Edema", "Consolidation", "Pneumonia", "Atelectasis")[turn % 4]),
        "nodule": ("Lung Lesion", "Fracture") if turn % 2 else ("Lung Lesion",),
        "effusion": ("Pleural Effusion",) if turn % 2 else ("Pleural Effusion", "Pleural Other"),
        "cardiomegaly": ("Cardiomegaly", "Enlarged Cardiomediastinum"),
        "pneumothorax": ("Pneumothorax", "Support Devices"),
    }
    return {label: finding for finding in shown for label in observations[finding]}


def _row(part: str, file: str, side: str, masks: Mapping[str, Mask], index: int) -> dict[str, Any]:
    present = set(masks) or {"No Finding"}
    if part == "test":
        return {"Path": f"test/{file}", **{label: int(label in present) for label in COLUMNS}}
    absent = ("", "0.0", "", "-1.0") if part == "train" else ("0.0",)
    cells = {
        label: "1.0" if label in present else absent[(index + place) % len(absent)]
        for place, label in enumerate(COLUMNS)
    }
    view = {"Frontal/Lateral": side.capitalize(), "AP/PA": "AP" if side == "frontal" else ""}
    person = {"Sex": ("Female", "Male")[index % 2], "Age": 30 + index % 50}
    return {"Path": f"CheXpert-v1.0/{part}/{file}", **person, **view, **cells}


def _segmentations(masks: Mapping[str, Mask], size: int) -> dict[str, Any]:
    """Compressed run lengths of all ten tasks, those of pixels that are not there included."""
    nothing = np.zeros((size, size), dtype=bool)
    filled = {task: ndimage.binary_fill_holes(masks.get(_label(task), nothing)) for task in TASKS}
    return {task: {"size": [size, size], "counts": _compressed(column_runs(mask))} for task, mask in filled.items()}


def _annotations(masks: Mapping[str, Mask], size: int) -> dict[str, Any]:
    """Contours of the tasks that are positive."""
    positive = {task: _contours(masks[_label(task)]) for task in TASKS if _label(task) in masks}
    return {"img_size": [size, size], **positive}


def _label(task: str) -> str:
    return "Lung Opacity" if task == "Airspace Opacity" else task


def _contours(mask: Mask) -> list[list[list[float]]]:
    """Lines between the pixels of a mask, its holes filled, and those outside: corners [x, y], a pixel being 1 wide."""
    framed = np.pad(ndimage.binary_fill_holes(mask), 1).astype(np.float64)
    # a contour counts pixels from the centre of the first, which the frame has moved by one
    return [[[float(x) - 0.5, float(y) - 0.5] for y, x in contour] for contour in find_contours(framed, 0.5)]


def _compressed(counts: list[int]) -> str:
    """COCO's text of run lengths: five bits a group, the sixth says that more follow; from the fourth on differences."""
    text = ""
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        more = True
        while more:
            group, value = value & 31, value >> 5
            more = value != (-1 if group & 16 else 0)  # what is left is more than the sign of this group
            text += chr(48 + group + 32 * more)
    return text
