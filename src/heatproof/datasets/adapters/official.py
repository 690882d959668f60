"""What several adapters share: tables as they are given out, and annotations as rows of the region table."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from heatproof.datasets.adapters.registry import Problem
from heatproof.datasets.cells import is_missing, read_table, rows_of, some
from heatproof.datasets.region_table import REGION_COLUMNS
from heatproof.errors import InputError


def folder_with(folder: Path, file: str, within: Sequence[str]) -> str:
    """Where `file` lies: "" for `folder` itself, or `<name>/` for the one of its sub-folders `within` that holds it.

    Raises:
        InputError: it lies in none of them, or in several.
    """
    places = [place for place in ("", *(f"{name}/" for name in within)) if (folder / place / file).exists()]
    if len(places) == 1:
        return places[0]
    if places:
        found = some([place + file for place in places], len(places))
        raise InputError(f"{folder} holds the data set more than once ({found}). Give the folder of the one meant.")
    expected = " or ".join([file, *(f"{name}/{file}" for name in within)])
    raise InputError(f"{folder}: expected {expected}, which is not there. Give the folder that the download became.")


def read_official(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """A table of a data set, every cell as text, blanks around the names of its columns taken away.

    Raises:
        InputError: no such table, unreadable, or without one of `columns`.
    """
    if not path.is_file():
        raise InputError(f"{path.name} is expected in {path.parent} and not there. Is the download complete?")
    table = read_table(path).rename(columns=str.strip)
    missing = [column for column in columns if column not in table]
    if missing:
        raise InputError(
            f"{path}: the columns {missing} are missing, it has {list(table.columns)}. Use the table as given out; "
            "another version of the data set may name its columns otherwise."
        )
    return table


def numbers(table: pd.DataFrame, columns: Sequence[str], path: Path) -> "list[pd.Series[float]]":
    """Columns of text as numbers, NaN where a cell is empty.

    Raises:
        InputError: a cell holds something else.
    """
    return [_number(table, column, path) for column in columns]


def _number(table: pd.DataFrame, column: str, path: Path) -> "pd.Series[float]":
    empty = is_missing(table[column])
    values = pd.to_numeric(table[column].mask(empty), errors="coerce").astype(np.float64)
    wrong = ~empty & values.isna()
    if wrong.any():
        raise InputError(
            f"{path}: {table[column][wrong].iloc[0]!r} stands in the column {column!r}, row {rows_of(wrong)} (from 1, "
            "without the header). Expected is a number or an empty cell."
        )
    return values


def box_texts(*corners: "pd.Series[float]") -> list[str]:
    """Boxes as `parse_boxes` reads them, of the columns x0, y0, x1, y1.

    Example:
        >>> box_texts(*(pd.Series([number]) for number in (225.5, 30, 312.25, 90.0)))
        ['225.5 30 312.25 90']
    """
    return [" ".join(f"{corner:.10g}" for corner in box) for box in zip(*corners, strict=True)]


def region_rows(
    samples: Iterable[str], labels: Any, kind: str, data: Iterable[str], *, readers: Any = None, region: str = "lesion"
) -> pd.DataFrame:
    """Annotations as rows of the region table; `labels` and `readers` are one for all, or one for each."""
    given = {"sample_id": list(samples), "label": _all(labels), "reader": _all(readers), "data": list(data)}
    frame = pd.DataFrame({**given, "region": region, "kind": kind}, index=range(len(given["data"])))
    return frame[list(REGION_COLUMNS)].astype(object)


def _all(values: Any) -> Any:
    """One value for all rows, or a list without an index that could be aligned."""
    return values if values is None or isinstance(values, str) else list(values)


def of_unknown_images(regions: pd.DataFrame, ids: "pd.Series[Any]", where: str, images: str) -> list[Problem]:
    """A problem for the annotations in `where` of images that the tables `images` do not name."""
    unknown = sorted(set(regions["sample_id"]) - set(ids))
    if not unknown:
        return []
    return [
        Problem(
            f"{where} annotates {len(unknown):,} images that {images} does not name: {some(unknown, len(unknown))}.",
            frozenset(unknown),
        )
    ]
