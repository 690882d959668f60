"""What a table or a folder of images seems to hold: the guesses that a new recipe begins with."""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from heatproof.datasets.cells import read_table
from heatproof.datasets.table import SPLITS
from heatproof.errors import InputError

# How others call our columns, in lower case with everything but letters and digits left out.
_NAMES = {
    "image": ("image", "imagepath", "imagefile", "path", "filepath", "file", "filename", "imageindex", "dicom", "png"),
    "label": ("label", "class", "target", "diagnosis", "finding", "category", "pathology", "disease"),
    "labels": ("labels", "findings", "findinglabels", "diagnoses", "targets", "classes"),
    "patient_id": ("patientid", "patient", "subjectid", "subject", "case", "caseid", "pid"),
    "split": ("split", "fold", "set", "subset", "partition"),
    "sample_id": ("sampleid", "imageid", "id"),
}
_BOX = re.compile(r"\s*\d[\d.]*(\s+\d[\d.]*){3}\s*(;.*)?")
_LABEL_CELLS = {"", "0", "1", "-1", "0.0", "1.0", "-1.0"}
_MAX_CLASSES = 50
_LOOKED_AT = 50  # cells of a column that are looked up on the disk


@dataclass(frozen=True)
class Inspection:
    """What was found.

    `samples` or `folder` says where the images are, `regions_table` where their regions, if in a table of their own;
    `root` is the folder that paths count from, where it is not the table's. `columns`: our name -> theirs, where they
    differ. `label_columns`: columns of 1, 0, -1 or blank, one a class. `separator` parts the labels of one cell,
    `no_finding` is the word for none. `regions`: the names of all regions, those found most often first;
    `region_columns`: (region, kind, column). `remarks`: what a person should know, a sentence each.
    """

    samples: Path | None = None
    regions_table: Path | None = None
    folder: Path | None = None
    root: Path | None = None
    columns: dict[str, str] = field(default_factory=dict)
    label_columns: tuple[str, ...] = ()
    separator: str | None = None
    no_finding: str | None = None
    regions: tuple[str, ...] = ()
    region_columns: tuple[tuple[str, str, str], ...] = ()
    splits_given: bool = False
    remarks: tuple[str, ...] = ()


def inspect(path: str | Path) -> Inspection:
    """Look at a sample table, a folder of class folders, or a folder that holds one table.

    Raises:
        InputError: there is nothing of the kind, or no column that names images or labels.
    """
    path = Path(path)
    if not path.is_dir():
        return _inspect_table(path)
    tables = sorted(file for suffix in ("csv", "parquet") for file in path.glob(f"*.{suffix}"))
    if not tables:
        return Inspection(folder=path)
    candidates = [file for file in tables if not file.stem.startswith("region")]
    if len(candidates) != 1:
        names = ", ".join(file.name for file in tables)
        raise InputError(f"{path} holds several tables ({names}): say which one lists the images.")
    return _inspect_table(candidates[0])


def _inspect_table(path: Path) -> Inspection:
    table = read_table(path)
    cells = table.astype(object).where(table.notna(), "").astype(str)
    named = {ours: column for ours in _NAMES if (column := _called(ours, cells.columns))}
    image, root = _image_column(cells, path, named.get("image"))
    remarks = []
    label_columns = _label_columns(cells, {image, *named.values()} - {named.get("label")})
    separator = None
    if "labels" in named:
        separator = _separator(cells[named["labels"]])
    elif "label" in named and (found := _separator(cells[named["label"]])) is not None:
        separator, named["labels"] = found, named.pop("label")
    no_finding = _no_finding(cells[named["labels"]]) if "labels" in named else None
    if "labels" in named or (label_columns and "label" not in named):
        named.pop("label", None)
    elif "label" in named:
        label_columns = ()
    else:
        named["label"] = _only_category(cells, path, {image, *named.values()})
        remarks.append(f"The column {named['label']!r} was taken for the label; it is the only one with few values.")
    if "labels" in named:
        label_columns = ()
    if "patient_id" not in named:
        remarks.append("No column names the patients: every image counts as a patient of its own.")
    if "split" in named and not set(cells[named["split"]]) <= {*SPLITS, ""}:
        values = ", ".join(sorted(set(cells[named["split"]]))[:4])
        remarks.append(f"The column {named.pop('split')!r} ({values} ...) holds other words than train, val and test.")
    if "sample_id" in named and cells[named["sample_id"]].duplicated().any():
        remarks.append(f"The column {named.pop('sample_id')!r} is not unique, so it cannot name the images.")
    columns = {ours: theirs for ours, theirs in {**named, "image": image}.items() if ours != theirs}
    taken = {image, *named.values(), *label_columns}
    in_columns = tuple(_region_columns(cells, root or path.parent, taken))
    regions_table, in_table = _region_table(path)
    return Inspection(
        samples=path, root=root, columns=columns, label_columns=label_columns, separator=separator,
        no_finding=no_finding, region_columns=in_columns, regions_table=regions_table,
        regions=tuple(dict.fromkeys([*in_table, *(region for region, _, _ in in_columns)])),
        splits_given="split" in named, remarks=tuple(remarks),
    )  # fmt: skip


