"""Duke-Breast-Cancer-MRI: slices of breast MRI with and without a tumour, as DICOM series or as ready PNG files.

Layout: https://www.cancerimagingarchive.net/collection/duke-breast-cancer-mri/ (10.7937/TCIA.e3sv-re93) with its tables
`Breast-Cancer-MRI-filepath_filename-mapping` (`original_path_and_filename`, `classic_path` and others; a row a file)
and `Annotation_Boxes` (`Patient ID`, `Start Row`, `End Row`, `Start Column`, `End Column`, `Start Slice`, `End Slice`), both
given out as Excel files. How slices become samples: the maintainers' tutorial,
https://sites.duke.edu/mazurowski/2022/07/13/breast-mri-cancer-detect-tutorial-part1/, whose code also says that some files
bear a number of one digit less than the table says, and that it writes `{pos,neg}/<file>-<patient's number>.png`.

The series are those of the download with classic folder names. Whether rows and columns of a box count from 0 and the last
ones belong to it is not documented: they are read as edges.
"""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from heatproof.checks import check_count
from heatproof.datasets.adapters.listing import folders, pictures, stem
from heatproof.datasets.adapters.official import region_rows
from heatproof.datasets.adapters.registry import Found, Problem, adapter, not_there
from heatproof.datasets.adapters.rois import RESIZED, read_rois
from heatproof.datasets.cells import require, some
from heatproof.datasets.labels import LabelForm
from heatproof.errors import InputError

_SERIES = "Duke-Breast-Cancer-MRI"
_MAPPING, _BOXES = "Breast-Cancer-MRI-filepath_filename-mapping", "Annotation_Boxes"
_ORIGINAL, _CLASSIC = "original_path_and_filename", "classic_path"
_EDGES = ("Start Column", "Start Row", "End Column", "End Row")
_FIRST, _LAST = "Start Slice", "End Slice"
_FILE = r"(?P<patient_id>Breast_MRI_\d+)/(?P<sequence>[^/]+)/[^/]*_(?P<slice>\d+)\.dcm$"
_PICTURE = r"^(?P<file>.+)-(?P<number>\d+)$"
_PNG_LABELS = {"neg": "negative", "pos": "positive"}
_CLASSES = ("negative", "positive")


@adapter(
    "duke_breast_mri",
    title="Duke-Breast-Cancer-MRI",
    licence="CC BY-NC 4.0.",
    home="https://www.cancerimagingarchive.net/collection/duke-breast-cancer-mri/",
    paper="saha2018machine",
)
def duke_breast_mri(
    folder: Path,
    *,
    sequence: str = "pre",
    margin: int = 5,
    last_patient: int | None = None,
    rois: str | None = None,
) -> Found:
    """Slices `negative` or `positive`, no official splits; regions `lesion` (the box) and `roi` of Chung et al.

    A slice is positive from the first slice of its patient's box on, before the last one; negative at least `margin` slices
    before the first or more than `margin` after the last. Those between are left out, as in the tutorial. Where the folder
    holds `pos` and `neg`, these are its samples, without boxes.

    Args:
        folder: with the two tables and the series, or with `pos` and `neg`.
        sequence: the series of each patient, such as `pre` (fat-saturated, before contrast) or `post_1`.
        margin: slices on either side of a box that are neither positive nor negative.
        last_patient: read patients up to this number only; the tutorial has 100, Chung et al. 900, of 922.
        rois: the folder of the masks of Chung et al. for this data set, carried back to the stored images.

    Raises:
        InputError: `margin` or `last_patient` is no such number, a table that cannot be read or lacks a column, no such
            folder.
    """
    check_count("margin", margin)
    last = np.inf if last_patient is None else check_count("last_patient", last_patient)
    ready = {"pos", "neg"} <= set(folders(folder))
    found = _pictures(folder, last) if ready else _slices(folder, sequence, margin, last)
    if rois is None or found.samples.empty:
        return found
    shown = found.samples[found.samples["label"] == "positive"]
    regions, problems, unclear = read_rois(rois, shown, _picture_names(shown), RESIZED)
    return Found(
        samples=found.samples,
        form=found.form,
        regions=pd.concat([found.regions, regions], ignore_index=True),
        notes=(*found.notes, *unclear),
        problems=(*found.problems, *problems),
    )


def _picture_names(samples: pd.DataFrame) -> "pd.Series[str]":
    """What the tutorial calls the picture of each slice, without suffix: its file and the patient's number."""
    return _last(samples["sample_id"]) + "-" + _number(samples["patient_id"]).astype(int).astype(str)


