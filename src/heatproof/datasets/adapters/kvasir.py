"""Kvasir: endoscopic images of eight classes, and Kvasir-SEG: polyps with masks and boxes.

Layout: https://datasets.simula.no/kvasir (version 2, `kvasir-dataset-v2.zip`: a folder a class, files named by UUIDs) and
https://datasets.simula.no/kvasir-seg, https://arxiv.org/abs/1911.07069 (`images/` and `masks/` with the same file names,
both JPEG, and `kavsir_bboxes.json`, so spelled). The form of that file is known from public code that reads it alone:
`{"<name>": {"height": ..., "width": ..., "bbox": [{"label": "polyp", "xmin": ..., "ymin": ..., "xmax": ..., "ymax":
...}]}}`; whether corners count from 0 and the last one belongs to the box is not documented: they are read as edges.
Kvasir-SEG shows the polyps of version 2, of which it replaced 13, under other names: nothing joins the two by name.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from heatproof.datasets.adapters.listing import count_notes, pictures, stem, unexpected, unpaired
from heatproof.datasets.adapters.official import region_rows
from heatproof.datasets.adapters.registry import Found, Problem, adapter
from heatproof.datasets.adapters.rois import CROPPED, read_rois
from heatproof.datasets.cells import some
from heatproof.datasets.labels import LabelForm
from heatproof.errors import InputError, near_names

_TOP = "kvasir-dataset-v2"
_CLASSES = (
    "dyed-lifted-polyps",
    "dyed-resection-margins",
    "esophagitis",
    "normal-cecum",
    "normal-pylorus",
    "normal-z-line",
    "polyps",
    "ulcerative-colitis",
)
_EACH = 1_000  # images a class of version 2; version 1 has 500 in the same folders
_POLYPS = "polyps"
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@adapter(
    "kvasir",
    title="Kvasir (version 2)",
    licence="For research and education alone; any other use, also a commercial one, needs written permission.",
    home="https://datasets.simula.no/kvasir",
    paper="pogorelov2017kvasir",
)
def kvasir(
    folder: Path,
    *,
    classes: Sequence[str] | None = None,
    positive: Sequence[str] | None = None,
    segmentations: str | None = None,
    rois: str | None = None,
) -> Found:
    """Eight classes without official splits; regions `lesion` and `lesion_box` of Kvasir-SEG, `roi` of Chung et al.

    Args:
        folder: `kvasir-dataset-v2` or the one that holds it.
        classes: the folders to read; by default all eight.
        positive: those of them that count as `positive`, the others then as `negative`; by default each is a class.
        segmentations: the folder of Kvasir-SEG, whose images then stand for the class `polyps` (jha2020kvasir).
        rois: the folder of the masks of Chung et al. for this data set, carried back to the stored images. Which classes
            they set against each other is not documented; a mask finds its image by name in any of them.

    Raises:
        InputError: unknown class, `segmentations` without the class `polyps` or together with `rois` (whose names are
            those of version 2), no such folder, unreadable boxes.
    """
    chosen = _chosen("classes", classes, _CLASSES)
    if segmentations is not None and (rois is not None or _POLYPS not in chosen):
        raise InputError(
            "segmentations goes neither with rois, which are named after the images of version 2, nor with classes that "
            f"leave out {_POLYPS!r}: Kvasir-SEG's polyps stand for those of version 2. Leave one of the options out."
        )
    samples, problems = _listed(folder, [name for name in chosen if segmentations is None or name != _POLYPS])
    regions: list[pd.DataFrame] = []
    notes = ["Version 2 has no official splits and names no patients."]
    if segmentations is not None:
        polyps, regions, found = _segmented(Path(segmentations).absolute())
        samples, problems = pd.concat([samples, polyps], ignore_index=True), [*problems, *found]
        notes.append("The polyps are those of Kvasir-SEG (jha2020kvasir), which replaced 13 of version 2.")
    label_of = _labels(chosen, positive)
    samples["label"] = samples["finding"].map(label_of)
    regions = [rows.assign(label=label_of[_POLYPS]) for rows in regions]
    if rois is not None:
        masks, found, unclear = read_rois(rois, samples, samples["image"].map(stem), CROPPED)
        regions, problems, notes = [masks], [*problems, *found], [*notes, *unclear]
    return Found(
        samples=samples,
        form=LabelForm(classes=chosen if positive is None else ("negative", "positive")),
        regions=pd.concat(regions or [region_rows([], None, "mask", [])], ignore_index=True),
        notes=(*notes, *count_notes(samples["finding"], dict.fromkeys(chosen, _EACH))),
        problems=problems,
    )


def _chosen(option: str, given: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    for name in given or ():
        if name not in known:
            raise InputError(f"{option}: {name!r} is not one of the classes. {near_names(str(name), known)}")
    return tuple(name for name in known if given is None or name in given)


def _labels(classes: Sequence[str], positive: Sequence[str] | None) -> dict[str, str]:
    """Folder -> label."""
    if positive is None:
        return {name: name for name in classes}
    chosen = _chosen("positive", positive, classes)
    return {name: "positive" if name in chosen else "negative" for name in classes}


def _listed(root: Path, classes: Sequence[str]) -> tuple[pd.DataFrame, list[Problem]]:
    """The images of version 2, in the folder or in the one that its archive unpacks to."""
    within = f"{_TOP}/" if (root / _TOP).is_dir() else ""
    problems = unexpected(root, within, _CLASSES)
    rows: list[tuple[str, str, str]] = []
    for name in classes:
        names = pictures(root / within / name)
        rows += [(f"{name}/{stem(file)}", f"{within}{name}/{file}", name) for file in names]
        if not names:
            problems.append(Problem(f"{within}{name} is missing or holds no pictures."))
    return pd.DataFrame(rows, columns=["sample_id", "image", "finding"], dtype=object), problems


def _segmented(place: Path) -> tuple[pd.DataFrame, list[pd.DataFrame], list[Problem]]:
    """The samples of Kvasir-SEG with absolute paths, its regions, and what is wrong with it."""
    if not (place / "images").is_dir():
        raise InputError(f"segmentations: {place} holds no folder 'images'. Give the folder of Kvasir-SEG.")
    images, masks = (_files(place, content) for content in ("images", "masks"))
    boxes, problems = _boxes(place / "kavsir_bboxes.json")
    problems += unpaired(images, masks, ["name"], "segmentation mask")
    problems += unpaired(images, boxes, ["name"], "box list")
    known = [rows[rows["name"].isin(images["name"])] for rows in (masks, boxes)]
    regions = [
        region_rows(known[0]["sample_id"], None, "mask", known[0]["path"]),
        region_rows(known[1]["sample_id"], None, "box", known[1]["data"], region="lesion_box"),
    ]
    samples = pd.DataFrame({"sample_id": images["sample_id"], "image": images["path"]}, dtype=object)
    return samples.assign(finding=_POLYPS), regions, problems


def _files(place: Path, content: str) -> pd.DataFrame:
    names = pictures(place / content)
    rows = [(stem(file), f"{_POLYPS}/{stem(file)}", str(place / content / file)) for file in names]
    return pd.DataFrame(rows, columns=["name", "sample_id", "path"], dtype=object)


def _boxes(path: Path) -> tuple[pd.DataFrame, list[Problem]]:
    """The boxes of each image of Kvasir-SEG as text, and problems for entries of another form."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as the boxes of Kvasir-SEG ({error}).") from error
    if not isinstance(entries, dict):
        raise InputError(f"{path}: an object with an entry for each image is expected, got {type(entries).__name__}.")
    texts = {name: _box_text(entry) for name, entry in entries.items()}
    odd = [name for name, text in texts.items() if text is None]
    known = {name: text for name, text in texts.items() if text is not None}
    rows = [(name, f"{_POLYPS}/{name}", text, f"{path.name}: {name}") for name, text in known.items()]
    boxes = pd.DataFrame(rows, columns=["name", "sample_id", "data", "path"], dtype=object)
    if not odd:
        return boxes, []
    expected = f'{{"bbox": [{{{", ".join(_CORNERS)}}}, ...]}}'
    text = f"{path}: {len(odd)} entries are not of the form {expected}: {some(odd, len(odd))}."
    return boxes, [Problem(text, frozenset(f"{_POLYPS}/{name}" for name in odd))]


def _box_text(entry: Any) -> str | None:
    """`x0 y0 x1 y1;...` of one entry, None where it has another form."""
    found = entry.get("bbox") if isinstance(entry, dict) else None
    if not isinstance(found, list) or not all(isinstance(box, dict) and set(_CORNERS) <= box.keys() for box in found):
        return None
    return ";".join(" ".join(str(box[corner]) for corner in _CORNERS) for box in found)
