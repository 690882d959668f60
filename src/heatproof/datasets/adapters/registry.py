"""The public data sets by name: from a data set's own layout on disk to the sample table and its regions.

An adapter is a function `(folder, *, options...) -> Found`. It reads the data set's own tables and lists its folders; it
opens no image. What the data set's tables and its folder do not agree about is a `Problem`, which names the samples that
one could go on without.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from heatproof.datasets.cells import some
from heatproof.datasets.labels import LabelForm
from heatproof.datasets.region_table import REGION_COLUMNS
from heatproof.datasets.table import Dataset, make_dataset
from heatproof.errors import InputError
from heatproof.registry import Entry, Registry, entry_fields


def _no_regions() -> pd.DataFrame:
    return pd.DataFrame(columns=list(REGION_COLUMNS), dtype=object)


@dataclass(frozen=True)
class Problem:
    """What is wrong with a data set on disk: what, where, and what was expected.

    Without the `samples` (ids) it can be gone on with; where there are none, it cannot.
    """

    message: str
    samples: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Found:
    """What an adapter makes of a folder.

    `samples`: a row an image, with `sample_id`, `image` (relative to the folder), the labels as `form` says, and perhaps
    `patient_id` and `split`; other columns travel along. `regions`: as `Dataset.regions`, masks relative to the folder
    (or absolute, where another folder holds them).
    """

    samples: pd.DataFrame
    form: LabelForm = field(default_factory=LabelForm)
    regions: pd.DataFrame = field(default_factory=_no_regions)
    notes: Sequence[str] = ()
    problems: Sequence[Problem] = ()


@dataclass(frozen=True)
class Adapter(Entry):
    """An adapter and what is to be said of its data set.

    `title` with the version; `licence` in a sentence; `home`: where it is asked for and where its layout is described.
    """

    title: str
    licence: str
    home: str


ADAPTERS: Registry[Adapter] = Registry("data set")
_MANY = 8  # files of one folder, from which on it is listed


def adapter(name: str, *, title: str, licence: str, home: str, paper: str) -> Callable[[Callable[..., Found]], Any]:
    """Register the decorated function as the adapter of the data set `name`."""

    def register(function: Callable[..., Found]) -> Callable[..., Found]:
        ADAPTERS.add(Adapter(**entry_fields(name, function, paper, ()), title=title, licence=licence, home=home))
        return function

    return register


def load_public(name: str, folder: str | Path, *, skip_faulty: bool = False, **options: Any) -> Dataset:
    """A public data set from its own layout on disk.

    Args:
        name: one of `ADAPTERS`.
        folder: where it was unpacked.
        skip_faulty: leave out the samples that something is wrong with; what that was stands in the notes.
        **options: of the adapter, see `ADAPTERS[name].options`.

    Raises:
        InputError: an unknown data set or option, no such folder, or another layout than the data set's: the message says
            what was expected, and where.
    """
    entry = ADAPTERS[name]
    entry.check_options(options)
    root = Path(folder).absolute()
    if not root.is_dir():
        raise InputError(f"{folder}: no such folder. Give the one that {entry.title} was unpacked into.")
    found: Found = entry.function(root, **options)
    fatal = [problem.message for problem in found.problems if not (skip_faulty and problem.samples)]
    if fatal:
        advice = "" if skip_faulty else " Repair it, or go on without these samples: skip_faulty."
        raise InputError(f"{folder} is not {entry.title} as it is given out: {' '.join(fatal)}{advice}")
    faulty = frozenset[str]().union(*(problem.samples for problem in found.problems))
    samples = found.samples[~found.samples["sample_id"].isin(faulty)]
    if samples.empty:
        raise InputError(f"{folder}: nothing is left of {entry.title} without the faulty samples.")
    regions = found.regions[~found.regions["sample_id"].isin(faulty)]
    files = [
        str(root / data) if kind == "mask" else data
        for kind, data in zip(regions["kind"], regions["data"], strict=True)
    ]
    regions = regions.assign(data=files)
    dataset = make_dataset(name, samples.reset_index(drop=True), [regions], root, found.form)
    left_out = [f"Left out: {problem.message}" for problem in found.problems]
    return dataset.noting(*found.notes, *left_out)


def not_there(named: Sequence[str], folder: Path, ids: Sequence[str], what: str) -> list[Problem]:
    """A problem for the files `named` (relative to `folder`, or absolute) that are not there; each belongs to a sample."""
    there = _existing(named, folder)
    missing = [(path, sample) for path, sample in zip(named, ids, strict=True) if path not in there]
    if not missing:
        return []
    paths = some([path for path, _ in missing], len(missing))
    return [
        Problem(f"{len(missing):,} of {len(named):,} {what} are missing: {paths}.", frozenset(s for _, s in missing))
    ]


def _existing(named: Sequence[str], folder: Path) -> set[str]:
    """Those of the files that are there.

    A folder of many is listed once; in one of few each file is asked for, as listing 190,000 folders of one file takes
    several times as long.
    """
    within: dict[str, list[str]] = {}
    for path in named:
        within.setdefault(path.rpartition("/")[0], []).append(path)
    there: set[str] = set()
    root = os.open(folder, os.O_RDONLY)
    try:
        for parent, paths in within.items():
            if len(paths) < _MANY:
                there.update(path for path in paths if os.access(path, os.F_OK, dir_fd=root))
            else:
                names = _names(folder / parent)
                there.update(path for path in paths if path.rpartition("/")[2] in names)
    finally:
        os.close(root)
    return there


def _names(place: Path) -> set[str]:
    """What lies in a folder; nothing where there is none."""
    try:
        with os.scandir(place) as entries:  # Path.iterdir makes a Path of each
            return {entry.name for entry in entries}
    except (FileNotFoundError, NotADirectoryError):
        return set()