def _number(patients: "pd.Series[str]") -> "pd.Series[float]":
    return pd.to_numeric(patients.str.extract(r"_(\d+)$", expand=False)).astype(float)


def _last(paths: "pd.Series[str]") -> "pd.Series[str]":
    return paths.str.replace(r"^.*/", "", regex=True)


def _pictures(root: Path, last: float) -> Found:
    """The ready PNG files."""
    listed = {place: pictures(root / place) for place in _PNG_LABELS}
    rows = [(f"{place}/{name}", _PNG_LABELS[place], stem(name)) for place, names in listed.items() for name in names]
    images = pd.DataFrame(rows, columns=["image", "label", "name"], dtype=object)
    parts = images["name"].astype(str).str.extract(_PICTURE)
    odd = parts["number"].isna()
    problems = [Problem(f"The folder {place} holds no pictures.") for place, names in listed.items() if not names]
    if odd.any():
        names = images["image"][odd]
        text = f"Pictures that are not named <file>-<patient's number>: {some(names, len(names))}."
        problems.append(Problem(text, frozenset(names)))
    numbers = pd.to_numeric(parts["number"])
    patients = "Breast_MRI_" + numbers.fillna(0).astype(int).astype(str).str.zfill(3)
    samples = images[["image", "label"]].assign(
        sample_id=(patients + "/" + parts["file"]).where(~odd, images["image"]), patient_id=patients
    )
    return Found(
        samples=samples[odd | (numbers <= last)].reset_index(drop=True),
        form=LabelForm(classes=_CLASSES),
        notes=("Ready slices: neither boxes nor official splits.",),
        problems=problems,
    )


def _slices(root: Path, sequence: str, margin: int, last: float) -> Found:
    """The slices of the DICOM series that the tables name."""
    top = _top(root)
    if top is None:
        text = (
            f"No folder {_SERIES} with the series and none called pos and neg. Give the folder that holds one of these."
        )
        return Found(samples=pd.DataFrame(columns=["sample_id"]), problems=[Problem(text)])
    files, problems = _files(root, sequence, last)
    boxes, found = _boxes(root, last)
    problems += found
    files = files.merge(boxes, on="patient_id", how="left")
    bare = files["patient_id"][files[_FIRST].isna()].unique()
    if len(bare):
        without = files["sample_id"][files[_FIRST].isna()]
        text = f"{len(bare)} patients have series but no box in {_BOXES}: {some(bare, len(bare))}."
        problems.append(Problem(text, frozenset(without)))
    alone = sorted(set(boxes["patient_id"]) - set(files["patient_id"]))
    if alone:
        text = f"{len(alone)} patients have a box but no series {sequence!r} in {_MAPPING}: {some(alone, len(alone))}."
        problems.append(Problem(text, frozenset(alone)))
    positive = (files["slice"] >= files[_FIRST]) & (files["slice"] < files[_LAST])
    negative = (files["slice"] + margin <= files[_FIRST]) | (files["slice"] - margin > files[_LAST])
    files["label"] = np.select([positive, negative], ["positive", "negative"], default="")
    between = (files["label"] == "") & files[_FIRST].notna()
    files = files[~between].reset_index(drop=True)
    files["image"] = _as_on_disk(root, top + files["path"])
    problems += not_there(files["image"].tolist(), root, files["sample_id"].tolist(), "slices")
    marked = files[files["label"] == "positive"]
    return Found(
        samples=files[["sample_id", "image", "label", "patient_id", "slice"]],
        form=LabelForm(classes=_CLASSES),
        regions=region_rows(marked["sample_id"], "positive", "box", marked["box"]),
        notes=(
            "There are no official splits.",
            f"Slices near the ends of a box, neither positive nor negative, left out: {int(between.sum()):,}.",
        ),
        problems=problems,
    )


def _top(root: Path) -> str | None:
    """What to put before the paths of the table: the download has a folder `manifest-<number>` about the series."""
    for name in ("", *(f"{name}/" for name in folders(root) if name.startswith("manifest-"))):
        if (root / name / _SERIES).is_dir():
            return name
    return None


