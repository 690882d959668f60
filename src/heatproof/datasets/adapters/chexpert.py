"""CheXpert v1.0 (`irvin2019chexpert`), full size or small, and the segmentations of CheXlocalize.

Layout: https://aimi.stanford.edu/datasets/chexpert-chest-x-rays hands out a folder with `train.csv`, `valid.csv`,
`train/patient00001/study1/view1_frontal.jpg` and so on. The tables name an image `CheXpert-v1.0/train/...`, those of the
small version `CheXpert-v1.0-small/train/...`; https://github.com/rajpurkarlab/cheXlocalize/tree/master/sample shows their
columns. The README there describes the release of CheXlocalize (`saporta2022benchmarking`): `CheXpert/{val,test}/...`,
`CheXpert/test_labels.csv` and `CheXlocalize/gt_{segmentations,annotations}_{val,test}.json`.

What it leaves out is how `test_labels.csv` writes its paths. Who works with it reads `test/patient64741/study1/...`; in the
labels of https://github.com/rajpurkarlab/cheXpert-test-set-labels `CheXpert-v1.0/` stands before that. Both are read.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from heatproof.checks import check_choice
from heatproof.datasets.adapters.official import folder_with, of_unknown_images, read_official, region_rows
from heatproof.datasets.adapters.registry import Found, Problem, adapter, not_there
from heatproof.datasets.cells import some
from heatproof.datasets.labels import LabelForm
from heatproof.errors import InputError

OBSERVATIONS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other"),
    *("Fracture", "Support Devices"),
)
_FULL, _SMALL = "CheXpert-v1.0", "CheXpert-v1.0-small"
_SEGMENTED = (  # by CheXlocalize, in its own names
    *("Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Lesion", "Airspace Opacity", "Edema", "Consolidation"),
    *("Atelectasis", "Pneumothorax", "Pleural Effusion", "Support Devices"),
)
_OBSERVATION = {"Airspace Opacity": "Lung Opacity"}  # what CheXpert calls it
_SEGMENTATIONS = {"rle": "gt_segmentations", "polygon": "gt_annotations"}
_PATH = (
    r"^(?:(?P<version>[^/]+)/)?(?P<part>train|valid|test)/"
    r"(?P<id>(?P<patient>patient\d+)/study\d+/view\d+_(?P<view>frontal|lateral))\.jpg$"
)


@adapter(
    "chexpert",
    title="CheXpert v1.0 (full size or small)",
    licence="Stanford University Dataset Research Use Agreement: non-commercial research, after registration.",
    home="https://aimi.stanford.edu/datasets/chexpert-chest-x-rays",
    paper="irvin2019chexpert",
)
def chexpert(
    folder: Path,
    *,
    view: str = "all",
    classes: Sequence[str] | None = None,
    uncertain: str | Mapping[str, str] = "ignore",
    blank: str | Mapping[str, str] = "zero",
    chexlocalize: str | Path | None = None,
    segmentations: str = "rle",
) -> Found:
    """Chest radiographs with fourteen observations; with CheXlocalize the test split, and where ten of them are seen.

    Sample ids are `patient00001/study1/view1_frontal`. The splits are the official ones: `train.csv` is `train`,
    `valid.csv` is `val`, and `test` comes with CheXlocalize. All regions are called `lesion`, `Support Devices` as well,
    and have their observation as label; an observation that was not segmented in an image of CheXlocalize is annotated as
    empty there, as in its authors' `annotation_to_segmentation.py`.

    Args:
        folder: the one with `train.csv`, or its parent.
        view: `frontal`, `lateral` or `all` images, by their file names.
        classes: some of the fourteen observations, in the order of the model's outputs; by default all.
        uncertain: what -1 counts as, `zero`, `one` or `ignore`, for all observations or observation -> policy.
        blank: what an empty cell counts as (the report does not mention the observation), `zero` or `ignore`.
        chexlocalize: the folder of the release of CheXlocalize, which holds `CheXpert/` and `CheXlocalize/`. Its
            segmentations fit images of full size: where `folder` is the small version, the validation images are the
            release's as well.
        segmentations: of CheXlocalize, `rle` (pixels) or `polygon` (the contours as drawn, which hold the pixels whose
            centre lies inside; the authors' pixels include the outline).

    Raises:
        InputError: other tables, columns or paths than those described, an option out of range.
    """
    check_choice("view", view, ("all", "frontal", "lateral"))
    check_choice("segmentations", segmentations, tuple(_SEGMENTATIONS))
    place = _place(folder)
    train, valid = _read_part(folder / place, "train"), _read_part(folder / place, "valid")
    version = _one_version(train, valid, folder / place)
    parts = {"train": _named(train, f"{place}train", "train"), "val": _named(valid, f"{place}valid", "val")}
    notes = ["The labels of train were extracted from reports by rules; those of val and test are by radiologists."]
    problems: list[Problem] = []
    regions = [region_rows([], None, "rle", [])]
    if chexlocalize is None:
        notes.append("No test split and no regions: both come with CheXlocalize.")
    else:
        release = _release(Path(chexlocalize))
        parts["test"] = _named(_read_test(release), f"{release}/CheXpert/test", "test")
        if version == _SMALL:
            parts["val"] = _named(valid, f"{release}/CheXpert/val", "val")
            notes.append("The images of val are those of CheXlocalize, whose segmentations fit the full size.")
        for split in ("val", "test"):
            file = release / f"CheXlocalize/{_SEGMENTATIONS[segmentations]}_{split}.json"
            regions.append(_segmented(file, segmentations))
            problems += of_unknown_images(regions[-1], parts[split]["sample_id"], file.name, f"the table of {split}")
    samples, annotated = pd.concat(list(parts.values()), ignore_index=True), pd.concat(regions, ignore_index=True)
    if view != "all":
        samples = samples[samples["view"] == view].reset_index(drop=True)
        annotated = annotated[annotated["sample_id"].str.endswith(view)]
    problems += not_there(samples["image"].tolist(), folder, samples["sample_id"].tolist(), "images")
    form = LabelForm(classes=classes, label_columns=list(OBSERVATIONS), uncertain=uncertain, blank=blank)
    return Found(samples, form, annotated, notes, problems)


def _place(folder: Path) -> str:
    """Where `train.csv` lies: "" or the sub-folder, with its slash."""
    batches = sorted(path.name for path in folder.glob(f"{_FULL} batch*"))
    if batches and not (folder / "train.csv").is_file():
        raise InputError(
            f"{folder} holds the download in its parts ({some(batches, len(batches))}). Expected is one folder with "
            "train.csv, valid.csv, train/patient00001/... and valid/patient64541/...: move what the parts hold together."
        )
    return folder_with(folder, "train.csv", (_FULL, _SMALL))


def _read_part(place: Path, part: str) -> pd.DataFrame:
    """`train.csv` or `valid.csv`, and what its paths say: `version`, `part`, `id`, `patient` and `view`."""
    path = place / f"{part}.csv"
    table = _with_paths(read_official(path, ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *OBSERVATIONS)))
    right = table["version"].isin([_FULL, _SMALL]) & (table["part"] == part)
    _refuse_paths(table["Path"][~right], len(table), path, f"{_FULL}/{part}/patient00001/study1/view1_frontal.jpg")
    return table


def _read_test(release: Path) -> pd.DataFrame:
    path = release / "CheXpert/test_labels.csv"
    table = _with_paths(read_official(path, ("Path", *OBSERVATIONS)))
    right = (table["version"].isna() | (table["version"] == _FULL)) & (table["part"] == "test")
    _refuse_paths(table["Path"][~right], len(table), path, "test/patient64741/study1/view1_frontal.jpg")
    return table


def _with_paths(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, table["Path"].str.extract(_PATH)], axis=1)


def _refuse_paths(wrong: "pd.Series[str]", count: int, path: Path, expected: str) -> None:
    if len(wrong):
        raise InputError(
            f"{path}: {len(wrong):,} of {count:,} paths do not read like {expected} (in the small version {_SMALL}/...): "
            f"{some(wrong, len(wrong))}. Use the table as it is given out; its folder may have any name."
        )


def _one_version(train: pd.DataFrame, valid: pd.DataFrame, place: Path) -> str:
    found = sorted({*train["version"], *valid["version"]})
    if len(found) > 1:
        raise InputError(
            f"{place}: train.csv and valid.csv name images of {' and of '.join(found)}. Use the tables of one version."
        )
    return str(found[0])


def _named(table: pd.DataFrame, place: str, split: str) -> pd.DataFrame:
    """The rows as samples of a split, whose images lie under `place`."""
    samples = table.drop(columns=["Path", "version", "part", "id", "patient"])
    images = place + "/" + table["id"] + ".jpg"
    return samples.assign(sample_id=table["id"], image=images, patient_id=table["patient"], split=split)


def _release(place: Path) -> Path:
    """The folder that holds `CheXpert/` and `CheXlocalize/`; its inner folder may be given for it."""
    place = place.absolute()
    for root in (place, place.parent):
        if (root / "CheXlocalize/gt_segmentations_val.json").is_file():
            return root
    raise InputError(
        f"chexlocalize: {place} does not hold CheXlocalize/gt_segmentations_val.json. Give the folder of the release, in "
        "which CheXpert/ and CheXlocalize/ lie."
    )


def _segmented(path: Path, kind: str) -> pd.DataFrame:
    """The regions of one file of CheXlocalize."""
    if not path.is_file():
        raise InputError(f"{path.name} is expected in {path.parent} and not there. Is the download complete?")
    text = _rle_text if kind == "rle" else _polygon_text
    try:
        rows = [
            (_id_of(name), _OBSERVATION.get(task, task), text(found, task))
            for name, found in json.loads(path.read_bytes()).items()
            for task in _SEGMENTED
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        expected = "run lengths with size and counts" if kind == "rle" else "contours of [x, y]"
        raise InputError(
            f"{path}: expected is an object by image (patient64541_study1_view1_frontal), which holds by observation "
            f"(Cardiomegaly) {expected}; another or a damaged file ({error!r})."
        ) from error
    ids, labels, data = ([row[place] for row in rows] for place in range(3))
    return region_rows(ids, labels, kind, data)


def _rle_text(found: Mapping[str, Any], task: str) -> str:
    return json.dumps({"size": found[task]["size"], "counts": found[task]["counts"]})


def _polygon_text(found: Mapping[str, Any], task: str) -> str:
    """Contours as COCO writes them; an observation that is left out was not segmented in this image."""
    contours = [[number for x, y in contour for number in (x, y)] for contour in found.get(task, [])]
    return json.dumps(contours) if contours else ""


def _id_of(name: str) -> str:
    """Our sample id of an image of CheXlocalize.

    >>> _id_of("patient64541_study1_view1_frontal")
    'patient64541/study1/view1_frontal'
    """
    return name.replace("_study", "/study").replace("_view", "/view")
