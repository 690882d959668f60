"""A few test images under one model, which are finished together: their inputs.

The members of a chunk are fixed, so a resumed study computes the same batches as an undisturbed one.
"""

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heatproof.datasets.table import Dataset
from heatproof.errors import HeatproofError
from heatproof.models import Classifier
from heatproof.scoring import metrics
from heatproof.study.models import Batch, read_batch
from heatproof.study.recipe import MetricSpec, ModelSpec, Recipe
from heatproof.study.writing import Failures, failure, write_arrays, write_failures


def metrics_of(recipe: Recipe, *, cohort: bool) -> list[MetricSpec]:
    """The metrics that compare all samples with each other, or those that look at one sample at a time."""
    return [spec for spec in recipe.metrics if ("cohort" in metrics()[spec.name].needs) == cohort]


@dataclass(frozen=True)
class Bench:
    """One model of a study, ready to be explained; `targets` are the explained classes of each sample by its id."""

    run: Path
    recipe: Recipe
    spec: ModelSpec
    clf: Classifier
    dataset: Dataset
    targets: dict[str, tuple[int, ...]]
    references: dict[int, dict[str, Any]] = field(default_factory=dict)  # by their number, see `options_of`

    @cached_property
    def region_labels(self) -> list[str | None]:
        """The labels whose regions are kept apart: the classes where regions name theirs, or else one for all."""
        regions = self.dataset.regions
        own = regions.loc[regions["region"] == self.recipe.data.region, "label"].notna().any()
        return list(self.dataset.classes) if own and self.dataset.task == "multilabel" else [None]

    def write_failures(self, name: str, rows: Failures) -> None:
        """The file `name` of this model's failures."""
        named = [{**row, "model": self.spec.name} for row in rows]
        write_failures(self.run / "failures" / self.spec.name / name, named, root=self.dataset.root)


@dataclass(frozen=True)
class Chunk:
    """The chunk `number` with its members' ids; `failures` are the files of theirs that could not be read.

    Without a number it is the whole test set, which the metrics that compare all samples with each other look at.
    """

    bench: Bench
    number: int | None
    members: tuple[str, ...]
    failures: Failures = field(default_factory=list)
    chances: dict[Hashable, float] = field(default_factory=dict)  # chance levels that methods share

    @property
    def name(self) -> str:
        """The name of its files."""
        return "whole" if self.number is None else f"{self.number:05d}"

    @property
    def metrics(self) -> list[MetricSpec]:
        """The metrics that are scored on it."""
        return metrics_of(self.bench.recipe, cohort=self.number is None)

    def file(self, kind: str, *parts: str, suffix: str) -> Path:
        """`<run>/<kind>/<model>/<parts>/<chunk><suffix>`."""
        return self.bench.run.joinpath(kind, self.bench.spec.name, *parts, self.name + suffix)

    @cached_property
    def batch(self) -> Batch:
        """The members' images, read once for all methods."""
        return read_batch(self.bench.clf, self.bench.dataset, self.members, self.failures, "inputs")

    @cached_property
    def regions(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Regions `[n, R, H, W]` at the model's input, False where nobody annotated one, and annotated `[n, R]`.

        R is 1, one region for whatever is explained, or the number of classes where each has its own.
        """
        size, labels = self.bench.clf.preprocessing.image_size, self.bench.region_labels
        shape = (len(self.batch.ids), len(labels))
        roi, annotated = np.zeros((*shape, *size), np.bool_), np.zeros(shape, np.bool_)
        for row, place in np.ndindex(shape):
            found = self._region(row, labels[place])
            if found is not None:
                roi[row, place], annotated[row, place] = found, True
        return roi, annotated

    def region(self, row: int, target: int) -> NDArray[np.bool_] | None:
        """The region `[H, W]` that a map of the class `target` is compared with; None where nobody annotated it."""
        roi, annotated = self.regions
        place = target if roi.shape[1] > 1 else 0
        return roi[row, place] if annotated[row, place] else None

    def _region(self, row: int, label: str | None) -> NDArray[np.bool_] | None:
        data, sample, geometry = self.bench.recipe.data, self.batch.ids[row], self.batch.geometries[row]
        if data.region is None:
            return None
        try:
            found = self.bench.dataset.region(
                sample, data.region, geometry.source_size, label=label, readers=data.readers
            )
        except HeatproofError as error:
            self.failures.append(failure(error, "region", sample_id=sample))
            return None
        return None if found is None else geometry.mask(found)

    def write_inputs(self) -> None:
        """What the model sees of each member, for display, and its region."""
        path = self.file("inputs", suffix=".npz")
        if path.is_file():
            return
        raw = self.bench.clf.preprocessing.denormalize(self.batch.images).mean(1).clamp(0, 1)
        roi, annotated = self.regions if len(self.bench.region_labels) > 1 else (part[:, 0] for part in self.regions)
        self.bench.write_failures(f"_inputs-{self.name}.parquet", self.failures)
        image = (raw * 255).round().to(torch.uint8).numpy()
        write_arrays(path, image=image, roi=roi, annotated=annotated, sample_id=np.array(self.batch.ids, dtype=np.str_))
