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
from heatproof.explanation import explain_native, methods, probing_precision, to_input_resolution
from heatproof.metrics.chance import chance
from heatproof.scoring import metrics, score_many
from heatproof.study.chunks import Chunk
from heatproof.study.recipe import MethodSpec, MetricSpec
from heatproof.study.references import options_of
from heatproof.study.store import SCORE_COLUMNS, read_arrays
from heatproof.study.writing import Failures, failure, write_arrays, write_table

Case = tuple[int, int]  # the row of an image in its chunk, and the class that is explained
Pair = tuple[Case, int]  # a case, and the place of its map among the maps


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
        self.finish({} if stored is None else self._scores(stored))

    def finish(self, values: Mapping[str, NDArray[np.float64]]) -> None:
        """Write the scores, see `_table`, after what failed."""
        self._write_failures("scores")
        write_table(self.chunk.file("scores", self.method.label, suffix=".parquet"), self._table(values))

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
            found = {}
            for rows in self._of_equal_number():
                found.update(self._explained(rows))
        except UnsupportedModelError as error:
            self.failures.append(failure(error, "explain"))
            self._write_failures("maps")
            return None
        self._write_failures("maps")
        cases = [case for case in self.cases if case in found]
        size, entry = bench.clf.preprocessing.image_size, methods()[self.method.name]
        maps, grid = np.zeros((len(cases), *size), dtype=np.float32), np.zeros((len(cases), 2), dtype=np.int64)
        for place, case in enumerate(cases):
            grid[place] = found[case].shape
            maps[place] = to_input_resolution(found[case][None, None], size, entry)[0, 0].numpy()
        target = np.array([target for _, target in cases], dtype=np.int64)
        names = np.array([ids[row] for row, _ in cases], dtype=np.str_)
        write_arrays(path, maps=maps, target=target, grid=grid, sample_id=names)
        return read_arrays(path)

    @property
    def cases(self) -> list[Case]:
        """What is to be explained, in the order of the chunk."""
        ids, targets = self.chunk.batch.ids, self.chunk.bench.targets
        return [(row, target) for row, sample in enumerate(ids) for target in targets[sample]]

    @property
    def _options(self) -> dict[str, Any]:
        """Those of the method, with the training images that it may need."""
        return options_of(self.method, self.chunk.bench, self.failures)

    def _of_equal_number(self) -> list[list[int]]:
        """The rows of the chunk that have something to explain, those with as many targets together."""
        groups: dict[int, list[int]] = {}
        for row, sample in enumerate(self.chunk.batch.ids):
            groups.setdefault(len(self.chunk.bench.targets[sample]), []).append(row)
        return [rows for count, rows in groups.items() if count]

    def _explained(self, rows: Sequence[int]) -> dict[Case, Tensor]:
        """Maps on the method's own grid, by case.

        Where some of them fail, the rows are tried one by one, so that only what fails is lost.
        """
        bench, keys = self.chunk.bench, [self.chunk.batch.ids[row] for row in rows]
        targets = [bench.targets[key] for key in keys]
        try:
            maps = explain_native(
                bench.clf,
                self.chunk.batch.images[list(rows)].to(bench.clf.device),
                torch.tensor(targets),
                method=self.method.name,
                keys=keys,
                batch_size=bench.spec.batch_size,
                precision=probing_precision(self.method.name, bench.recipe.precision),
                seed=bench.recipe.seed,
                **self._options,
            )
        except UnsupportedModelError:
            raise
        except HeatproofError as error:
            if len(rows) > 1:
                return {case: found for one in rows for case, found in self._explained([one]).items()}
            self.failures.append(failure(error, "explain", sample_id=keys[0]))
            return {}
        cases = [(row, target) for row, several in zip(rows, targets, strict=True) for target in several]
        return dict(zip(cases, maps.flatten(0, 1).cpu(), strict=True))

    def _scores(self, stored: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
        """By metric a value and its chance level for each case of the chunk, `[cases, 2]`, NaN where there is none."""
        place_of = {case: place for place, case in enumerate(self.cases)}
        found = self.unscored()
        for local in (False, True):
            wanted = [spec for spec in self.chunk.metrics if needs_region(spec) == local]
            usable = self.usable(stored, region=local)
            for (label, case), value in self._values(wanted, usable, stored).items():
                found[label][place_of[case], 0] = value
            for spec in wanted:
                if metrics()[spec.name].needs == {"roi"}:
                    for case, place in usable:
                        found[spec.label][place_of[case], 1] = self._chance(spec, case, tuple(stored["grid"][place]))
        return found

    def usable(self, stored: Mapping[str, NDArray[Any]], *, region: bool) -> list[Pair]:
        """The cases that have a map, and a region where that is needed."""
        row_of = {sample: row for row, sample in enumerate(self.chunk.batch.ids)}
        mapped = zip(stored["sample_id"].tolist(), stored["target"].tolist(), strict=True)
        pairs = [((row_of[sample], target), place) for place, (sample, target) in enumerate(mapped) if sample in row_of]
        return [pair for pair in pairs if not region or self.chunk.region(*pair[0]) is not None]

    def unscored(self) -> dict[str, NDArray[np.float64]]:
        """By metric NaN for the value and the chance level of each case, `[cases, 2]`."""
        return {spec.label: np.full((len(self.cases), 2), np.nan) for spec in self.chunk.metrics}

    def _chance(self, metric: MetricSpec, case: Case, grid: tuple[int, int]) -> float:
        """What random maps of this method's grid score; methods of one grid and upsampling share it."""
        upsampling = methods()[self.method.name].upsampling
        key = (metric.label, case, grid, upsampling)
        if key not in self.chunk.chances:
            self.chunk.chances[key] = chance(
                torch.from_numpy(self._roi(case))[None], metric=metric.name, grid=grid,
                keys=[self.chunk.batch.ids[case[0]]], seed=self.chunk.bench.recipe.seed, upsampling=upsampling,
                **metric.options,
            ).item()  # fmt: skip
        return self.chunk.chances[key]

    def _values(
        self, wanted: Sequence[MetricSpec], pairs: Sequence[Pair], stored: Mapping[str, NDArray[Any]]
    ) -> dict[tuple[str, Case], float]:
        """(metric, case) -> value. Where that fails, each metric is tried alone, and then each image."""
        if not wanted or not pairs:
            return {}
        try:
            return self.asked(wanted, pairs, stored)
        except HeatproofError as error:
            if len(wanted) > 1:
                parts = [self._values([metric], pairs, stored) for metric in wanted]
            elif len(pairs) > 1:
                parts = [self._values(wanted, [pair], stored) for pair in pairs]
            else:
                sample = self.chunk.batch.ids[pairs[0][0][0]]
                self.failures.append(failure(error, "score", sample_id=sample, metric=wanted[0].label))
                return {}
        return {key: value for part in parts for key, value in part.items()}

    def asked(
        self, wanted: Sequence[MetricSpec], pairs: Sequence[Pair], stored: Mapping[str, NDArray[Any]]
    ) -> dict[tuple[str, Case], float]:
        """(metric, case) -> value, of all pairs together."""
        bench, device = self.chunk.bench, self.chunk.bench.clf.device
        cases, places = [case for case, _ in pairs], [place for _, place in pairs]
        rows, local = [row for row, _ in cases], any(needs_region(metric) for metric in wanted)
        found = score_many(
            bench.clf,
            self.chunk.batch.images[rows].to(device),
            torch.from_numpy(stored["maps"][places]).to(device),
            metrics=[{**metric.options, "metric": metric.name, "as": metric.label} for metric in wanted],
            explain=(self.method.name, self._options),
            targets=torch.from_numpy(stored["target"][places]).to(device),
            roi=torch.from_numpy(np.stack([self._roi(case) for case in cases])).to(device) if local else None,
            keys=[self.chunk.batch.ids[row] for row in rows],
            batch_size=bench.spec.batch_size,
            precision=bench.recipe.precision,
            seed=bench.recipe.seed,
        )
        return {(label, c): float(v) for label, values in found.items() for c, v in zip(cases, values, strict=True)}

    def _roi(self, case: Case) -> NDArray[np.bool_]:
        found = self.chunk.region(*case)
        assert found is not None  # noqa: S101 only usable cases are compared with it
        return found

    def _table(self, values: Mapping[str, NDArray[np.float64]]) -> pd.DataFrame:
        """One row a case and metric, columns `SCORE_COLUMNS`; no row for no metric."""
        bench, cases = self.chunk.bench, self.cases
        ids = [self.chunk.batch.ids[row] for row, _ in cases]
        common = {
            "sample_id": ids,
            "patient_id": [str(bench.dataset.row(sample)["patient_id"]) for sample in ids],
            "model": bench.spec.name,
            "method": self.method.label,
            "target": [bench.dataset.classes[target] for _, target in cases],
        }
        parts = [
            pd.DataFrame({**common, "metric": label, "value": columns[:, 0], "chance": columns[:, 1]})
            for label, columns in values.items()
        ]
        columns = list(SCORE_COLUMNS)
        return pd.concat(parts, ignore_index=True)[columns] if parts else pd.DataFrame(columns=columns)


def needs_region(spec: MetricSpec) -> bool:
    """Whether the metric compares the map with a region."""
    return "roi" in metrics()[spec.name].needs
