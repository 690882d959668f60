"""A data set that is only a folder: one sub-folder a class, perhaps under train, val and test."""

from pathlib import Path

import pandas as pd

from heatproof.datasets.cells import some
from heatproof.datasets.region_table import REGION_COLUMNS
from heatproof.datasets.table import SAMPLE_COLUMNS, SPLITS, Dataset
from heatproof.errors import InputError


def load_folder(folder: str | Path, *, name: str | None = None) -> Dataset:
    """The images of `folder/<class>/...` or of `folder/{train,val,test}/<class>/...`.

    Every file that is not hidden counts as an image, whatever its name, also in deeper folders; `check_dataset` names
    those that are none. Each image counts as a patient of its own. `sample_id` is the path in the folder, without
    suffix.

    Raises:
        InputError: no such folder, no class folders, split folders beside others, two files with one `sample_id`.
    """
    root = Path(folder).absolute()
    if not root.is_dir():
        raise InputError(f"{folder}: no such folder.")
    tops = _folders(root)
    if not tops:
        raise InputError(f"{folder}: no class folders in it. Images belong into {folder}/<class>/.")
    splits = [top for top in tops if top.name in SPLITS]
    if splits and len(splits) < len(tops):
        others = [top.name for top in tops if top.name not in SPLITS]
        raise InputError(
            f"{folder}: {others} stand beside {[s.name for s in splits]}: either splits or classes, not both."
        )
    rows = [
        _row(file, leaf, top.name if splits else None, root)
        for top, leaf in _leaves(tops, bool(splits))
        for file in _files(leaf)
    ]
    samples = pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS), dtype=object)
    _check(samples, folder)
    return Dataset(
        name=name or root.name,
        samples=samples,
        regions=pd.DataFrame(columns=list(REGION_COLUMNS)),
        classes=tuple(sorted({leaf.name for _, leaf in _leaves(tops, bool(splits))})),
        root=root,
        notes=("No patient_id: every image counts as a patient of its own.",),
    )


def _leaves(tops: list[Path], split: bool) -> list[tuple[Path, Path]]:
    """(top folder, class folder) for every class folder."""
    return [(top, leaf) for top in tops for leaf in (_folders(top) if split else [top])]


def _row(file: Path, leaf: Path, split: str | None, root: Path) -> tuple[str, str, str, str, str | None]:
    sample_id = file.relative_to(root).with_suffix("").as_posix()
    return sample_id, str(file), leaf.name, sample_id, split


def _check(samples: pd.DataFrame, folder: str | Path) -> None:
    if samples.empty:
        raise InputError(f"{folder}: the class folders hold no files.")
    doubled = samples.loc[samples["sample_id"].duplicated(), "sample_id"].unique()
    if len(doubled):
        raise InputError(
            f"{folder}: files that differ in their suffix only: {some(doubled, len(doubled))}. Rename one of each."
        )


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
