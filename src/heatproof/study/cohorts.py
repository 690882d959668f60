"""The metrics that compare all samples with each other: scored once a method has its maps of the whole test set.

A cohort is one map an image, as `heatproof.score` is given them: those of each image's own target, the predicted class or
its one label, and else those of one class. All images and maps of the test set are then in memory at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof.errors import HeatproofError
from heatproof.study.chunks import Chunk
from heatproof.study.explaining import Explaining, Pair, needs_region
from heatproof.study.store import read_arrays
from heatproof.study.writing import failure


@dataclass(frozen=True)
class Comparing:
    """The work on the `whole` test set, after that on the `chunks` that hold its maps."""

    whole: Explaining
    chunks: Sequence[Chunk]

    def run(self) -> None:
        """Score the maps as stored; without maps there are no scores."""
        stored = self._stored_maps()
        self.whole.finish({} if stored is None else self._scores(stored))

    def _stored_maps(self) -> Mapping[str, NDArray[Any]] | None:
        """The arrays of all chunks, one after another; None where the method cannot serve the model."""
        paths = [chunk.file("maps", self.whole.method.label, suffix=".npz") for chunk in self.chunks]
        parts = [read_arrays(path) for path in paths if path.is_file()]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else None

    def _scores(self, stored: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
        """As `Explaining.unscored`, filled. A metric that fails has no score in that cohort: its members need each other."""
        place_of = {case: place for place, case in enumerate(self.whole.cases)}
        found = self.whole.unscored()
        for spec in self.whole.chunk.metrics:
            for cohort in self._cohorts(self.whole.usable(stored, region=needs_region(spec))):
                try:
                    values = self.whole.asked([spec], cohort, stored)
                except HeatproofError as error:
                    self.whole.failures.append(failure(error, "score", metric=spec.label))
                    continue
                for (label, case), value in values.items():
                    found[label][place_of[case], 0] = value
        return found

    def _cohorts(self, pairs: Sequence[Pair]) -> list[list[Pair]]:
        bench = self.whole.chunk.bench
        target, task = bench.recipe.target, bench.dataset.task
        own = target == "predicted" or (target == "label" and task == "multiclass")
        groups: dict[int | None, list[Pair]] = {}
        for pair in pairs:
            (_, explained), _ = pair
            groups.setdefault(None if own else explained, []).append(pair)
        return list(groups.values())
