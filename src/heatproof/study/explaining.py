"""One method on one chunk: its maps, then the scores of the maps as stored.

The score file is written last; its existence says that the method is done here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatproof.errors import HeatproofError, UnsupportedModelError
from heatproof.explanation import explain
from heatproof.scoring import metrics, score_many
from heatproof.study.chunks import Chunk
from heatproof.study.recipe import MethodSpec, MetricSpec
from heatproof.study.store import SCORE_COLUMNS, read_arrays
from heatproof.study.writing import Failures, failure, write_arrays, write_table

Pair = tuple[int, int]  # the row of an image in its chunk, and the place of its map among the maps


@dataclass(frozen=True)
class Explaining:
    """The work of `method` on `chunk`; `failures` are those of the step in progress."""

    chunk: Chunk
    method: MethodSpec
    failures: Failures = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether the scores are written."""
        return self.chunk.file("scores", self.method.label, suffix=".parquet").is_file()

    def run(self) -> None:
        """Make what is missing of the maps and the scores."""
        stored = self._stored_maps()
        scores = pd.DataFrame(columns=list(SCORE_COLUMNS)) if stored is None else self._table(self._scores(stored))
        self._write_failures("scores")
        write_table(self.chunk.file("scores", self.method.label, suffix=".parquet"), scores)

    def _write_failures(self, step: str) -> None:
        """What failed in this step, before the step's own file appears."""
        rows = [*self.chunk.failures, *({**row, "method": self.method.label} for row in self.failures)]
        self.chunk.bench.write_failures(f"{self.method.label}/{step}-{self.chunk.name}.parquet", rows)
        self.failures.clear()

    def _stored_maps(self) -> Mapping[str, NDArray[Any]] | None:
        """The maps as stored, after making them if they are not there; None where the method cannot serve the model."""
        path = self.chunk.file("maps", self.method.label, suffix=".npz")
        if path.is_file():
            return read_arrays(path)
        ids, bench = self.chunk.batch.ids, self.chunk.bench
        try:
            found = self._explained(range(len(ids)))
        except UnsupportedModelError as error:
            self.failures.append(failure(error, "explain"))
            self._write_failures("maps")
            return None
        self._write_failures("maps")
        kept = [ids[row] for row in sorted(found)]
        maps = np.zeros((len(kept), *bench.clf.preprocessing.image_size), dtype=np.float32)
        for place, row in enumerate(sorted(found)):
            maps[place] = found[row].numpy()
        target = np.array([bench.targets[sample] for sample in kept], dtype=np.int64)
        write_arrays(path, maps=maps, target=target, sample_id=np.array(kept, dtype=np.str_))
        return read_arrays(path)

    def _explained(self, rows: Sequence[int]) -> dict[int, Tensor]:
        """Maps by row; where some of them fail, the rows are tried one by one, so that only what fails is lost."""
        bench, keys = self.chunk.bench, [self.chunk.batch.ids[row] for row in rows]
        if not keys:
            return {}
        try:
            maps = explain(
                bench.clf,
                self.chunk.batch.images[list(rows)].to(bench.clf.device),
                [bench.targets[key] for key in keys],
                method=self.method.name,
                keys=keys,
                batch_size=bench.spec.batch_size,
                seed=bench.recipe.seed,
                **self.method.options,
            )
        except UnsupportedModelError:
            raise
        except HeatproofError as error:
            if len(rows) > 1:
                return {row: found for one in rows for row, found in self._explained([one]).items()}
            self.failures.append(failure(error, "explain", sample_id=keys[0]))
            return {}
        return dict(zip(rows, maps.cpu(), strict=True))

    def _scores(self, stored: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
        """By metric a value for each readable member of the chunk, NaN where there is none."""
        row_of = {sample: row for row, sample in enumerate(self.chunk.batch.ids)}
        pairs = [
            (row_of[sample], place) for place, sample in enumerate(stored["sample_id"].tolist()) if sample in row_of
        ]
        annotated = self.chunk.regions[1]
        local = {spec.label for spec in self.chunk.bench.recipe.metrics if "roi" in metrics()[spec.name].needs}
        found = {spec.label: np.full(len(row_of), np.nan) for spec in self.chunk.bench.recipe.metrics}
        for needs_region in (False, True):
            wanted = [spec for spec in self.chunk.bench.recipe.metrics if (spec.label in local) == needs_region]
            usable = [pair for pair in pairs if annotated[pair[0]] or not needs_region]
            for (label, row), value in self._values(wanted, usable, stored).items():
                found[label][row] = value
        return found

    def _values(
        self, wanted: Sequence[MetricSpec], pairs: Sequence[Pair], stored: Mapping[str, NDArray[Any]]
    ) -> dict[tuple[str, int], float]:
        """(metric, row) -> value. Where that fails, each metric is tried alone, and then each image."""
        if not wanted or not pairs:
            return {}
        try:
            return self._asked(wanted, pairs, stored)
        except HeatproofError as error:
            if len(wanted) > 1:
                parts = [self._values([metric], pairs, stored) for metric in wanted]
            elif len(pairs) > 1:
                parts = [self._values(wanted, [pair], stored) for pair in pairs]
            else:
                sample = self.chunk.batch.ids[pairs[0][0]]
                self.failures.append(failure(error, "score", sample_id=sample, metric=wanted[0].label))
                return {}
        return {key: value for part in parts for key, value in part.items()}

    def _asked(
        self, wanted: Sequence[MetricSpec], pairs: Sequence[Pair], stored: Mapping[str, NDArray[Any]]
    ) -> dict[tuple[str, int], float]:
        bench, device = self.chunk.bench, self.chunk.bench.clf.device
        rows, places = [row for row, _ in pairs], [place for _, place in pairs]
        found = score_many(
            bench.clf,
            self.chunk.batch.images[rows].to(device),
            torch.from_numpy(stored["maps"][places]).to(device),
            metrics=[{**metric.options, "metric": metric.name, "as": metric.label} for metric in wanted],
            explain=(self.method.name, self.method.options),
            targets=torch.from_numpy(stored["target"][places]).to(device),
            roi=torch.from_numpy(self.chunk.regions[0][rows]).to(device),
            keys=[self.chunk.batch.ids[row] for row in rows],
            batch_size=bench.spec.batch_size,
            seed=bench.recipe.seed,
        )
        return {(label, row): float(v) for label, values in found.items() for row, v in zip(rows, values, strict=True)}

    def _table(self, values: Mapping[str, NDArray[np.float64]]) -> pd.DataFrame:
        """One row a member and metric, columns `SCORE_COLUMNS`."""
        bench, ids = self.chunk.bench, self.chunk.batch.ids
        common = {
            "sample_id": ids,
            "patient_id": [str(bench.dataset.row(sample)["patient_id"]) for sample in ids],
            "model": bench.spec.name,
            "method": self.method.label,
            "target": [bench.dataset.classes[bench.targets[sample]] for sample in ids],
        }
        parts = [pd.DataFrame({**common, "metric": label, "value": column}) for label, column in values.items()]
        return pd.concat(parts, ignore_index=True)[list(SCORE_COLUMNS)]
