"""The models of a study: built and checked before anything long begins, trained or loaded, and their predictions."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatproof.datasets.labels import label_column
from heatproof.datasets.table import Dataset
from heatproof.errors import HeatproofError, InputError
from heatproof.images.geometry import Geometry
from heatproof.images.read import read_image
from heatproof.models import Classifier
from heatproof.models.checkpoint import save_checkpoint
from heatproof.models.classifier import Task
from heatproof.models.sources import load_classifier
from heatproof.study.files import whole_folder
from heatproof.study.recipe import ModelSpec, Recipe, TrainingSpec
from heatproof.study.writing import Failures, failure
from heatproof.training.fit import check_trainable, fit
from heatproof.training.options import Options
from heatproof.training.performance import performance
from heatproof.training.predict import predict

_OWN = ("task", "image_size", "channels", "mean", "std", "fit", "short_side")
TRAINING = "training"  # folder of a run that holds the models being trained
_LOCAL = re.compile(r"[./~$]")  # how a path on this machine begins, after the prefix


def build_model(recipe: Recipe, spec: ModelSpec, classes: Sequence[str], task: Task = "multiclass") -> Classifier:
    """The model as its source gives it, before training, in evaluation mode on the CPU.

    Args:
        recipe: the study.
        spec: one of its models.
        classes: those of the data set.
        task: that of the data set, which the model has where `spec` says nothing.

    Raises:
        InputError: the source or its configuration cannot be, its classes are not those of the data, its outputs differ
            from them in number, or it cannot be trained as the recipe says.
    """
    own = {name: value for name in _OWN if (value := getattr(spec, name)) is not None}
    if task == "multilabel":
        own.setdefault("task", task)
    try:
        clf = load_classifier(
            _source(recipe, spec.source), classes=list(classes), seed=recipe.seed, **own, **spec.config
        )
        _check_outputs(clf)
        if spec.training is not None:
            check_trainable(clf, Options.of(**_training(spec.training, recipe)))
    except HeatproofError as error:
        raise InputError(f"models: {spec.name}: {error}") from error
    return clf


def _source(recipe: Recipe, source: str) -> str:
    """The source with a path in it counting from the recipe's folder."""
    prefix, colon, rest = source.partition(":") if re.match(r"\w+:", source) else ("", "", source)
    return f"{prefix}{colon}{recipe.path(rest)}" if not colon or _LOCAL.match(rest) else source


def _check_outputs(clf: Classifier) -> None:
    """One forward pass: the classifier itself refuses outputs that differ from the classes."""
    if clf.preprocessing.mean is None:
        raise InputError("its normalisation is unknown: give mean and std.")
    with torch.no_grad():
        clf(blank_images(clf, 1))


def blank_images(clf: Classifier, count: int) -> torch.Tensor:
    """Model inputs of no content, `[count, C, H, W]`, for checks and timings."""
    return torch.zeros(count, clf.preprocessing.channels, *clf.preprocessing.image_size, device=clf.device)


def finish_model(
    folder: Path,
    clf: Classifier,
    spec: ModelSpec,
    dataset: Dataset,
    recipe: Recipe,
    *,
    note: Callable[[Failures], None],
    progress: bool,
) -> None:
    """Train `clf` where its recipe says so, and save it in `folder`; `note` takes the images that training left out."""
    if spec.training is None:
        with whole_folder(folder) as unfinished:
            save_checkpoint(clf, unfinished)
        return
    # beside the models: what begins with TEMPORARY is removed at the next start, and a training goes on then
    place = folder.parent.parent / TRAINING / folder.name
    try:
        result = fit(clf, dataset, **_training(spec.training, recipe), progress=progress, folder=place, resume=True)
    except InputError as error:
        raise InputError(f"models: {spec.name}: {error}") from error
    note(as_rows(result.failures, "training"))
    folder.parent.mkdir(parents=True, exist_ok=True)
    place.replace(folder)
    if not any(place.parent.iterdir()):
        place.parent.rmdir()


def _training(spec: TrainingSpec, recipe: Recipe) -> dict[str, Any]:
    """The options of `fit`."""
    return {**spec.model_dump(), "seed": recipe.seed, "device": recipe.device}


@dataclass(frozen=True)
class Batch:
    """Images that could be read: their ids, model inputs `[n, C, H, W]` on the CPU, and geometries."""

    ids: list[str]
    images: Tensor
    geometries: list[Geometry]


def read_batch(clf: Classifier, dataset: Dataset, ids: Sequence[str], failures: Failures, stage: str) -> Batch:
    """Read the images of `ids`; one that cannot be read is left out and added to `failures`."""
    found: list[tuple[str, Tensor, Geometry]] = []
    for sample in ids:
        try:
            found.append((sample, *clf.preprocessing(read_image(dataset.row(sample)["image"]))))
        except HeatproofError as error:
            failures.append(failure(error, stage, sample_id=sample))
    size = (0, clf.preprocessing.channels, *clf.preprocessing.image_size)
    images = torch.stack([image for _, image, _ in found]) if found else torch.empty(size)
    return Batch([sample for sample, _, _ in found], images, [geometry for _, _, geometry in found])


def predictions_of(clf: Classifier, dataset: Dataset, spec: ModelSpec) -> tuple[pd.DataFrame, Failures]:
    """What `clf` says of the validation and test images (columns: `Run.predictions`), and the images it could not see."""
    seen = dataset.samples["split"].isin(["val", "test"])
    rest = replace(dataset, samples=dataset.samples[seen].reset_index(drop=True))
    found = predict(clf, rest, batch_size=spec.batch_size or 1, device=clf.device)
    table = found.table
    table.insert(2, "model", spec.name)
    return table, as_rows(found.failures, "prediction")


def as_rows(failures: pd.DataFrame, stage: str) -> Failures:
    """Another floor's table of bad files (sample_id, error, message) as rows of the failures table."""
    named = failures[["sample_id", "error", "message"]].astype(str).to_dict("records")
    return [{**{str(key): str(value) for key, value in row.items()}, "stage": stage} for row in named]


def performance_of(predictions: pd.DataFrame, classes: Sequence[str]) -> dict[str, Any]:
    """How well one model classifies the test images among its predictions; with intervals over patients."""
    test = predictions[predictions["split"] == "test"]
    probabilities = test[[f"p_{name}" for name in classes]].to_numpy(dtype=np.float64)
    task: Task = "multilabel" if "labels" in test else "multiclass"
    truth: NDArray[Any]
    if task == "multilabel":
        truth = test[[label_column(name) for name in classes]].to_numpy(dtype=np.float64)
    else:
        truth = pd.Index(classes).get_indexer(pd.Index(test["label"]))
    return performance(truth, probabilities, list(classes), task=task, patients=test["patient_id"]).to_dict()
