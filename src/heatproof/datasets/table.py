"""One table of samples and one of their regions describe any data set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from heatproof.datasets.cells import as_numbers, as_text, read_table, refuse_empty, require, some
from heatproof.datasets.labels import LabelForm, Labels, Task, describe_labels, read_labels, targets_of
from heatproof.datasets.region_table import (
    REGION_COLUMNS,
    agree,
    check_regions,
    read_region_columns,
    read_region_table,
)
from heatproof.errors import InputError, near_names
from heatproof.images.regions import read_region

SAMPLE_COLUMNS = ("sample_id", "image", "label", "patient_id", "split")
SPLITS = ("train", "val", "test")
_OURS = (*SAMPLE_COLUMNS, "labels")  # the names that `columns` maps


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images and their annotated regions.

    `samples`: one row an image: sample_id, image (absolute path), its labels, patient_id, split (None where undecided),
    then any other column of the source. The labels of a `multiclass` data set are a column `label`; those of a
    `multilabel` one are `labels` (those that apply, joined by `|`) and a column `label_<class>` a class: 1 it applies,
    0 it does not, NaN unknown (and `label` only where the source has one). `regions`: a row an annotation: sample_id,
    region, label (None: of every label), reader (None: not named), kind (`mask`, `box`, `polygon` or `rle`), data
    (absolute path of the mask, or text). `notes` is what a report must say of the data set. Made by `load_table`,
    `load_folder` or `make_phantom`.
    """

    name: str
    samples: pd.DataFrame
    regions: pd.DataFrame
    classes: tuple[str, ...]
    root: Path
    notes: tuple[str, ...] = ()
    task: Task = "multiclass"

    def __len__(self) -> int:
        return len(self.samples)

    def subset(self, split: str) -> "Dataset":
        """The samples of one split, with their regions; the classes stay those of the whole."""
        samples = self.samples[self.samples["split"] == split].reset_index(drop=True)
        regions = self.regions[self.regions["sample_id"].isin(samples["sample_id"])].reset_index(drop=True)
        return replace(self, samples=samples, regions=regions)

    def with_splits(self, splits: "pd.Series[str]") -> "Dataset":
        """The same data set under other splits, one value a row of `samples` (as from `split_by_patient`)."""
        return replace(self, samples=self.samples.assign(split=splits))

    def noting(self, *notes: str) -> "Dataset":
        """The same data set with more to be said of it."""
        return replace(self, notes=(*self.notes, *notes))

    def targets(self) -> NDArray[np.float32]:
        """What is true of each image, float32 `[N, K]`: 1 the class applies, 0 it does not, NaN unknown.

        Rows are those of `samples`, columns the classes; with one label an image each row is one-hot. Unknown labels
        are left out of the loss and of every figure of performance.

        Raises:
            InputError: a label that is none of the classes.
        """
        return targets_of(self.samples, self.classes, self.task)

    def row(self, sample_id: str) -> "pd.Series[Any]":
        """The row of one sample.

        Raises:
            InputError: no such sample; the message lists the near ones.
        """
        if sample_id not in self._positions:
            near = near_names(sample_id, self._positions).partition(" Known:")[0]
            raise InputError(
                f"The data set {self.name!r} has no sample {sample_id!r}. {near if '?' in near else ''}".strip()
            )
        return self.samples.iloc[self._positions[sample_id]]

    def has_region(self, sample_id: str, region: str, *, label: str | None = None) -> bool:
        """Whether anybody annotated `region` in this sample (for this label), be it as empty."""
        return bool(self._annotations(sample_id, region, label))

    def region(
        self,
        sample_id: str,
        region: str,
        size: tuple[int, int],
        *,
        label: str | None = None,
        readers: Literal["union", "intersection", "majority"] = "union",
    ) -> NDArray[np.bool_] | None:
        """The annotated region of one sample, bool `[H, W]` at the size (H, W) of its stored image.

        None means that nobody annotated it; an array without a True pixel means that it was annotated as empty. All
        that one reader annotated is united.

        Args:
            sample_id: of the sample table.
            region: its name, such as `lesion`.
            size: (H, W) of the stored image.
            label: the class whose region is meant: its own annotations and those that name no label. None: all.
            readers: where several readers annotated it, the pixels that any (`union`), all (`intersection`) or more
                than half of them (`majority`) marked. Annotations without a reader are those of one more reader.

        Raises:
            InputError: no such sample, another word for `readers`.
            ImageError: a mask is missing, unreadable or of another size; anything else is malformed, lies outside the
                image or does not fit it.
        """
        self.row(sample_id)
        found = self._annotations(sample_id, region, label)
        if not found:
            return None
        marks: dict[str | None, NDArray[np.bool_]] = {}
        for reader, kind, data in found:
            mark = read_region(kind, data, size)
            marks[reader] = marks[reader] | mark if reader in marks else mark
        return agree(list(marks.values()), readers)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {sample_id: i for i, sample_id in enumerate(self.samples["sample_id"])}

    def _annotations(self, sample_id: str, region: str, label: str | None) -> list[tuple[str | None, str, str]]:
        """(reader, kind, data) of each."""
        rows = self._region_rows.get((sample_id, region), [])
        return [(reader, kind, data) for own, reader, kind, data in rows if label is None or own in (None, label)]

    @cached_property
    def _region_rows(self) -> dict[tuple[str, str], list[tuple[str | None, str | None, str, str]]]:
        found: dict[tuple[str, str], list[tuple[str | None, str | None, str, str]]] = {}
        texts = self.regions.astype(object).where(self.regions.notna(), None)[list(REGION_COLUMNS)]
        for sample_id, region, label, reader, kind, data in texts.itertuples(index=False):
            found.setdefault((sample_id, region), []).append((label, reader, kind, data))
        return found


