"""CP-CHILD: colonoscopy images of children, with and without polyps, in the two parts A and B.

Layout: https://figshare.com/articles/dataset/CP-CHILD_zip/12554042, images of 256 x 256 pixels. Its page does not describe
the folders; public code that reads it shows `CP-CHILD-A` and `CP-CHILD-B`, each with `{Train,Test}/{Polyp,Non-Polyp}`,
JPEG files in them. How the names are written could not be checked: case, hyphens and blanks in those of the lower
folders do not matter here.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from heatproof.checks import check_choice
from heatproof.datasets.adapters.listing import count_notes, folders, pictures, stem
from heatproof.datasets.adapters.official import region_rows
from heatproof.datasets.adapters.registry import Found, Problem, adapter
from heatproof.datasets.adapters.rois import RESIZED, read_rois
from heatproof.datasets.cells import some
from heatproof.datasets.labels import LabelForm
from heatproof.errors import InputError

_PARTS = {"A": "CP-CHILD-A", "B": "CP-CHILD-B"}
_PUBLISHED = {"A": 8_000, "B": 1_500}
_SPLITS = {"train": "Train", "test": "Test"}
_LABELS = {"non-polyp": "Non-Polyp", "polyp": "Polyp"}


@adapter(
    "cp_child",
    title="CP-CHILD",
    licence="As its page at figshare says.",
    home="https://figshare.com/articles/dataset/CP-CHILD_zip/12554042",
    paper="wang2020improved",
)
def cp_child(folder: Path, *, part: str = "both", rois: str | None = None) -> Found:
    """Two classes, `non-polyp` and `polyp`, official splits without `val`; region `roi` of Chung et al.

    Args:
        folder: the one that holds `CP-CHILD-A` and `CP-CHILD-B`.
        part: `A`, `B` or `both`.
        rois: the folder of the masks of Chung et al. for this data set, carried back to the stored images. Which part
            they are of is not documented; they are read as of the polyps in the test set of part A.

    Raises:
        InputError: another word for `part`, `rois` without part A, no such folder.
    """
    check_choice("part", part, ("A", "B", "both"))
    if rois is not None and part == "B":
        raise InputError("rois: the masks are read as of part A. Use part='A' or part='both', or leave rois out.")
    parts = [part] if part in _PARTS else list(_PARTS)
    samples, problems = _listed(folder, parts)
    regions, notes = region_rows([], None, "mask", []), ["The data set names no patients and has no validation set."]
    if rois is not None:
        seen = samples[(samples["part"] == "A") & (samples["split"] == "test") & (samples["label"] == "polyp")]
        regions, found, unclear = read_rois(rois, seen, seen["image"].map(stem), RESIZED)
        problems, notes = [*problems, *found], [*notes, "ROI masks: read as of the test set of part A.", *unclear]
    return Found(
        samples=samples,
        form=LabelForm(classes=tuple(_LABELS)),
        regions=regions,
        notes=(*notes, *count_notes(samples["part"], {name: _PUBLISHED[name] for name in parts})),
        problems=problems,
    )


def _listed(root: Path, parts: Sequence[str]) -> tuple[pd.DataFrame, list[Problem]]:
    rows: list[tuple[str, str, str, str, str]] = []
    problems: list[Problem] = []
    for part in parts:
        splits, found = _named(root, _PARTS[part], _SPLITS)
        problems += found
        for split, split_place in splits.items():
            classes, found = _named(root, split_place, _LABELS)
            problems += found
            for label, place in classes.items():
                names = pictures(root / place)
                rows += [
                    (f"{part}/{split}/{label}/{stem(file)}", f"{place}/{file}", label, split, part) for file in names
                ]
                if not names:
                    problems.append(Problem(f"{place} holds no pictures."))
    return pd.DataFrame(rows, columns=["sample_id", "image", "label", "split", "part"], dtype=object), problems


def _named(root: Path, place: str, expected: dict[str, str]) -> tuple[dict[str, str], list[Problem]]:
    """Where in `place` each of the expected folders is, by our names, and problems for missing and other ones."""
    there = {_letters(name): name for name in folders(root / place)}
    found = {ours: f"{place}/{there[_letters(name)]}" for ours, name in expected.items() if _letters(name) in there}
    missing = [name for ours, name in expected.items() if ours not in found]
    extra = sorted(set(there) - {_letters(name) for name in expected.values()})
    problems = []
    if missing:
        problems.append(Problem(f"{place} has no folder {' and no '.join(map(repr, missing))}."))
    if extra:
        names = some([repr(there[name]) for name in extra], len(extra))
        problems.append(Problem(f"{place} holds {names} beside {' and '.join(expected.values())}. Move it elsewhere."))
    return found, problems


def _letters(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())
