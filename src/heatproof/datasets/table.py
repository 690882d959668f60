"""One table of samples and one of their regions describe any data set."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from heatproof.errors import InputError, near_names
from heatproof.images.read import read_mask
from heatproof.images.regions import boxes_to_mask, parse_boxes

SAMPLE_COLUMNS = ("sample_id", "image", "label", "patient_id", "split")
REGION_COLUMNS = ("sample_id", "region", "label", "reader", "kind", "data")
KINDS = ("mask", "box")
SPLITS = ("train", "val", "test")

# cells of a CSV file that mean "nothing"; ids and labels may be called NA or None, so there only the empty cell does
_MISSING = ["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images and their annotated regions.

    `samples`: one row an image: sample_id, image (absolute path), label, patient_id, split (None where undecided), then
    any other column of the source. `regions`: sample_id, region, label, reader, kind (`mask` or `box`), data (absolute
    path of the mask, or the boxes as text); several rows of one region of a sample are united. `notes` is what a report
    must say of the data set. Made by `load_table`, `load_folder` or `make_phantom`.
    """

    name: str
    samples: pd.DataFrame
    regions: pd.DataFrame
    classes: tuple[str, ...]
    root: Path
    notes: tuple[str, ...] = ()

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

    def has_region(self, sample_id: str, region: str) -> bool:
        """Whether anybody annotated `region` in this sample, be it as empty."""
        return (sample_id, region) in self._region_rows

    def region(self, sample_id: str, region: str, size: tuple[int, int]) -> NDArray[np.bool_] | None:
        """The annotated region of one sample, bool `[H, W]` at the size (H, W) of its stored image.

        None means that nobody annotated it; an array without a True pixel means that it was annotated as empty.

        Raises:
            ImageError: a mask is missing, unreadable or of another size; a box is malformed or outside the image.
        """
        self.row(sample_id)
        rows = self._region_rows.get((sample_id, region))
        if rows is None:
            return None
        return np.asarray(np.logical_or.reduce([read_region(kind, data, size) for kind, data in rows]))

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {sample_id: i for i, sample_id in enumerate(self.samples["sample_id"])}

    @cached_property
    def _region_rows(self) -> dict[tuple[str, str], list[tuple[str, str]]]:
        found: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for row in self.regions.itertuples():
            found.setdefault((str(row.sample_id), str(row.region)), []).append((str(row.kind), str(row.data)))
        return found


def read_region(kind: str, data: str, size: tuple[int, int]) -> NDArray[np.bool_]:
    """One row of a region table as bool `[H, W]`, `size` being (H, W) of the stored image.

    Raises:
        ImageError: see `Dataset.region`.
    """
    return read_mask(data, size) if kind == "mask" else boxes_to_mask(parse_boxes(data), size)


def load_table(
    samples: str | Path,
    regions: str | Path | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    region_columns: Sequence[Mapping[str, str]] | None = None,
    classes: Sequence[str] | None = None,
    root: str | Path | None = None,
    name: str | None = None,
) -> Dataset:
    """Read a data set from a CSV or Parquet table of its samples, and perhaps another of its regions.

    Args:
        samples: a table with `image`, `label`, perhaps `sample_id`, `patient_id`, `split`; other columns are kept.
        regions: a table with `sample_id, region, kind, data` and perhaps `label, reader`. `kind` is `mask` (`data` is a
            file) or `box` (`data` is "x0 y0 x1 y1;..." in pixels of the stored image; empty: annotated, nothing there).
        columns: our column name -> the table's. A column that bears one of our names but is not the mapped one is
            kept as `<name>_in_table`.
        region_columns: regions held in columns of the sample table, each `{"region": "lesion", "kind": "mask",
            "column": "lesion_mask"}`; an empty cell means not annotated.
        classes: the labels in the order of the model's outputs; by default all labels found, sorted.
        root: the folder that relative paths start from; by default that of the table they stand in.
        name: of the data set; by default the table's.

    `sample_id` is by default the image's path without suffix, `patient_id` the sample's id (then `notes` says so).

    Raises:
        InputError: unreadable table, missing or unknown column, empty cell where a value must stand, duplicate
            sample_id, label not in `classes`, unknown split, unknown kind of region, region of an unknown sample.
    """
    table = _read_table(samples)
    folder = Path(root) if root is not None else Path(samples).parent
    region_columns = [_checked_region_column(entry, table) for entry in region_columns or ()]
    frame, notes = _samples(
        table, dict(columns or {}), {entry["column"] for entry in region_columns}, folder.absolute()
    )
    parts = [_regions_in_columns(table, frame["sample_id"], entry) for entry in region_columns]
    parts = [_absolute(part, folder) for part in parts]
    if regions is not None:
        region_folder = Path(root) if root is not None else Path(regions).parent
        parts.append(_absolute(_region_table(regions), region_folder))
    found = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(REGION_COLUMNS))
    _refuse_unknown_samples(found, frame["sample_id"])
    return Dataset(
        name=name or Path(samples).stem,
        samples=frame,
        regions=found,
        classes=_checked_classes(frame, classes),
        root=folder.absolute(),
        notes=tuple(notes),
    )