def load_table(
    samples: str | Path,
    regions: str | Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    region_columns: Sequence[Mapping[str, str | None]] | None = None,
    classes: Sequence[str] | None = None,
    label_columns: Sequence[str] | Mapping[str, str] | None = None,
    label_separator: str | None = None,
    no_finding: str | None = None,
    uncertain: str | Mapping[str, str] | None = None,
    blank: str | Mapping[str, str] | None = None,
    root: str | Path | None = None,
    name: str | None = None,
) -> Dataset:
    """Read a data set from a CSV or Parquet table of its samples, and perhaps another of its regions.

    The labels stand in one of three forms: `label`, one label an image; `labels`, a text with any number of them
    ("Edema|Effusion"); or one column a class (`label_columns`) that holds 1 (applies), 0 (does not), -1 (uncertain) or
    nothing. The last two make a multi-label data set. What was decided about uncertain and empty cells is in `notes`.

    Args:
        samples: a table with `image`, the labels, perhaps `sample_id`, `patient_id`, `split`; other columns are kept.
        regions: a table with `sample_id, region, kind, data` and perhaps `label, reader`. `kind` is `mask` (`data` is a
            file, or several separated by ";"), `box` ("x0 y0 x1 y1;..."), `polygon` ("x y x y x y;..." or COCO's lists)
            or `rle` (COCO's run lengths, compressed or not). Coordinates are pixels of the stored image; except for a
            mask, empty `data` means annotated, nothing there. See `heatproof.images.regions`.
        columns: our column name -> the table's. A column that bears one of our names but is not the mapped one is
            kept as `<name>_in_table`.
        region_columns: regions held in columns of the sample table, each `{"region": "lesion", "kind": "mask",
            "column": "lesion_mask"}` and perhaps `label` and `reader`; an empty cell means not annotated.
        classes: the labels in the order of the model's outputs; by default all labels found, sorted, or those of
            `label_columns`, of which it may choose some.
        label_columns: the columns that hold a label each, or class -> column.
        label_separator: between the labels of a text; by default "|".
        no_finding: the text in `labels` that says that no label applies. Without it an empty cell says so.
        uncertain: what -1 counts as, `zero`, `one` or `ignore` (unknown), for all classes or class -> policy; by default
            `ignore`, also for classes that a mapping leaves out (the U-zeros, U-ones and U-ignore of irvin2019chexpert).
        blank: the same for an empty cell, `zero` or `ignore`.
        root: the folder that relative paths start from; by default that of the table they stand in.
        name: of the data set; by default the table's.

    `sample_id` is by default the image's path without suffix, `patient_id` the sample's id (then `notes` says so).

    Raises:
        InputError: unreadable table, missing or unknown column, empty cell where a value must stand, duplicate
            sample_id or image, several forms of labels at once, an option of another form, a label not in `classes`, a
            label column with another value, unknown split, unknown kind of region, region of an unknown sample.
    """
    table = read_table(samples)
    folder = (Path(root) if root is not None else Path(samples).parent).absolute()
    form = LabelForm(classes, label_columns, label_separator, no_finding, uncertain, blank)
    annotated = []
    if regions is not None:
        annotated.append(read_region_table(regions, folder if root is not None else Path(regions).parent))
    return make_dataset(name or Path(samples).stem, table, annotated, folder, form, columns or {}, region_columns or ())


