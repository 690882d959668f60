"""What a classifier says of images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatproof.checks import check_count
from heatproof.datasets.labels import SEPARATOR, label_column
from heatproof.datasets.table import Dataset
from heatproof.errors import ImageError, InputError
from heatproof.models.classifier import Classifier
from heatproof.models.device import resolve_device
from heatproof.training.data import FAILURE_COLUMNS, failure, read_images, require_label, targets_for


@dataclass(frozen=True, eq=False)
class Predictions:
    """What came out of `predict`.

    `table`: sample_id, patient_id, split, then of a multi-class model label and predicted (the class with the largest
    logit), of a multi-label model labels and predicted (the classes with p of at least 0.5), both joined by `|`, and
    label_<class> (1, 0, or NaN where unknown) for every class. Of both: logit_<class> (float32) and p_<class> (softmax
    or sigmoid, float64) for every class. `failures`: images that could not be read: sample_id, stage, error, message.
    """

    table: pd.DataFrame
    failures: pd.DataFrame


def predict(
    clf: Classifier,
    dataset: Dataset,
    *,
    batch_size: int = 32,
    device: str | torch.device = "auto",
    workers: int = 0,
    progress: bool = False,
) -> Predictions:
    """Classify every sample of a data set, in float32; the classifier is afterwards where it was.

    Args:
        clf: a classifier with known classes, in evaluation mode.
        dataset: `dataset.subset("test")` for one split.
        batch_size: images a forward pass.
        device: `auto`, `cpu` or `cuda:N`.
        workers: threads that read images.
        progress: show a bar.

    Raises:
        InputError: unknown classes, a model in training mode, outputs that differ from the classes, no such device, a
            multi-class model where images have several labels, or a multi-label model of other classes than the data.
    """
    if clf.classes is None:
        raise InputError(
            "predict names the classes, and this classifier knows none: Classifier(module, classes=[...])."
        )
    check_count("batch_size", batch_size)
    truth = _truth(clf, dataset)
    place, home = resolve_device(device), clf.device
    seen: list[int] = []
    failures: list[dict[str, str]] = []
    waiting: list[Tensor] = []
    logits = [torch.empty(0, len(clf.classes))]
    try:
        clf.to(place)
        images = read_images(dataset, clf.preprocessing, workers=workers, progress=progress)
        for row, image in enumerate(images):
            if isinstance(image, ImageError):
                failures.append(failure(dataset.samples["sample_id"].iloc[row], image, dataset))
                continue
            seen.append(row)
            waiting.append(image)
            if len(waiting) == batch_size:
                logits.append(_logits(clf, waiting, place))
        if waiting:
            logits.append(_logits(clf, waiting, place))
    finally:
        clf.to(home)
    table = _table(clf, truth.iloc[seen], torch.cat(logits))
    return Predictions(table, pd.DataFrame(failures, columns=FAILURE_COLUMNS))


def _logits(clf: Classifier, waiting: list[Tensor], place: torch.device) -> Tensor:
    """The logits of the images that wait; they wait no more."""
    images = torch.stack(waiting).to(place)
    waiting.clear()
    with torch.no_grad():
        return clf(images).float().cpu()


def _truth(clf: Classifier, dataset: Dataset) -> pd.DataFrame:
    """Ids and labels as the predictions table has them."""
    classes = clf.classes or ()
    ids = dataset.samples[["sample_id", "patient_id", "split"]].reset_index(drop=True)
    if clf.task == "multiclass":
        require_label(dataset)
        return ids.assign(label=dataset.samples["label"].to_numpy())
    targets = targets_for(dataset, classes, clf.task)
    columns = {label_column(name): targets[:, k].astype(np.float64) for k, name in enumerate(classes)}
    return ids.assign(labels=_joined(targets == 1, classes), **columns)


def _table(clf: Classifier, truth: pd.DataFrame, logits: Tensor) -> pd.DataFrame:
    classes = clf.classes or ()
    table = truth.reset_index(drop=True)
    probabilities = clf.probabilities(logits.double())
    if clf.task == "multiclass":
        predicted = [classes[k] for k in logits.argmax(1).tolist()]
    else:
        predicted = _joined((probabilities >= 0.5).numpy(), classes)
    table.insert(4, "predicted", predicted)
    columns = {f"logit_{name}": logits[:, k].numpy() for k, name in enumerate(classes)}
    columns |= {f"p_{name}": probabilities[:, k].numpy() for k, name in enumerate(classes)}
    return table.assign(**columns)


def _joined(chosen: NDArray[np.bool_], classes: Sequence[str]) -> list[str]:
    return [SEPARATOR.join(name for name, one in zip(classes, row, strict=True) if one) for row in chosen]
