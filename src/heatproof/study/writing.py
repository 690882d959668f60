"""The write side of a run folder: tables, arrays and texts that are whole or absent."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray

from heatproof.errors import HeatproofError
from heatproof.study.files import write_whole
from heatproof.study.store import FAILURE_COLUMNS

Failures = list[dict[str, str]]  # rows of the failures table


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """A Parquet file."""
    write_whole(path, lambda file: frame.to_parquet(file, index=False))


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """A CSV file."""
    write_whole(path, lambda file: file.write(frame.to_csv(index=False).encode()))


def write_arrays(path: Path, **arrays: NDArray[Any]) -> None:
    """An `.npz` file."""
    content = io.BytesIO()
    np.savez_compressed(content, allow_pickle=False, **arrays)  # type: ignore[arg-type, unused-ignore]
    write_whole(path, lambda file: file.write(content.getbuffer()))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """A JSON file; NaN is written as null."""
    write_whole(path, lambda file: file.write((json.dumps(_without_nan(content), indent=2) + "\n").encode()))


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """A YAML file, keys in the order given."""
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True)
    write_whole(path, lambda file: file.write(text.encode()))


def failure(error: HeatproofError, stage: str, **where: str) -> dict[str, str]:
    """One row of the failures table; `where`: sample_id, model, method, metric, as far as they apply."""
    blank = dict.fromkeys(FAILURE_COLUMNS, "")
    return blank | where | {"stage": stage, "error": type(error).__name__, "message": str(error)}


def write_failures(path: Path, rows: Iterable[Mapping[str, str]], *, root: Path) -> None:
    """A table of failures, with paths relative to the data set's `root`; without rows there is no file."""
    frame = pd.DataFrame([dict(row) for row in rows], columns=list(FAILURE_COLUMNS))
    if frame.empty:
        path.unlink(missing_ok=True)
        return
    frame["message"] = frame["message"].str.replace(f"{root}/", "", regex=False)
    write_table(path, frame.fillna(""))


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value  # noqa: PLR0124
