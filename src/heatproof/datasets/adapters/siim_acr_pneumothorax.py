"""SIIM-ACR Pneumothorax Segmentation, stage 1 (`zawacki2019siim`): radiographs of 1024 x 1024 pixels with run lengths.

Layout: `train-rle.csv` (`ImageId,EncodedPixels`, a blank before the second name) and
`dicom-images-train/<study>/<series>/<ImageId>.dcm`, as the challenge's page
(https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation/data) lists them; its text is quoted in
https://github.com/prasadsawant5/kaggle-pneumothorax. An image has a row for each of its masks, or the one row `-1`. A mask
is pairs of numbers, how many pixels to pass over since the end of the last run and how many the run has, which count down
the columns from left to right. The images of `dicom-images-test` have no annotation in this stage and are not read.
"""

import json
from pathlib import Path

import pandas as pd

from heatproof.datasets.adapters.official import folder_with, of_unknown_images, read_official, region_rows
from heatproof.datasets.adapters.registry import Found, Problem, adapter
from heatproof.datasets.cells import some
from heatproof.datasets.labels import LabelForm
from heatproof.errors import InputError

_SIDE = 1024  # of every image, in pixels
_NONE = "-1"
_LABELS = {True: "pneumothorax", False: "no pneumothorax"}
_TABLE, _IMAGES = "train-rle.csv", "dicom-images-train"


@adapter(
    "siim_acr_pneumothorax",
    title="SIIM-ACR Pneumothorax Segmentation (stage 1)",
    licence="Under the rules of the Kaggle competition.",
    home="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation",
    paper="zawacki2019siim",
)
def siim_acr_pneumothorax(folder: Path) -> Found:
    """Frontal chest radiographs with the pixels of each pneumothorax.

    One label an image: `pneumothorax` or `no pneumothorax`. Sample ids are the `ImageId`s. The masks are regions `lesion`
    of the label `pneumothorax`; `-1` is annotated as empty. There are no official splits of the annotated images.

    Args:
        folder: the one with `train-rle.csv`, or the one that holds it as `siim`.

    Raises:
        InputError: the table is missing or otherwise than described, or there is no folder of images.
    """
    place = folder_with(folder, _TABLE, ("siim",))
    table = read_official(folder / place / _TABLE, ("ImageId", "EncodedPixels"))
    pixels = table["EncodedPixels"].fillna("").str.strip()
    lies_in = _listed(folder / place)
    runs = [_column_runs(text) for text in pixels]
    regions = region_rows(table["ImageId"], _LABELS[True], "rle", [text or "" for text in runs])
    images = f"{place}{_IMAGES}/"
    ids = table["ImageId"].drop_duplicates()
    there = ids[ids.isin(list(lies_in))]
    positive = set(table["ImageId"][pixels != _NONE])
    samples = pd.DataFrame(
        {
            "sample_id": there.to_list(),
            "image": [images + lies_in[name] for name in there],
            "label": [_LABELS[name in positive] for name in there],
        }
    )
    problems = [
        *_named(table["ImageId"][[text is None for text in runs]], f"have no run lengths of {_SIDE} x {_SIDE} pixels"),
        *_named(table["ImageId"][(pixels == _NONE) & table["ImageId"].isin(positive)], f"have a mask and also {_NONE}"),
        *of_unknown_images(regions, samples["sample_id"], _TABLE, f"{images}*/*/*.dcm"),
    ]
    notes = ["No official splits.", "The PatientID of the files' headers is not read."]
    unread = sorted(set(lies_in) - set(ids))
    if unread:
        notes.append(f"{len(unread):,} images without a row in {_TABLE} are left out: {some(unread, len(unread))}.")
    return Found(samples, LabelForm(classes=tuple(reversed(_LABELS.values()))), regions, notes, problems)


def _listed(place: Path) -> dict[str, str]:
    """Where in the folder of images each one lies, by its name without suffix."""
    if not (place / _IMAGES).is_dir():
        raise InputError(f"{_IMAGES} is expected in {place} and not there. Is the download complete?")
    paths = sorted((place / _IMAGES).glob("*/*/*.dcm"))
    return {path.name.removesuffix(".dcm"): path.relative_to(place / _IMAGES).as_posix() for path in paths}


def _column_runs(text: str) -> str | None:
    """COCO's run lengths of a mask, "" of no mask; None where they are none, or do not fit.

    >>> _column_runs("5 2 1020 4")
    '{"size": [1024, 1024], "counts": [5, 2, 1020, 4, 1047545]}'
    """
    if text == _NONE:
        return ""
    runs = text.split()
    if not runs or len(runs) % 2 or not all(run.isdecimal() for run in runs):
        return None
    counts = [int(run) for run in runs]
    rest = _SIDE**2 - sum(counts)
    return json.dumps({"size": [_SIDE, _SIDE], "counts": [*counts, rest]}) if rest >= 0 else None


def _named(ids: "pd.Series[str]", text: str) -> list[Problem]:
    found = sorted(set(ids))
    message = f"{len(found):,} images of {_TABLE} {text}: {some(found, len(found))}."
    return [Problem(message, frozenset(found))] if found else []
