"""The run folder.

    run/ study.yaml  environment.json  data.json  samples.parquet  predictions.parquet  failures.parquet
         models/<model>/{model.safetensors, model.json, history.csv, performance.json}
         predictions/<model>.parquet      failures/**.parquet (a file for each step)
         inputs/<model>/<chunk>.npz       image uint8 [n, H, W], roi bool [n, H, W], annotated bool [n], sample_id;
                                          where each class has regions of its own, roi is [n, K, H, W], annotated [n, K]
         maps/<model>/<method>/<chunk>.npz    maps float32 [m, H, W], target int64 [m], sample_id [m], a row a target;
                                          grid int64 [m, 2], the size of the method's own map
         scores/<model>/<method>/<chunk>.parquet    one row a map and metric; its existence says: this chunk is done;
                                          whole.parquet has those of metrics that compare all samples with each other

Every file appears whole or not at all.
"""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from heatproof.errors import InputError, near_names
from heatproof.study.files import TEMPORARY
from heatproof.study.loading import parse_recipe, parse_yaml
from heatproof.study.recipe import Recipe

SCORE_COLUMNS = ("sample_id", "patient_id", "model", "method", "metric", "target", "value", "chance")
FAILURE_COLUMNS = ("sample_id", "model", "method", "metric", "stage", "error", "message")