def _region_table(path: Path) -> tuple[Path | None, list[str]]:
    """The only table beside `path` whose name begins with "region", and the regions in it, the most frequent first."""
    found = [file for suffix in ("csv", "parquet") for file in sorted(path.parent.glob(f"region*.{suffix}"))]
    if len(found) != 1 or found[0] == path:
        return None, []
    return found[0], [str(name) for name in read_table(found[0])["region"].value_counts().index]


def _called(ours: str, columns: Iterable[str]) -> str | None:
    """The column that bears one of the usual names of `ours`, the most usual first."""
    plain = {re.sub(r"[^a-z0-9]", "", str(column).lower()): str(column) for column in reversed(list(columns))}
    return next((plain[name] for name in _NAMES[ours] if name in plain), None)


def _image_column(cells: pd.DataFrame, path: Path, named: str | None) -> tuple[str, Path | None]:
    """The column whose cells are files, and the folder that they count from where it is not the table's."""
    folders = [path.parent, *sorted(part for part in path.parent.iterdir() if part.is_dir())]
    order = ([named] if named else []) + [str(column) for column in cells.columns if column != named]
    for folder in folders:
        for column in order:
            if _are_files(cells[column], folder):
                return column, None if folder == path.parent else folder
    raise InputError(
        f"{path}: no column whose cells are files in {path.parent} or in a folder there. Paths of images must count from "
        "the table's folder, or from root: in the recipe."
    )


def _are_files(cells: "pd.Series[str]", folder: Path) -> bool:
    some = [cell for cell in cells if cell][:_LOOKED_AT]
    return bool(some) and sum((folder / cell.partition(";")[0]).is_file() for cell in some) >= 0.9 * len(some)


def _label_columns(cells: pd.DataFrame, taken: Collection[str | None]) -> tuple[str, ...]:
    """At least two columns of 1, 0, -1 and blank; an only one is no set of labels."""
    found = [
        str(column)
        for column in cells.columns
        if column not in taken and "1" in {cell.removesuffix(".0") for cell in cells[column]}
        and set(cells[column]) <= _LABEL_CELLS
    ]  # fmt: skip
    return tuple(found) if len(found) > 1 else ()


def _separator(cells: "pd.Series[str]") -> str | None:
    """What parts several labels in one cell."""
    return next((mark for mark in ("|", ";") if cells.str.contains(mark, regex=False).any()), None)


def _no_finding(cells: "pd.Series[str]") -> str | None:
    words = ("no finding", "no findings", "normal", "none", "healthy")
    return next((cell for cell in sorted(set(cells)) if cell.strip().lower() in words), None)


def _only_category(cells: pd.DataFrame, path: Path, taken: set[str]) -> str:
    few = [
        str(column)
        for column in cells.columns
        if column not in taken and 2 <= cells[column].nunique() <= min(_MAX_CLASSES, len(cells) // 2)
    ]
    if len(few) != 1:
        raise InputError(
            f"{path}: no column is called label, class or the like, and {len(few)} columns could be it"
            f"{': ' + ', '.join(few[:6]) if few else ''}. Rename the one that holds the labels to 'label'."
        )
    return few[0]


def _region_columns(cells: pd.DataFrame, folder: Path, taken: set[str]) -> list[tuple[str, str, str]]:
    found = []
    for column in cells.columns:
        filled = cells[column][cells[column] != ""]
        if column in taken or filled.empty:
            continue
        kind = "mask" if _are_files(filled, folder) else "box" if filled.str.fullmatch(_BOX).all() else None
        if kind is not None:
            name = re.sub(r"[ _-]*(masks?|box(es)?|bbox(es)?)$", "", str(column), flags=re.IGNORECASE)
            found.append((name or "lesion", kind, str(column)))
    return found