def make_dataset(
    name: str,
    table: pd.DataFrame,
    annotated: Sequence[pd.DataFrame],
    folder: Path,
    form: LabelForm,
    columns: Mapping[str, str] | None = None,
    region_columns: Sequence[Mapping[str, str | None]] = (),
) -> Dataset:
    """A data set of a sample table as read and of region tables (`REGION_COLUMNS`, masks with absolute paths).

    Args:
        name: of the data set.
        table: a row an image; `form` says how its labels are read.
        annotated: tables of regions.
        folder: what relative paths of images and of masks in columns start from.
        form: see `load_table`, as are `columns` and `region_columns`.
        columns: our column name -> the table's.
        region_columns: regions held in columns of the table.

    Raises:
        InputError: see `load_table`.
    """
    found = _our_columns(table, columns or {}, by_columns=form.label_columns is not None)
    frame = _images(table, found, folder)
    labels = read_labels(table, found, frame["sample_id"], form)
    _refuse_repeated(frame, labels)
    notes = _fill_patients(frame)
    parts = [*read_region_columns(table, frame["sample_id"], region_columns, folder), *annotated]
    regions = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(REGION_COLUMNS))
    used = {*found.values(), *labels.columns, *(entry["column"] for entry in region_columns)}
    return Dataset(
        name=name,
        samples=_joined(frame, labels, table.drop(columns=list(used))),
        regions=regions,
        classes=labels.classes,
        root=folder,
        notes=(*notes, *labels.notes, *check_regions(regions, frame["sample_id"], labels.classes)),
        task=labels.task,
    )


def _our_columns(table: pd.DataFrame, columns: Mapping[str, str], *, by_columns: bool) -> dict[str, str]:
    """Our names -> the table's, as far as they are mapped or stand in it; of the labels the form that is read."""
    for ours, theirs in columns.items():
        if ours not in _OURS:
            raise InputError(f"columns: unknown name {ours!r}. {near_names(ours, _OURS)}")
        require(table, theirs, f"columns maps {ours!r} to it")
    require(table, columns.get("image", "image"), "name yours with columns={'image': ...}")
    found = {**{ours: ours for ours in _OURS if ours in table}, **columns}
    if by_columns and "labels" in columns:
        raise InputError(
            "Labels are given twice: columns maps 'labels', and there are label_columns. Keep one of them."
        )
    if not by_columns and {"label", "labels"} <= found.keys() and ("label" in columns) == ("labels" in columns):
        raise InputError(
            "The table has one label an image ('label') and several ('labels'). Map the one that is meant, "
            "columns={'label': ...} or columns={'labels': ...}, not both."
        )
    if by_columns or ("label" in columns and "labels" not in columns):
        found.pop("labels", None)
    return found