def _read_table(path: str | Path) -> pd.DataFrame:
    """CSV with every cell as text, or Parquet."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such table. Give a CSV or Parquet file.")
    try:
        with path.open("rb") as file:
            parquet = file.read(4) == b"PAR1"
        table = pd.read_parquet(path) if parquet else pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # pandas' and pyarrow's parser errors are ValueErrors
        raise InputError(f"{path}: cannot be read as a CSV or Parquet table ({error}).") from error
    if table.empty:
        raise InputError(f"{path}: the table has no rows.")
    return table


def _text(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """A column as text, None where empty; 3 and 3.0 both become "3", so that numbered labels survive any format."""

    def one(value: Any) -> str | None:
        if pd.isna(value) or value == "":
            return None
        return str(int(value)) if isinstance(value, float | np.floating) and value == int(value) else str(value)

    return pd.Series([one(value) for value in column], index=column.index, dtype=object)


def _inferred(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """A column that only travels along: as it is, or as numbers where it is text and all its cells are numbers."""
    if not pd.api.types.is_string_dtype(column):
        return column
    values = column.mask(column.isin(_MISSING), None)
    try:
        return pd.to_numeric(values)
    except (ValueError, TypeError):
        return values


def _samples(
    table: pd.DataFrame, columns: dict[str, str], used: set[str], folder: Path
) -> tuple[pd.DataFrame, list[str]]:
    for ours, theirs in columns.items():
        if ours not in SAMPLE_COLUMNS:
            raise InputError(f"columns: unknown name {ours!r}. {near_names(ours, SAMPLE_COLUMNS)}")
        _require(table, theirs, f"columns maps {ours!r} to it")
    columns = {**{ours: ours for ours in SAMPLE_COLUMNS if ours in table}, **columns}
    for ours in ("image", "label"):
        _require(table, columns.get(ours, ours), f"name yours with columns={{{ours!r}: ...}}")
    frame = pd.DataFrame({ours: _text(table[theirs]) for ours, theirs in columns.items()})
    _refuse_empty(frame, "image")
    if "sample_id" not in frame:
        frame["sample_id"] = [_id_of(image, folder) for image in frame["image"]]
    _refuse_empty(frame, "sample_id")
    _refuse_duplicates(frame)
    _refuse_empty(frame, "label")
    frame["image"] = [str(folder / image) for image in frame["image"]]
    notes = _fill_patients(frame)
    frame["split"] = _checked_splits(frame) if "split" in frame else pd.Series(None, index=frame.index, dtype=object)
    others = {
        f"{column}_in_table" if column in SAMPLE_COLUMNS else column: _inferred(table[column])
        for column in table.columns
        if column not in used and column not in columns.values()
    }
    return pd.concat([frame[list(SAMPLE_COLUMNS)], pd.DataFrame(others, index=frame.index)], axis=1), notes


def _id_of(image: str, folder: Path) -> str:
    path = Path(image)
    return (path.relative_to(folder) if path.is_relative_to(folder) else path).with_suffix("").as_posix()


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


def _checked_classes(frame: pd.DataFrame, classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is None:
        return tuple(sorted(set(frame["label"])))
    names = tuple(str(name) for name in classes)
    if isinstance(classes, str) or len(set(names)) != len(names):
        raise InputError(f"classes must be a list of distinct names, got {classes!r}.")
    unknown = frame[~frame["label"].isin(names)]
    if len(unknown):
        rows = (f"{row.sample_id} ({row.label})" for row in unknown.itertuples())
        raise InputError(
            f"Labels that are not in classes {list(names)}: {some(rows, len(unknown))}. Add or correct them."
        )
    return names


def _checked_region_column(entry: Mapping[str, str], table: pd.DataFrame) -> Mapping[str, str]:
    for key in entry:
        if key not in ("region", "kind", "column"):
            raise InputError(f"region_columns: unknown key {key!r}. {near_names(key, ('region', 'kind', 'column'))}")
    for key in ("region", "kind", "column"):
        if key not in entry:
            raise InputError(f"region_columns: the entry {dict(entry)} needs the key {key!r}.")
    if entry["kind"] not in KINDS:
        raise InputError(f"region_columns: unknown kind {entry['kind']!r}. {near_names(entry['kind'], KINDS)}")
    _require(table, entry["column"], "region_columns names it")
    return entry


def _regions_in_columns(table: pd.DataFrame, ids: "pd.Series[Any]", entry: Mapping[str, str]) -> pd.DataFrame:
    data = _text(table[entry["column"]])
    data = data[data.notna() & ~data.isin(_MISSING)]
    frame = pd.DataFrame({"sample_id": ids[data.index], "data": data})
    return frame.assign(region=entry["region"], label=None, reader=None, kind=entry["kind"])[list(REGION_COLUMNS)]


def _region_table(path: str | Path) -> pd.DataFrame:
    table = _read_table(path)
    for column in ("sample_id", "region", "kind", "data"):
        _require(table, column, "a region table needs it")
    frame = pd.DataFrame({c: _text(table[c]) if c in table else None for c in REGION_COLUMNS}, index=table.index)
    for column in ("sample_id", "region", "kind"):
        _refuse_empty(frame, column)
    unknown = frame[~frame["kind"].isin(KINDS)]
    if len(unknown):
        raise InputError(
            f"{path}: unknown kind {unknown['kind'].iloc[0]!r}. {near_names(unknown['kind'].iloc[0], KINDS)}"
        )
    if (frame["data"].isna() & (frame["kind"] == "mask")).any():
        raise InputError(f"{path}: a row of kind 'mask' has no data; name its file, or leave the row out.")
    return frame.assign(data=frame["data"].where(frame["data"].notna(), ""))


def _absolute(regions: pd.DataFrame, folder: Path) -> pd.DataFrame:
    files = regions["kind"] == "mask"
    paths = [str(folder.absolute() / data) if file else data for data, file in zip(regions["data"], files, strict=True)]
    return regions.assign(data=pd.Series(paths, index=regions.index, dtype=object))


def _refuse_unknown_samples(regions: pd.DataFrame, ids: "pd.Series[Any]") -> None:
    unknown = sorted(set(regions["sample_id"]) - set(ids))
    if unknown:
        raise InputError(f"Regions of samples that are not in the sample table: {some(unknown, len(unknown))}.")


def _require(table: pd.DataFrame, column: str, why: str) -> None:
    if column not in table:
        raise InputError(f"The table has no column {column!r} ({why}). {near_names(column, map(str, table.columns))}")


def _refuse_empty(frame: pd.DataFrame, column: str) -> None:
    empty = frame.index[frame[column].isna()]
    if len(empty):
        rows = some((str(int(i) + 1) for i in range(len(frame)) if pd.isna(frame[column].iloc[i])), len(empty))
        raise InputError(
            f"The column {column!r} is empty in row {rows} (counted from 1, without the header). Fill it in."
        )


def _refuse_duplicates(frame: pd.DataFrame) -> None:
    doubled = frame.loc[frame["sample_id"].duplicated(), "sample_id"].unique()
    if len(doubled):
        raise InputError(
            f"Several rows have the same sample_id: {some(doubled, len(doubled))}. "
            "It is by default the image's path without suffix; give a column of distinct ones."
        )


def some(names: Iterable[Any], count: int, limit: int = 5) -> str:
    """The first few of `count` names, for a message.

    >>> some(["a", "b", "c"], 3, limit=2)
    'a, b and 1 more'
    """
    shown = [str(name) for name, _ in zip(names, range(limit), strict=False)]
    rest = count - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
