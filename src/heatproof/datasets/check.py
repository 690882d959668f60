"""Look at every file of a data set before anything long begins."""

from dataclasses import dataclass
from typing import Any

import pandas as pd

from heatproof.datasets.table import SPLITS, Dataset, read_region
from heatproof.errors import HeatproofError
from heatproof.images.read import read_image, read_mask
from heatproof.images.regions import parse_boxes


@dataclass(frozen=True, eq=False)
class DatasetCheck:
    """What a data set holds and what is wrong with it.

    `counts`: images a class (row) and split (column; `none` where undecided). `patients`: patients a split. `regions`:
    a row for each, with its `annotated` samples and how many of them are `empty`. `failures`: sample_id, stage
    (`image`, `mask`, `box`), error (its class), message, with paths relative to the data set's folder.
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
    pixels: list[dict[str, Any]] = []
    samples = dataset.samples[["sample_id", "image"]].itertuples(index=False)
    for sample_id, image in track(samples, "Checking files", total=len(dataset), disable=not progress):
        size = _image_size(sample_id, image, failures)
        for row in regions_of.get(sample_id, dataset.regions[:0]).itertuples():
            covered = _region_pixels(row, size, failures)
            pixels.append({"sample_id": sample_id, "region": row.region, "pixels": covered})
    for failure in failures:
        failure["message"] = failure["message"].replace(f"{dataset.root}/", "")
    split = dataset.samples["split"].where(dataset.samples["split"].notna(), "none")
    return DatasetCheck(
        counts=_class_counts(dataset.samples["label"], split, dataset.classes),
        patients=dataset.samples.groupby(split)["patient_id"].nunique(),
        regions=_region_counts(pixels),
        failures=pd.DataFrame(failures, columns=["sample_id", "stage", "error", "message"]),
        notes=dataset.notes,
    )


def _class_counts(labels: "pd.Series[str]", split: "pd.Series[str]", classes: tuple[str, ...]) -> pd.DataFrame:
    counts = pd.crosstab(labels, split)
    columns = [name for name in (*SPLITS, "none") if name in counts]
    return counts.reindex(index=list(classes), columns=columns, fill_value=0)


def _image_size(sample_id: str, image: str, failures: list[dict[str, str]]) -> tuple[int, int] | None:
    try:
        return read_image(image).size
    except HeatproofError as error:
        failures.append(_failure(sample_id, "image", error))
        return None


def _region_pixels(row: Any, size: tuple[int, int] | None, failures: list[dict[str, str]]) -> float:
    """The pixels that one region row covers, NaN where that cannot be known; without an image only the row is read."""
    try:
        if size is not None:
            return float(read_region(row.kind, row.data, size).sum())
        return float(read_mask(row.data).sum() if row.kind == "mask" else len(parse_boxes(row.data)))
    except HeatproofError as error:
        failures.append(_failure(row.sample_id, row.kind, error))
        return float("nan")


def _region_counts(pixels: list[dict[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(pixels, columns=["sample_id", "region", "pixels"])
    total = frame.groupby(["region", "sample_id"])["pixels"].sum(min_count=1)
    by_region = total.groupby("region")
    return pd.DataFrame(
        {"annotated": by_region.size(), "empty": by_region.apply(lambda column: int((column == 0).sum()))}
    )


def _failure(sample_id: str, stage: str, error: HeatproofError) -> dict[str, str]:
    return {"sample_id": sample_id, "stage": stage, "error": type(error).__name__, "message": str(error)}
