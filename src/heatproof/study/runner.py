"""Run a study, or go on with one that was interrupted."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch

from heatproof.datasets.table import Dataset
from heatproof.errors import InputError
from heatproof.models import Classifier
from heatproof.models.checkpoint import load_checkpoint
from heatproof.study.chunks import Bench, Chunk, metrics_of
from heatproof.study.cohorts import Comparing
from heatproof.study.data import PHANTOM
from heatproof.study.display import Bar, Display
from heatproof.study.environment import changed_versions
from heatproof.study.explaining import Explaining
from heatproof.study.files import TEMPORARY, locked, remove_unfinished, storage_errors
from heatproof.study.loading import load_recipe
from heatproof.study.models import finish_model, performance_of, predictions_of
from heatproof.study.plan import ModelPlan, in_words, total
from heatproof.study.preparation import Preparation, prepare, resume, write_start
from heatproof.study.recipe import MethodSpec, ModelSpec, Recipe
from heatproof.study.store import Run, finished
from heatproof.study.writing import write_json, write_table

# What may lie in a run folder whose study has not begun yet: an earlier start was interrupted.
_LEFTOVERS = (".lock", "failures", "data.json", "samples.parquet", "environment.json")


def run_study(
    recipe: str | Path | Recipe,
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    device: str | None = None,
    progress: bool = True,
) -> Run:
    """Run a study to its end; in a folder where it was interrupted, go on with what is missing.

    Args:
        recipe: a recipe, or its YAML file.
        out: the run folder, by default `runs/<name of the recipe>`.
        overrides: `key.path=value` for a recipe file, see `load_recipe`.
        device: `auto`, `cpu` or `cuda:N`, in place of the recipe's.
        progress: print the plan and the progress to standard error.

    Returns:
        The finished run. Single images, methods or metrics that failed are rows of `Run.failures`.

    Raises:
        InputError: the recipe or the data cannot be worked with, or the folder holds another study or is in use.
        StorageError: the disk is full; the same call goes on where it stopped.
    """
    recipe = _read(recipe, overrides, device)
    folder = Path(out) if out is not None else Path("runs") / recipe.name
    display = Display(progress)
    started = time.monotonic()
    _refuse_foreign(folder)
    with storage_errors(folder), locked(folder), _threads_restored():
        remove_unfinished(folder)
        prepared = _prepared(recipe, folder, display)
        plans = prepared.plans()
        _announce(prepared, plans, display)
        for spec in prepared.recipe.models:
            _ModelRun(folder, prepared, spec, plans[spec.name], display).run()
        _finish(folder)
    display.say(f"Finished in {in_words(time.monotonic() - started)}.")
    return Run(folder)


def plan_study(
    recipe: str | Path | Recipe, *, overrides: Sequence[str] = (), device: str | None = None, progress: bool = True
) -> dict[str, ModelPlan]:
    """Check everything and print the plan, without starting; model -> its predicted work.

    Raises:
        InputError: as `run_study`.
    """
    recipe = _read(recipe, overrides, device)
    with TemporaryDirectory() as folder, _threads_restored():
        prepared = prepare(recipe, Path(folder), progress=progress)
        plans = prepared.plans()
        _announce(prepared, plans, Display(progress))
    return plans


def _read(recipe: str | Path | Recipe, overrides: Sequence[str], device: str | None) -> Recipe:
    if isinstance(recipe, Recipe):
        if overrides:
            raise InputError("overrides change a recipe file; change the Recipe itself with model_copy(update=...).")
    else:
        recipe = load_recipe(recipe, overrides)
    return recipe if device is None else recipe.model_copy(update={"device": device})


def _refuse_foreign(folder: Path) -> None:
    if not folder.exists() or (folder / "study.yaml").is_file():
        return
    if not folder.is_dir():
        raise InputError(f"{folder} is a file; choose a folder for the run with --out.")
    foreign = [
        path.name for path in folder.iterdir()
        if path.name not in _LEFTOVERS and not path.name.startswith((PHANTOM, TEMPORARY))
    ]  # fmt: skip
    if foreign:
        raise InputError(f"{folder} is no run folder and not empty ({min(foreign)} ...). Choose another with --out.")


@contextmanager
def _threads_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _prepared(recipe: Recipe, folder: Path, display: Display) -> Preparation:
    if (folder / "study.yaml").is_file():
        prepared = resume(recipe, folder)
        display.say(f"Going on with {folder}: {_finished_share(prepared, folder)} are finished.")
        for line in changed_versions(Run(folder).environment):
            display.say(f"  {line}: numbers may differ in rounding from those that are there.")
        return prepared
    prepared = prepare(recipe, folder, progress=display.visible)
    write_start(prepared, folder)
    return prepared


def _finished_share(prepared: Preparation, folder: Path) -> str:
    recipe = prepared.recipe
    chunks = -(-len(prepared.explained) // recipe.chunk_size)
    files = chunks + bool(metrics_of(recipe, cohort=True))
    done = len(finished(folder / "scores", "*.parquet"))
    return f"{done / (files * len(recipe.models) * len(recipe.methods)):.0%} of maps and scores"


def _announce(prepared: Preparation, plans: dict[str, ModelPlan], display: Display) -> None:
    """What will be done, how many forward passes that takes, and about how long."""
    recipe, counts = prepared.recipe, prepared.dataset.samples["split"].value_counts()
    splits = ", ".join(f"{counts.get(name, 0)} {name}" for name in ("train", "val", "test"))
    display.say(f"{recipe.name}: {splits} images of {prepared.dataset.name}; {len(prepared.explained)} are explained,")
    display.say(f"  {len(recipe.models)} models × {len(recipe.methods)} methods × {len(recipe.metrics)} metrics.")
    for row in prepared.failures:
        display.say(f"  left out: {row['sample_id']} ({row['stage']}): {row['message']}")
    for name, plan in plans.items():
        display.say(f"  {name}: about {plan.passes:,} forward passes, {in_words(plan.time)}")
    passes, seconds = total(list(plans.values()))
    display.say(f"  together: about {passes:,} forward passes, {in_words(seconds)} on {recipe.device}")


@dataclass(frozen=True)
class _ModelRun:
    """One model's part of a study."""

    folder: Path
    prepared: Preparation
    spec: ModelSpec
    plan: ModelPlan
    display: Display

    def run(self) -> None:
        """Train or load, predict, explain and score; what is finished is left as it is."""
        bench = Bench(self.folder, self.prepared.recipe, self.spec, self._model(), self.prepared.dataset, {})
        self._predict(bench)
        predictions = pd.read_parquet(self.folder / "predictions" / f"{self.spec.name}.parquet")
        bench.targets.update(explained_targets(predictions, self.prepared.recipe.target, bench.dataset))
        self._explain(bench)

    def _model(self) -> Classifier:
        folder = self.folder / "models" / self.spec.name
        if not folder.is_dir():
            self.display.say(f"{self.spec.name}: {'training' if self.spec.training else 'used as it comes'}")
            recipe, dataset = self.prepared.recipe, self.prepared.dataset
            clf = self.prepared.models[self.spec.name]
            bench = Bench(self.folder, recipe, self.spec, clf, dataset, {})
            finish_model(
                folder, clf, self.spec, dataset, recipe,
                note=lambda rows: bench.write_failures("_training.parquet", rows), progress=self.display.visible,
            )  # fmt: skip
        return load_checkpoint(folder).to(self.prepared.recipe.device)

    def _predict(self, bench: Bench) -> None:
        path = self.folder / "predictions" / f"{self.spec.name}.parquet"
        if not path.is_file():
            self.display.say(f"{self.spec.name}: predicting")
            predictions, failures = predictions_of(bench.clf, bench.dataset, self.spec)
            bench.write_failures("_prediction.parquet", failures)
            write_table(path, predictions)
        quality = self.folder / "models" / self.spec.name / "performance.json"
        if not quality.is_file():
            write_json(quality, performance_of(pd.read_parquet(path), bench.dataset.classes))
        self.display.say(f"{self.spec.name}: {self._quality()}")

    def _quality(self) -> str:
        run = Run(self.folder)
        found = run.performance(self.spec.name)
        baseline = run.data["baseline_auroc"]
        beside = "" if baseline is None else f" (linear baseline {baseline:.2f})"
        return f"test accuracy {found['accuracy']:.2f}, AUROC {_number(found['auroc_macro'])}{beside}"

    def _explain(self, bench: Bench) -> None:
        members = [sample for sample in self.prepared.explained if bench.targets.get(sample)]
        size = bench.recipe.chunk_size
        parts = [tuple(members[start : start + size]) for start in range(0, len(members), size)]

        def chunks() -> Iterator[Chunk]:  # new ones each time, so that only one holds its images
            return (Chunk(bench, number, part) for number, part in enumerate(parts))

        whole = [Chunk(bench, None, tuple(members))] if metrics_of(bench.recipe, cohort=True) else []
        pieces = [
            (self._passes(chunk, method), Explaining(chunk, method).done)
            for chunk in (*chunks(), *whole)
            for method in bench.recipe.methods
        ]
        done = sum(passes for passes, finished in pieces if finished)
        with self.display.bar(self.spec.name, sum(passes for passes, _ in pieces), done) as bar:
            for number, chunk in enumerate(chunks(), 1):
                chunk.write_inputs()
                for piece in self._unfinished(chunk, f"chunk {number} of {len(parts)}", bar):
                    piece.run()
            for chunk in whole:
                for piece in self._unfinished(chunk, "all images together", bar):
                    Comparing(piece, list(chunks())).run()

    def _unfinished(self, chunk: Chunk, where: str, bar: Bar) -> Iterator[Explaining]:
        """What is left to do on a chunk; the bar tells what is being done, and how much was."""
        for method in chunk.bench.recipe.methods:
            piece = Explaining(chunk, method)
            if not piece.done:
                bar.show(f"{self.spec.name} · {method.label} · {where}")
                yield piece
                bar.advance(self._passes(chunk, method))

    def _passes(self, chunk: Chunk, method: MethodSpec) -> int:
        """The predicted forward passes of a method on a chunk."""
        cases = sum(len(chunk.bench.targets[sample]) for sample in chunk.members)
        return cases * (self.plan.comparing if chunk.number is None else self.plan.explaining)[method.label]


def explained_targets(
    predictions: pd.DataFrame, wanted: str | list[str], dataset: Dataset
) -> dict[str, tuple[int, ...]]:
    """The classes explained of each predicted image, by its id: as many as `Recipe.target` asks for, perhaps none."""
    classes = list(dataset.classes)
    ids = predictions["sample_id"].astype(str)
    if wanted == "predicted":
        logits = predictions[[f"logit_{name}" for name in classes]].to_numpy()
        return {sample: (int(place),) for sample, place in zip(ids, logits.argmax(axis=1), strict=True)}
    if wanted == "label":
        truth = dict(zip(dataset.samples["sample_id"].astype(str), dataset.targets(), strict=True))
        return {sample: tuple(int(place) for place in np.flatnonzero(truth[sample] == 1)) for sample in ids}
    named = [wanted] if isinstance(wanted, str) else wanted
    return dict.fromkeys(ids, tuple(classes.index(name) for name in named))


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.2f}"


def _finish(folder: Path) -> None:
    """The tables that join their parts; `failures.parquet` comes last and says that nothing is left to do."""
    run = Run(folder)
    write_table(folder / "predictions.parquet", run.predictions)
    write_table(folder / "failures.parquet", run.failures)