def _images(table: pd.DataFrame, columns: Mapping[str, str], folder: Path) -> pd.DataFrame:
    """sample_id, image, patient_id, split, as far as the table has them."""
    ours = [name for name in SAMPLE_COLUMNS if name in columns and name != "label"]
    frame = pd.DataFrame({name: as_text(table[columns[name]]) for name in ours})
    refuse_empty(frame, "image")
    if "sample_id" not in frame:
        frame["sample_id"] = [_id_of(image, folder) for image in frame["image"]]
    refuse_empty(frame, "sample_id")
    frame["image"] = [str(folder / image) for image in frame["image"]]
    frame["split"] = _checked_splits(frame) if "split" in frame else pd.Series(None, index=frame.index, dtype=object)
    return frame


def _joined(frame: pd.DataFrame, labels: Labels, others: pd.DataFrame) -> pd.DataFrame:
    """The sample table: our columns, then those of the source that bear none of our names."""
    ours = pd.concat([frame[["sample_id", "image"]], labels.frame, frame[["patient_id", "split"]]], axis=1)
    reserved = {*_OURS, *ours.columns}
    names = {column: f"{column}_in_table" if column in reserved else column for column in others}
    kept = {names[column]: as_numbers(others[column]) for column in others}
    return pd.concat([ours, pd.DataFrame(kept, index=frame.index)], axis=1)


def _id_of(image: str, folder: Path) -> str:
    """The path without suffix; what `read_image` is to choose in the file (`scan.dcm#frame=3`) stays."""
    file, mark, choice = image.rpartition("#") if "=" in image.rpartition("#")[2] else (image, "", "")
    path = Path(file)
    within = path.is_absolute() and path.is_relative_to(folder)
    name = (path.relative_to(folder) if within else path).with_suffix("").as_posix()
    return f"{name}{mark}{choice}"


def _refuse_repeated(frame: pd.DataFrame, labels: Labels) -> None:
    """Each image and each sample_id once; rows that repeat one are told apart by whether their labels agree."""
    for column, what, advice in (
        ("image", "image", "Keep one row an image; what lies where in it belongs into a region table."),
        ("sample_id", "sample_id", "It is by default the image's path without suffix; give a column of distinct ones."),
    ):
        repeated = frame[column].duplicated(keep=False)
        if not repeated.any():
            continue
        said = describe_labels(labels)[repeated].groupby(frame[column]).agg(list)
        differing = said[said.map(lambda texts: len(set(texts)) > 1)]
        if len(differing):
            rows = [f"{name} ({', '.join(map(str, texts))})" for name, texts in differing.items()]
            raise InputError(
                f"Several rows have the same {what} and different labels: {some(rows, len(rows))}. Correct the labels. "
                f"{advice}"
            )
        raise InputError(f"Several rows have the same {what}: {some(said.index, len(said))}. {advice}")


def _fill_patients(frame: pd.DataFrame) -> list[str]:
    """Let the sample stand for its patient where none is known; returns what must be said about it."""
    if "patient_id" not in frame:
        frame["patient_id"] = frame["sample_id"]
        return ["No patient_id: every image counts as a patient of its own."]
    unknown = frame["patient_id"].isna()
    frame["patient_id"] = frame["patient_id"].where(~unknown, frame["sample_id"])
    return [f"{unknown.sum()} images without patient_id count as patients of their own."] if unknown.any() else []


def _checked_splits(frame: pd.DataFrame) -> "pd.Series[Any]":
    unknown = frame[frame["split"].notna() & ~frame["split"].isin(SPLITS)]
    if len(unknown):
        first = unknown.iloc[0]
        near = near_names(first["split"], SPLITS)
        raise InputError(f"Sample {first['sample_id']!r} has the unknown split {first['split']!r}. {near}")
    return frame["split"]
