"""MURA: radiographs of seven parts of the arm, each study called normal or abnormal.

Layout: https://stanfordmlgroup.github.io/competitions/mura/ and https://arxiv.org/abs/1712.06957; the files of version
1.1 as public code that reads it shows them: the folder `MURA-v1.1` with

    {train,valid}_image_paths.csv       no header; a row an image: its path, which begins with MURA-v1.1/
    {train,valid}_labeled_studies.csv   no header; a row a study: its folder, which ends in /, and 1 (abnormal) or 0
    {train,valid}/XR_<part>/patient<number>/study<number>_{positive,negative}/image<number>.png

The official test set is not given out.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from heatproof.checks import check_choice
from heatproof.datasets.adapters.listing import stem, unexpected
from heatproof.datasets.adapters.official import region_rows
from heatproof.datasets.adapters.registry import Found, Problem, adapter, not_there
from heatproof.datasets.adapters.rois import CROPPED, read_rois
from heatproof.datasets.cells import rows_of, some
from heatproof.datasets.labels import LabelForm
from heatproof.errors import InputError, near_names

_TOP = "MURA-v1.1"
_SPLITS = ("train", "valid")
_PARTS = ("elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist")
_FOLDERS = tuple(f"XR_{part.upper()}" for part in _PARTS)
_SIGN_OF = {"0": "negative", "1": "positive"}
_IMAGE = (
    r"^(?P<top>[^/]+)/(?P<study>(?P<place>train|valid)/XR_(?P<body_part>[A-Z]+)/(?P<patient_id>patient\d+)/"
    r"(?P<number>study\d+)_(?P<sign>positive|negative))/(?P<file>[^/]+)$"
)


@adapter(
    "mura",
    title="MURA (version 1.1)",
    licence="Stanford University's research use agreement: for personal, non-commercial research; not to be passed on.",
    home="https://stanfordmlgroup.github.io/competitions/mura/",
    paper="rajpurkar2018mura",
)
def mura(
    folder: Path, *, body_parts: Sequence[str] | None = None, valid: str = "val", rois: str | None = None
) -> Found:
    """Two classes, `negative` (normal) and `positive` (abnormal), of the study; region `roi` of Chung et al.

    Args:
        folder: `MURA-v1.1` or the one that holds it.
        body_parts: of elbow, finger, forearm, hand, humerus, shoulder and wrist; by default all.
        valid: what the official validation set counts as, `val` or, as the official test set is not given out, `test`.
        rois: the folder of the masks of Chung et al. for this data set, carried back to the stored images. Their names
            tell patient, study and image of the validation set, but not the body part.

    Raises:
        InputError: unknown body part, another word for `valid`, no such folder, an unreadable table.
    """
    check_choice("valid", valid, ("val", "test"))
    for part in body_parts or ():
        if part not in _PARTS:
            raise InputError(f"body_parts: unknown part {part!r}. {near_names(str(part), _PARTS)}")
    within = f"{_TOP}/" if (folder / _TOP).is_dir() else ""
    tables = [f"{within}{split}_{what}.csv" for split in _SPLITS for what in ("image_paths", "labeled_studies")]
    missing = [name for name in tables if not (folder / name).is_file()]
    if missing:
        text = f"Missing tables: {', '.join(missing)}. Give the folder {_TOP} that holds them, or the one about it."
        return Found(samples=pd.DataFrame(columns=["sample_id"]), problems=[Problem(text)])
    images, problems = _images([_rows(folder / name, ["path"]) for name in tables[::2]])
    for split in _SPLITS:
        problems += unexpected(folder, f"{within}{split}", _FOLDERS)
    images = images[images["body_part"].isin(body_parts or _PARTS)].reset_index(drop=True)
    problems += _labels_agree(images, pd.concat([_rows(folder / name, ["study", "label"]) for name in tables[1::2]]))
    samples = _samples(images, within, valid)
    problems += not_there(samples["image"].tolist(), folder, samples["sample_id"].tolist(), "images")
    regions, notes = region_rows([], None, "mask", []), ["The labels are those of studies, not of single images."]
    if rois is not None:
        shown = images["place"] == "valid"
        names = images["patient_id"] + "_" + images["number"] + "_" + images["sign"] + "_" + images["file"].map(stem)
        regions, found, unclear = read_rois(rois, samples[shown], names[shown], CROPPED)
        problems, notes = [*problems, *found], [*notes, *unclear]
    return Found(samples, LabelForm(classes=("negative", "positive")), regions, notes, problems)


def _rows(path: Path, names: Sequence[str]) -> pd.DataFrame:
    """A table without header, every cell as text; other cells than the named ones are an error."""
    try:
        table = pd.read_csv(path, header=None, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path}: cannot be read as a CSV table ({error}).") from error
    if table.shape[1] != len(names):
        raise InputError(
            f"{path}: {len(names)} cells a row are expected ({', '.join(names)}, no header), got {table.shape[1]}. Use the "
            f"table of {_TOP} as it is given out."
        )
    return table.set_axis(list(names), axis=1)


def _images(tables: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, list[Problem]]:
    """What the paths of the images say, a row each, and a problem for those that say something else."""
    paths = pd.concat(tables, ignore_index=True)["path"]
    images = paths.str.extract(_IMAGE)
    images["body_part"] = images["body_part"].str.lower()
    odd = images["top"].isna() | ~images["body_part"].isin(_PARTS)
    prefix = ~odd & (images["top"] != _TOP)
    problems = []
    for wrong, expected in (
        (odd, f"{_TOP}/{{train,valid}}/XR_<part>/patient<number>/study<number>_{{positive,negative}}/<image>"),
        (prefix, f"paths that begin with {_TOP}/"),
    ):
        if wrong.any():
            first = paths[wrong].iloc[0]
            text = f"Image paths of another form in {rows_of(wrong)} (rows of both tables together): {first!r}"
            problems.append(Problem(f"{text}; expected are {expected}."))
    return images[~odd & ~prefix].reset_index(drop=True), problems


def _labels_agree(images: pd.DataFrame, studies: pd.DataFrame) -> list[Problem]:
    """Problems for images whose study has no label, or another one than its folder says."""
    said = dict(zip(studies["study"].str.strip("/"), studies["label"].map(_SIGN_OF), strict=True))
    found = (f"{_TOP}/" + images["study"]).map(said)
    problems = []
    for wrong, what in (
        (found.isna(), "studies that the tables of labels do not name, or name with a label other than 0 and 1"),
        (found.notna() & (found != images["sign"]), "studies whose label in the table is not that of their folder"),
    ):
        if wrong.any():
            names = images["study"][wrong].unique()
            text = f"{len(names):,} {what}: {some(names, len(names))}."
            problems.append(Problem(text, frozenset(_ids(images[wrong]))))
    return problems


def _ids(images: pd.DataFrame) -> "pd.Series[str]":
    return images["study"] + "/" + images["file"].map(stem)


def _samples(images: pd.DataFrame, within: str, valid: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "sample_id": _ids(images),
            "image": within + images["study"] + "/" + images["file"],
            "label": images["sign"],
            "patient_id": images["patient_id"],
            "split": images["place"].map({"train": "train", "valid": valid}),
            "study": images["study"],
            "body_part": images["body_part"],
        },
        dtype=object,
    )
