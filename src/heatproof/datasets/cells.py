"""The cells of a table as they come from a CSV or Parquet file, and the faults that all tables share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from heatproof.errors import InputError, near_names

# cells of a CSV file that mean "nothing"; ids and labels may be called NA or None, so there only the first three do
MISSING = ["", "NaN", "nan", "NA", "N/A", "null", "NULL", "None"]


def read_table(path: str | Path) -> pd.DataFrame:
    """CSV with every cell as text, or Parquet, told apart by content.

    Raises:
        InputError: no such file, neither CSV nor Parquet, no rows.
    """
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
    if not parquet and not isinstance(table.index, pd.RangeIndex):  # pandas took the first cell of each row as its name
        raise InputError(f"{path}: the rows have more cells than the header. Put cells that hold commas in quotes.")
    return table.reset_index(drop=table.index.names == [None])  # a named index of a Parquet file is a column


def as_text(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """A column as text, None where empty or NaN; 3 and 3.0 both become "3": numbered labels survive any format."""

    def one(value: Any) -> str | None:
        if pd.isna(value) or value in MISSING[:3]:
            return None
        return str(int(value)) if isinstance(value, float | np.floating) and value == int(value) else str(value)

    return pd.Series([one(value) for value in column], index=column.index, dtype=object)


def is_missing(column: "pd.Series[Any]") -> "pd.Series[bool]":
    """Whether a cell holds nothing, in any of the ways that tables write it."""
    return column.isna() | column.isin(MISSING)


def as_numbers(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """A column that only travels along: as it is, or as numbers where it is text and all its cells are numbers."""
    if not pd.api.types.is_string_dtype(column):
        return column
    values = column.mask(column.isin(MISSING), None)
    try:
        return pd.to_numeric(values)
    except (ValueError, TypeError):
        return values


def require(table: pd.DataFrame, column: str, why: str) -> None:
    """Raise `InputError` unless the table has the column."""
    if column not in table:
        raise InputError(f"The table has no column {column!r} ({why}). {near_names(column, map(str, table.columns))}")


def refuse_empty(frame: pd.DataFrame, column: str) -> None:
    """Raise `InputError` where a cell of the column is None."""
    empty = frame[column].isna()
    if empty.any():
        raise InputError(
            f"The column {column!r} is empty in row {rows_of(empty)} (counted from 1, without the header). Fill it in."
        )


def rows_of(chosen: "pd.Series[bool]") -> str:
    """The first few rows where `chosen` holds, counted from 1, for a message."""
    rows = np.flatnonzero(chosen) + 1
    return some(rows, len(rows))


def some(names: Iterable[Any], count: int, limit: int = 5) -> str:
    """The first few of `count` names, for a message.

    >>> some(["a", "b", "c"], 3, limit=2)
    'a, b and 1 more'
    """
    shown = [str(name) for name, _ in zip(names, range(limit), strict=False)]
    rest = count - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest > 0 else "")
