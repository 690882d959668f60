"""What the adapters of data sets without a table share: folders listed once, and pictures joined by their names."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

import pandas as pd

from heatproof.datasets.adapters.registry import Problem
from heatproof.datasets.cells import some

_PICTURES = (".png", ".jpg", ".jpeg")


def folders(place: Path) -> list[str]:
    """The names of the folders in `place` that are not hidden, sorted; none where there is no such folder."""
    return [name for name, is_folder in _entries(place) if is_folder]


def pictures(place: Path) -> list[str]:
    """The names of the PNG and JPEG files in `place`, sorted; none where there is no such folder."""
    return [name for name, is_folder in _entries(place) if not is_folder and name.lower().endswith(_PICTURES)]


def _entries(place: Path) -> list[tuple[str, bool]]:
    if not place.is_dir():
        return []
    with os.scandir(place) as entries:
        return sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))


def stem(name: str) -> str:
    """A file's name without folder and suffix.

    >>> stem("images/Normal (1).png")
    'Normal (1)'
    """
    return PurePosixPath(name).stem


def unexpected(root: Path, place: str, expected: Collection[str]) -> list[Problem]:
    """A problem for the folders in `place` (relative to `root`) that the data set does not have."""
    extra = [name for name in folders(root / place) if name not in expected]
    if not extra:
        return []
    return [
        Problem(
            f"{place or 'The folder'} holds {some(map(repr, extra), len(extra))}, which the data set does not have: "
            f"expected are {', '.join(expected)} alone. Move the rest elsewhere."
        )
    ]


def unpaired(images: pd.DataFrame, masks: pd.DataFrame, keys: Sequence[str], what: str) -> list[Problem]:
    """Problems for images without a mask, and for masks without an image.

    Args:
        images: with `keys` and `sample_id`.
        masks: with `keys`, `sample_id` (that its image would have) and `path`.
        keys: the columns by which they are joined.
        what: what the masks are called in a message.
    """
    problems = []
    bare = images["sample_id"][~_among(images, masks, keys)]
    if len(bare):
        text = f"{len(bare):,} of {len(images):,} images have no {what}: {some(bare, len(bare))}."
        problems.append(Problem(text, frozenset(bare)))
    stray = masks[~_among(masks, images, keys)]
    if len(stray):
        text = f"{len(stray):,} of the {what}s belong to no image: {some(stray['path'], len(stray))}."
        problems.append(Problem(text, frozenset(stray["sample_id"])))
    return problems


def _among(these: pd.DataFrame, those: pd.DataFrame, keys: Sequence[str]) -> "pd.Series[bool]":
    """Whether each row of `these` agrees with one of `those` in the `keys`."""
    known = set(zip(*(those[key] for key in keys), strict=True))
    rows = zip(*(these[key] for key in keys), strict=True)
    return pd.Series([row in known for row in rows], index=these.index, dtype=bool)


def count_notes(labels: "pd.Series[str]", published: Mapping[str, int]) -> list[str]:
    """A note where there are not as many images of each label as were published."""
    counts = labels.value_counts()
    other = [f"{label} {counts.get(label, 0):,} of {count:,}" for label, count in published.items()]
    if all(counts.get(label, 0) == count for label, count in published.items()):
        return []
    return [f"Not the published number of images: {', '.join(other)}."]
