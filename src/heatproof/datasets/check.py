"""Look at every file of a data set before anything long begins."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from heatproof.datasets.cells import some
from heatproof.datasets.table import SPLITS, Dataset
from heatproof.errors import HeatproofError
from heatproof.images.read import read_image
from heatproof.images.regions import check_region, read_region, sticks_out

_STATES = ("positive", "negative", "unknown")  # of a label of a multi-label data set
# what was seen of an annotation; the last three are no fault, but seldom meant
_SEEN = ("sample_id", "region", "label", "reader", "kind", "pixels", "blank", "whole", "cut")
_SUSPECT = {
    "blank": "a mask has no pixel, so it counts as empty",
    "whole": "it covers the whole image",
    "cut": "it sticks out of the image and is cut there",
}


@dataclass(frozen=True, eq=False)
class DatasetCheck:
    """What a data set holds and what is wrong with it.

    `counts`: images a class (row) and split (column; `none` where undecided); of a multi-label data set the columns are
    `<split> positive`, `<split> negative` and `<split> unknown`. `patients`: patients a split. `regions`: a row a region
    and label (index: the region; `label` is "" where it holds for every one) with its `kinds`, the number of `readers`,
    the samples that are `annotated` and how many of them are `empty`. `failures`: sample_id, stage (`image`, or the kind
    of the region), error (its class), message, with paths relative to the data set's folder. `notes`: those of the data
    set, then what of its regions is no fault but seldom meant.
    """

    counts: pd.DataFrame
    patients: "pd.Series[int]"
    regions: pd.DataFrame
    failures: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether every file could be read."""
        return self.failures.empty


def check_dataset(dataset: Dataset, *, progress: bool = False) -> DatasetCheck:
    """Read every image and region of a data set; a bad one becomes a row of `failures`, never an exception."""
    from rich.progress import track

    regions_of = dict(iter(dataset.regions.groupby("sample_id")))
    failures: list[dict[str, str]] = []
    looks: list[dict[str, Any]] = []
    samples = dataset.samples[["sample_id", "image"]].itertuples(index=False)
    for sample_id, image in track(samples, "Checking files", total=len(dataset), disable=not progress):
        size = _image_size(sample_id, image, failures)
        looks += [_look(row, size, failures) for row in regions_of.get(sample_id, dataset.regions[:0]).itertuples()]
    for failure in failures:
        failure["message"] = failure["message"].replace(f"{dataset.root}/", "")
    split = dataset.samples["split"].where(dataset.samples["split"].notna(), "none")
    seen = pd.DataFrame(looks, columns=list(_SEEN))
    return DatasetCheck(
        counts=_class_counts(dataset, split),
        patients=dataset.samples.groupby(split)["patient_id"].nunique(),
        regions=_region_counts(seen),
        failures=pd.DataFrame(failures, columns=["sample_id", "stage", "error", "message"]),
        notes=(*dataset.notes, *_suspicions(seen)),
    )


def _class_counts(dataset: Dataset, split: "pd.Series[str]") -> pd.DataFrame:
    splits = [name for name in (*SPLITS, "none") if (split == name).any()]
    classes = pd.Index(dataset.classes, name="label")
    if dataset.task == "multiclass":
        return pd.crosstab(dataset.samples["label"], split).reindex(index=classes, columns=splits, fill_value=0)
    targets = dataset.targets()
    states = dict(zip(_STATES, (targets == 1, targets == 0, np.isnan(targets)), strict=True))
    counts = {f"{name} {state}": seen[split == name].sum(axis=0) for name in splits for state, seen in states.items()}
    return pd.DataFrame(counts, index=classes)


def _image_size(sample_id: str, image: str, failures: list[dict[str, str]]) -> tuple[int, int] | None:
    try:
        return read_image(image).size
    except HeatproofError as error:
        failures.append(_failure(sample_id, "image", error))
        return None


def _look(row: Any, size: tuple[int, int] | None, failures: list[dict[str, str]]) -> dict[str, Any]:
    """One annotation and the pixels it covers, NaN where that cannot be known; without an image only the row is read."""
    found = {"pixels": np.nan, "blank": False, "whole": False, "cut": False}
    try:
        if size is None:
            check_region(row.kind, row.data)
        else:
            mask = read_region(row.kind, row.data, size)
            blank, cut = row.kind == "mask" and not mask.any(), sticks_out(row.kind, row.data, size)
            found = {"pixels": int(mask.sum()), "blank": blank, "whole": bool(mask.all()), "cut": cut}
    except HeatproofError as error:
        failures.append(_failure(row.sample_id, row.kind, error))
    named = {name: getattr(row, name) for name in ("sample_id", "region", "label", "reader", "kind")}
    return {**named, "label": "" if pd.isna(row.label) else row.label, **found}


def _region_counts(seen: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (region, label), part in seen.groupby(["region", "label"]):
        pixels = part.groupby("sample_id")["pixels"].agg(lambda rows: rows.sum(skipna=False))  # unknown where one is
        rows.append(
            {
                "region": region,
                "label": label,
                "kinds": ", ".join(sorted(set(part["kind"]))),
                "readers": part["reader"].nunique(dropna=False),
                "annotated": len(pixels),
                "empty": int((pixels == 0).sum()),
            }
        )
    return pd.DataFrame(rows, columns=["region", "label", "kinds", "readers", "annotated", "empty"]).set_index("region")


def _suspicions(seen: pd.DataFrame) -> Iterator[str]:
    for column, what in _SUSPECT.items():
        for region, part in seen.groupby("region"):
            samples, total = part["sample_id"][part[column].astype(bool)].unique(), part["sample_id"].nunique()
            if len(samples):
                yield f"Region {region!r}, {len(samples)} of {total} images: {what} ({some(samples, len(samples))})."


def _failure(sample_id: str, stage: str, error: HeatproofError) -> dict[str, str]:
    return {"sample_id": sample_id, "stage": stage, "error": type(error).__name__, "message": str(error)}
