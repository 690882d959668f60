"""The annotated regions of a data set: read from a table of their own or from columns of the sample table."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from heatproof.checks import check_choice
from heatproof.datasets.cells import as_text, is_missing, read_table, refuse_empty, require, some
from heatproof.errors import InputError, near_names
from heatproof.images.regions import KINDS

REGION_COLUMNS = ("sample_id", "region", "label", "reader", "kind", "data")
READERS = ("union", "intersection", "majority")
_REQUIRED, _OPTIONAL = ("region", "kind", "column"), ("label", "reader")


def read_region_table(path: str | Path, folder: str | Path) -> pd.DataFrame:
    """A table `sample_id, region, kind, data` and perhaps `label, reader`; masks are relative to `folder`.

    Raises:
        InputError: unreadable table, missing column, empty cell, unknown kind.
    """
    table = read_table(path)
    for column in ("sample_id", "region", "kind", "data"):
        require(table, column, "a region table needs it")
    frame = pd.DataFrame({c: as_text(table[c]) if c in table else None for c in REGION_COLUMNS}, index=table.index)
    for column in ("sample_id", "region", "kind"):
        refuse_empty(frame, column)
    unknown = frame.loc[~frame["kind"].isin(KINDS), "kind"]
    if len(unknown):
        raise InputError(f"{path}: unknown kind {unknown.iloc[0]!r}. {near_names(unknown.iloc[0], KINDS)}")
    if (frame["data"].isna() & (frame["kind"] == "mask")).any():
        raise InputError(f"{path}: a row of kind 'mask' has no data; name its file, or leave the row out.")
    return _one_file_a_row(frame.assign(data=frame["data"].where(frame["data"].notna(), "")), folder)


def read_region_columns(
    table: pd.DataFrame, ids: "pd.Series[str]", entries: Sequence[Mapping[str, str | None]], folder: str | Path
) -> list[pd.DataFrame]:
    """The regions that stand in columns of the sample table; an empty cell means not annotated.

    Raises:
        InputError: unknown or missing key, unknown kind, no such column.
    """
    return [_one_file_a_row(_of_column(table, ids, entry), folder) for entry in entries]


def _of_column(table: pd.DataFrame, ids: "pd.Series[str]", entry: Mapping[str, str | None]) -> pd.DataFrame:
    for key in entry:
        if key not in (*_REQUIRED, *_OPTIONAL):
            raise InputError(f"region_columns: unknown key {key!r}. {near_names(key, (*_REQUIRED, *_OPTIONAL))}")
    for key in _REQUIRED:
        if entry.get(key) is None:
            raise InputError(f"region_columns: the entry {dict(entry)} needs the key {key!r}.")
    region, kind, column = (str(entry[key]) for key in _REQUIRED)
    if kind not in KINDS:
        raise InputError(f"region_columns: unknown kind {kind!r}. {near_names(kind, KINDS)}")
    require(table, column, "region_columns names it")
    data = as_text(table[column])[~is_missing(table[column])]
    given = {"region": region, "kind": kind, **{key: entry.get(key) for key in _OPTIONAL}}
    return pd.DataFrame({"sample_id": ids[data.index], "data": data}).assign(**given)[list(REGION_COLUMNS)]


def _one_file_a_row(regions: pd.DataFrame, folder: str | Path) -> pd.DataFrame:
    """Masks that one cell lists, separated by ';', as a row each, with absolute paths."""
    root = Path(folder).absolute()

    def parts(kind: str, data: str) -> list[str]:
        if kind != "mask":
            return [data]
        return [str(root / name.strip()) for name in data.split(";") if name.strip()] or [data]

    listed = [parts(kind, data) for kind, data in zip(regions["kind"], regions["data"], strict=True)]
    return regions.assign(data=pd.Series(listed, index=regions.index, dtype=object)).explode("data", ignore_index=True)


def check_regions(regions: pd.DataFrame, ids: "pd.Series[str]", classes: Sequence[str]) -> list[str]:
    """What must be said of regions read for these samples and classes.

    Raises:
        InputError: a region of a sample that the sample table does not have.
    """
    unknown = sorted(set(regions["sample_id"]) - set(ids))
    if unknown:
        raise InputError(f"Regions of samples that are not in the sample table: {some(unknown, len(unknown))}.")
    useless = regions["label"][regions["label"].notna() & ~regions["label"].isin(list(classes))].value_counts()
    if useless.empty:
        return []
    named = (f"{label} ({count})" for label, count in useless.items())
    return [f"Regions whose label is no class belong to none of them: {some(named, len(useless))}."]


def agree(masks: Sequence[NDArray[np.bool_]], readers: str) -> NDArray[np.bool_]:
    """What several readers marked, each bool `[H, W]`: what any, all, or more than half of them did.

    Raises:
        InputError: `readers` is neither `union`, `intersection` nor `majority`.

    Example:
        >>> marks = [np.array([[True, True]]), np.array([[True, False]]), np.array([[False, False]])]
        >>> {readers: agree(marks, readers).tolist() for readers in READERS}
        {'union': [[True, True]], 'intersection': [[False, False]], 'majority': [[True, False]]}
    """
    check_choice("readers", readers, READERS)
    votes = np.sum(masks, axis=0)
    needed = {"union": 1, "intersection": len(masks), "majority": len(masks) // 2 + 1}[readers]
    return np.asarray(votes >= needed)
