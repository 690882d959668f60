"""Everything that must be right before a study begins: its data, its models and how it will compute."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from heatproof.datasets.table import Dataset
from heatproof.errors import InputError
from heatproof.models import Classifier
from heatproof.models.device import resolve_device
from heatproof.probing import check_precision, measure_batch_size
from heatproof.study import data
from heatproof.study.baseline import linear_baseline
from heatproof.study.defaults import check_registries
from heatproof.study.environment import environment, usable_cores
from heatproof.study.loading import key_path
from heatproof.study.models import blank_images, build_model
from heatproof.study.plan import ModelPlan, plan_model, seconds_a_pass
from heatproof.study.recipe import Recipe
from heatproof.study.store import FAILURE_COLUMNS, Run
from heatproof.study.trial import try_methods, try_metrics
from heatproof.study.writing import Failures, write_failures, write_json, write_table, write_yaml

# What the machine decides at the first start and a resumed run keeps; left out, they agree with anything.
_SETTLED = ("device", "threads", "batch_size")


@dataclass(frozen=True)
class Preparation:
    """A study that can begin: the settled recipe, the split data set, the explained ids and the untrained models.

    `unsupported` are pairs of model and method that cannot be, as far as that is known yet.
    """

    recipe: Recipe
    dataset: Dataset
    explained: list[str]
    models: dict[str, Classifier]
    unsupported: set[tuple[str, str]]
    failures: Failures  # of the data check; none where a run goes on, which has them already

    def plans(self) -> dict[str, ModelPlan]:
        """The predicted work of each model; times one forward pass."""
        return {
            spec.name: plan_model(
                self.recipe,
                spec,
                self.models[spec.name],
                self.dataset,
                cases=self._cases,
                seconds=seconds_a_pass(self.models[spec.name], spec.batch_size or 1, self.recipe.precision),
                unsupported={method for model, method in self.unsupported if model == spec.name},
            )
            for spec in self.recipe.models
        }

    @property
    def _cases(self) -> int:
        """How many maps a method makes of the explained images of one model."""
        target = self.recipe.target
        if target == "label":
            chosen = self.dataset.samples["sample_id"].isin(self.explained).to_numpy()
            return int((self.dataset.targets()[chosen] == 1).sum())
        return len(self.explained) * (1 if isinstance(target, str) else len(target))


def prepare(recipe: Recipe, folder: Path, *, progress: bool) -> Preparation:
    """Load, look at and split the data, build the models, and settle threads and micro-batches.

    Raises:
        InputError: anything of the recipe or the data that would stop the study later.
    """
    check_registries(recipe)
    recipe = _with(recipe, device=str(resolve_device(recipe.device)), threads=recipe.threads or usable_cores())
    check_precision(recipe.precision, torch.device(recipe.device))
    torch.set_num_threads(recipe.threads or 1)
    dataset = data.load_dataset(recipe, folder)
    models = _models(recipe, dataset)
    try_metrics(recipe, next(iter(models.values())))
    unsupported = {(name, method) for name, clf in models.items() for method in try_methods(recipe, clf)}
    failures, notes = data.check_files(dataset, progress=progress)
    dataset = replace(dataset, notes=notes)
    dataset = data.split(data.without_bad_files(dataset, pd.DataFrame(failures, columns=list(FAILURE_COLUMNS))), recipe)
    explained = data.choose_explained(dataset, recipe)
    return Preparation(_with_batch_sizes(recipe, models), dataset, explained, models, unsupported, failures)


def resume(recipe: Recipe, folder: Path) -> Preparation:
    """The preparation of a run folder that exists, under the recipe as it was settled then.

    Raises:
        InputError: the folder was made from another recipe or from other data; the message says what differs.
    """
    run = Run(folder)
    _refuse_another(run.recipe, recipe, folder)
    settled = run.recipe.in_folder(recipe.folder)
    check_precision(settled.precision, resolve_device(settled.device))
    torch.set_num_threads(settled.threads or 1)
    dataset = _as_it_was(data.load_dataset(settled, folder), run)
    explained = list(run.samples.loc[run.samples["explained"], "sample_id"])
    known = run.failures[run.failures["error"].str.startswith("Unsupported") & (run.failures["sample_id"] == "")]
    unsupported = set(zip(known["model"], known["method"], strict=True))
    return Preparation(settled, dataset, explained, _models(settled, dataset), unsupported, [])


def write_start(prepared: Preparation, folder: Path) -> None:
    """The files that say what the study is; `study.yaml` last, so that its existence says: this study has begun."""
    dataset, recipe = prepared.dataset, prepared.recipe
    write_failures(folder / "failures" / "_data.parquet", prepared.failures, root=dataset.root)
    baseline = None if recipe.data.phantom is None else linear_baseline(dataset)
    content = {
        "name": dataset.name,
        "task": dataset.task,
        "classes": list(dataset.classes),
        "notes": list(dataset.notes),
    }
    write_json(folder / "data.json", {**content, "baseline_auroc": baseline})
    write_table(folder / "samples.parquet", data.sample_table(dataset, prepared.explained))
    write_json(folder / "environment.json", environment(recipe.device))
    write_yaml(folder / "study.yaml", recipe.to_dict())


def _with(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update=changes)


def _models(recipe: Recipe, dataset: Dataset) -> dict[str, Classifier]:
    return {
        spec.name: build_model(recipe, spec, dataset.classes, dataset.task).to(recipe.device) for spec in recipe.models
    }


def _with_batch_sizes(recipe: Recipe, models: Mapping[str, Classifier]) -> Recipe:
    sizes = {
        spec.name: spec.batch_size
        or measure_batch_size(models[spec.name], blank_images(models[spec.name], 1), precision=recipe.precision)
        for spec in recipe.models
    }
    return _with(recipe, models=[spec.model_copy(update={"batch_size": sizes[spec.name]}) for spec in recipe.models])


def _refuse_another(stored: Recipe, given: Recipe, folder: Path) -> None:
    found = list(_differences(stored.to_dict(), given.to_dict()))
    if found:
        raise InputError(
            f"{folder} was made from another recipe:\n  " + "\n  ".join(found) + "\nChoose another folder with --out."
        )


def _differences(stored: Any, given: Any, where: tuple[str | int, ...] = ()) -> list[str]:
    """What differs, a line a value; what the machine settled agrees with a value left open."""
    if where and where[-1] in _SETTLED and given in (None, "auto"):
        return []
    if isinstance(stored, dict) and isinstance(given, dict):
        keys = [*stored, *(key for key in given if key not in stored)]
        return [line for key in keys for line in _differences(stored.get(key), given.get(key), (*where, key))]
    if isinstance(stored, list) and isinstance(given, list) and len(stored) == len(given):
        pairs = enumerate(zip(stored, given, strict=True))
        return [line for i, (old, new) in pairs for line in _differences(old, new, (*where, i))]
    return [] if stored == given else [f"{key_path(where)}: there {stored!r}, here {given!r}"]


def _as_it_was(dataset: Dataset, run: Run) -> Dataset:
    """The data set with the samples and splits that the run began with."""
    stored = run.samples.set_index("sample_id")
    samples = dataset.samples[dataset.samples["sample_id"].isin(stored.index)].reset_index(drop=True)
    column = "label" if dataset.task == "multiclass" else "labels"
    same = (
        column in stored and (samples[column].to_numpy() == stored.loc[samples["sample_id"], column].to_numpy()).all()
    )
    if len(samples) != len(stored) or not same:
        raise InputError(
            f"{run.path} was made from other data: its samples or labels are not those of {dataset.name!r} any more. "
            "Choose another folder with --out."
        )
    split = pd.Series(stored.loc[samples["sample_id"], "split"].to_numpy(), index=samples.index, dtype=object)
    return data.without_bad_files(replace(dataset, samples=samples).with_splits(split), run.failures)