def _files(root: Path, sequence: str, last: float) -> tuple[pd.DataFrame, list[Problem]]:
    """patient_id, slice, path and sample_id of each file of a sequence."""
    table = _table(root, _MAPPING, [_ORIGINAL, _CLASSIC])
    parts = table[_ORIGINAL].str.extract(_FILE)
    odd = parts["slice"].isna()
    problems = []
    if odd.any():
        text = f"{_MAPPING}: {int(odd.sum()):,} paths are not .../Breast_MRI_<number>/<sequence>/<name>_<slice>.dcm: "
        problems.append(Problem(f"{text}{some(table[_ORIGINAL][odd], int(odd.sum()))}."))
    foreign = ~odd & ~table[_CLASSIC].str.startswith(f"{_SERIES}/")
    if foreign.any():
        text = f"{_MAPPING}: {int(foreign.sum()):,} classic paths do not begin with {_SERIES}/: "
        problems.append(Problem(f"{text}{some(table[_CLASSIC][foreign], int(foreign.sum()))}."))
    chosen = (parts["sequence"] == sequence) & ~foreign
    if not chosen.any() and not problems:
        there = sorted(parts["sequence"].dropna().unique())
        problems.append(Problem(f"{_MAPPING} names no series {sequence!r}, only {some(there, len(there), limit=10)}."))
    files = parts[chosen].assign(path=table[_CLASSIC][chosen])
    files = files[_number(files["patient_id"]) <= last].reset_index(drop=True)
    names = _last(files["path"]).str.removesuffix(".dcm")
    return files.assign(slice=files["slice"].astype(int), sample_id=files["patient_id"] + "/" + names), problems


def _boxes(root: Path, last: float) -> tuple[pd.DataFrame, list[Problem]]:
    """patient_id, first and last slice, and the box as text; problems for patients whose numbers make no box."""
    columns = ["Patient ID", *_EDGES, _FIRST, _LAST]
    table = _table(root, _BOXES, columns)
    number = _number(table["Patient ID"])
    problems = []
    if number.isna().any():
        names = table["Patient ID"][number.isna()]
        problems.append(Problem(f"{_BOXES}: patients not called Breast_MRI_<number>: {some(names, len(names))}."))
    table = table[number <= last].reset_index(drop=True)
    numbers = table[columns[1:]].apply(pd.to_numeric, errors="coerce")
    whole = numbers.notna().all(axis=1) & (numbers[_FIRST] <= numbers[_LAST])
    whole &= (numbers["Start Row"] < numbers["End Row"]) & (numbers["Start Column"] < numbers["End Column"])
    if not whole.all():
        names = table["Patient ID"][~whole]
        text = f"{_BOXES}: numbers that make no box (each start before its end) of {some(names, len(names))}."
        problems.append(Problem(text, frozenset(names)))
    kept = numbers[whole]
    boxes = pd.DataFrame({"patient_id": table["Patient ID"][whole], _FIRST: kept[_FIRST], _LAST: kept[_LAST]})
    texts = [" ".join(f"{edge:g}" for edge in row) for row in kept[list(_EDGES)].itertuples(index=False)]
    return boxes.assign(box=texts).drop_duplicates("patient_id"), problems


def _table(root: Path, name: str, columns: list[str]) -> pd.DataFrame:
    """Some columns of a table that is a CSV or an Excel file, every cell as text.

    Raises:
        InputError: neither is there, it cannot be read, or a column is missing.
    """
    files = [root / f"{name}{suffix}" for suffix in (".csv", ".xlsx")]
    path = next((file for file in files if file.is_file()), None)
    if path is None:
        raise InputError(f"{root}: the table {name}.csv or {name}.xlsx is missing. Put it beside the series.")
    try:
        if path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False, usecols=lambda column: column in columns)
        else:
            table = pd.read_excel(path, dtype=str, keep_default_na=False, usecols=lambda column: column in columns)
    except ImportError as error:
        raise InputError(
            f"{path}: reading Excel files needs openpyxl. Install it, or save the table as CSV."
        ) from error
    except (OSError, ValueError, BadZipFile) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path}: cannot be read as a table ({error}).") from error
    for column in columns:
        require(table, column, f"{path.name} has it as it is given out")
    return table


def _as_on_disk(root: Path, paths: "pd.Series[str]") -> list[str]:
    """The paths, with a digit less (1-01.dcm for 1-001.dcm) where only such a file is there."""
    places = paths.str.replace(r"/[^/]*$", "", regex=True)
    listed = {place: _names(root / place) for place in places.unique()}
    found = []
    for path, place in zip(paths, places, strict=True):
        name = path.rpartition("/")[2]
        shorter = name.replace("-0", "-", 1)
        found.append(f"{place}/{shorter}" if name not in listed[place] and shorter in listed[place] else path)
    return found


def _names(place: Path) -> set[str]:
    return {entry.name for entry in place.iterdir()} if place.is_dir() else set()