class Run:
    """A run folder, finished or not, for reading; it shows what was there when first asked.

    Raises:
        InputError: `path` is not the folder of a study.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not (self.path / "study.yaml").is_file():
            raise InputError(f"{path}: not the folder of a study (it has no study.yaml).")
        self._read = lru_cache(maxsize=16)(read_arrays)  # finished chunks never change
        self._indices: dict[tuple[str, ...], dict[str, dict[int, tuple[Path, int]]]] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe as it ran, every default spelled out."""
        content = parse_yaml((self.path / "study.yaml").read_text(encoding="utf-8"))
        return parse_recipe(content, name=str(self.path / "study.yaml"))

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Versions, platform, device and threads of the machine that started the study."""
        return _json(self._existing("environment.json"))

    @cached_property
    def data(self) -> dict[str, Any]:
        """`name`, `task`, `classes` (the models' outputs), `notes`, `baseline_auroc` (of a linear model; or None)."""
        return _json(self._existing("data.json"))

    @property
    def classes(self) -> list[str]:
        """The class names, in the order of the models' outputs."""
        return list(self.data["classes"])

    @cached_property
    def samples(self) -> pd.DataFrame:
        """The usable samples: sample_id, patient_id, label, split, explained (bool), other columns of the manifest."""
        return pd.read_parquet(self._existing("samples.parquet"))

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """sample_id, patient_id, model, split, label, predicted, logit_<class>, p_<class>; val and test images."""
        parts = [self.path / "predictions" / f"{model}.parquet" for model in self.models]
        return _joined(parts, ("sample_id", "patient_id", "model", "split", "label", "predicted"))

    @cached_property
    def failures(self) -> pd.DataFrame:
        """What went wrong, named: columns `FAILURE_COLUMNS`, an empty text where one does not apply."""
        parts = finished(self.path / "failures", "*.parquet")
        return _joined(parts, FAILURE_COLUMNS).drop_duplicates(ignore_index=True)

    @cached_property
    def scores(self) -> pd.DataFrame:
        """One row a map and metric (columns `SCORE_COLUMNS`); NaN where a score is undefined or has no chance level."""
        folders = [self.path / "scores" / model / method for model in self.models for method in self.methods]
        return _joined([part for folder in folders for part in finished(folder, "*.parquet")], SCORE_COLUMNS)

    @property
    def models(self) -> list[str]:
        """The models, in the recipe's order."""
        return [model.name for model in self.recipe.models]

    @property
    def methods(self) -> list[str]:
        """The methods' columns, in the recipe's order."""
        return [method.label for method in self.recipe.methods]

    @property
    def metrics(self) -> list[str]:
        """The metrics' columns, in the recipe's order."""
        return [metric.label for metric in self.recipe.metrics]

    def performance(self, model: str) -> dict[str, Any]:
        """How well a model classifies the test images, as of `training.performance`."""
        return _json(self._existing("models", self.recipe.model(model).name, "performance.json"))

    def history(self, model: str) -> pd.DataFrame:
        """The course of a model's training, one row an epoch; empty for a model that was not trained."""
        path = self.path / "models" / self.recipe.model(model).name / "history.csv"
        return pd.read_csv(path) if path.is_file() else pd.DataFrame()

    def cases(self, model: str) -> list[str]:
        """The ids of the explained test images that this model has seen, in the order of the sample table."""
        return list(self._index("inputs", self.recipe.model(model).name))

    def image(self, model: str, sample_id: str) -> NDArray[np.uint8]:
        """The model's input before normalisation, uint8 `[H, W]`."""
        arrays, row = self._located("inputs", sample_id, model)
        return np.asarray(arrays["image"][row], dtype=np.uint8)

    def roi(self, model: str, sample_id: str, target: str | None = None) -> NDArray[np.bool_] | None:
        """The annotated region at the model's input, bool `[H, W]`; None where nobody annotated it.

        Where each class has regions of its own, that of `target`, and all together where it is None.
        """
        arrays, row = self._located("inputs", sample_id, model)
        roi, annotated = arrays["roi"][row], arrays["annotated"][row]
        if roi.ndim == 3:
            chosen = slice(None) if target is None else slice(place := self._class(target), place + 1)
            roi, annotated = roi[chosen].any(0), annotated[chosen].any()
        return np.asarray(roi, dtype=np.bool_) if annotated else None

    def map(self, model: str, method: str, sample_id: str, target: str | None = None) -> NDArray[np.float32] | None:
        """The map of a class as computed, float32 `[H, W]`; None where there is none (see `failures`).

        `target` may be left out: then it is the first of `targets`.
        """
        found = self._maps(model, method, sample_id)
        place = next(iter(found), None) if target is None else self._class(target)
        if place not in found:
            return None
        path, row = found[place]
        return np.asarray(self._read(path)["maps"][row], dtype=np.float32)

    def target(self, model: str, method: str, sample_id: str) -> str | None:
        """The class that the map explains, the first one of several; None where there is no map."""
        return next(iter(self.targets(model, method, sample_id)), None)

    def targets(self, model: str, method: str, sample_id: str) -> list[str]:
        """The classes that the maps of a sample explain."""
        return [self.classes[place] for place in self._maps(model, method, sample_id)]

    def reductions(self) -> pd.DataFrame:
        """Every number and option of the recipe that is not the default: part, option, value, default."""
        from heatproof.study.defaults import reductions

        return pd.DataFrame(reductions(self.recipe), columns=["part", "option", "value", "default"])

    @property
    def complete(self) -> bool:
        """Whether nothing is left to do."""
        return (self.path / "failures.parquet").is_file()

    def _existing(self, *parts: str) -> Path:
        path = self.path.joinpath(*parts)
        if not path.is_file():
            raise InputError(f"{self.path}: no {'/'.join(parts)} yet. Finish the study: heatproof study run RECIPE.")
        return path

    def _located(self, kind: str, sample_id: str, model: str) -> tuple[Mapping[str, NDArray[Any]], int]:
        """The chunk that holds a sample, and its row there."""
        where = self._index(kind, self.recipe.model(model).name)
        if sample_id not in where:
            raise InputError(f"{self.path}: {sample_id!r} is not among the explained images of {model!r}.")
        path, row = where[sample_id][0]
        return self._read(path), row

    def _maps(self, model: str, method: str, sample_id: str) -> dict[int, tuple[Path, int]]:
        """Explained class -> the chunk that holds its map, and the row there."""
        return self._index("maps", self.recipe.model(model).name, self.recipe.method(method).label).get(sample_id, {})

    def _class(self, name: str) -> int:
        if name not in self.classes:
            raise InputError(f"{self.path}: no class {name!r}. {near_names(name, self.classes)}")
        return self.classes.index(name)

    def _index(self, *parts: str) -> dict[str, dict[int, tuple[Path, int]]]:
        """Sample -> explained class (0 where the files have none) -> file and row."""
        if parts not in self._indices:
            found: dict[str, dict[int, tuple[Path, int]]] = {}
            for path in finished(self.path.joinpath(*parts), "*.npz"):
                for row, (sample, target) in enumerate(rows_of(path)):
                    found.setdefault(sample, {})[target] = path, row
            self._indices[parts] = found
        return self._indices[parts]


def load_run(path: str | Path) -> Run:
    """Open a run folder for reading, see `Run`."""
    return Run(path)


def finished(folder: Path, pattern: str) -> list[Path]:
    """The complete files under `folder`, in the order of their names."""
    return sorted(path for path in folder.rglob(pattern) if not path.name.startswith(TEMPORARY))


def read_arrays(path: Path) -> Mapping[str, NDArray[Any]]:
    """The arrays of one finished chunk."""
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def rows_of(path: Path) -> list[tuple[str, int]]:
    """The sample and the explained class (0 where there is none) of each row of a chunk, without reading its images."""
    with np.load(path, allow_pickle=False) as file:
        samples = file["sample_id"]
        targets = file["target"] if "target" in file else np.zeros(len(samples), dtype=np.int64)
        return [(str(sample), int(target)) for sample, target in zip(samples, targets, strict=True)]


def _joined(parts: Sequence[Path], columns: tuple[str, ...]) -> pd.DataFrame:
    """The tables that exist as one; empty ones do not count, without any the columns are there all the same."""
    frames = [frame for path in parts if path.is_file() and len(frame := pd.read_parquet(path))]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(columns))


def _json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
