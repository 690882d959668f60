"""What a classifier says of images."""

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from heatproof.checks import check_count
from heatproof.datasets.table import Dataset
from heatproof.errors import ImageError, InputError
from heatproof.models.classifier import Classifier
from heatproof.models.device import resolve_device
from heatproof.training.data import FAILURE_COLUMNS, failure, read_images


@dataclass(frozen=True, eq=False)
class Predictions:
    """What came out of `predict`.

    `table`: sample_id, patient_id, split, label, predicted (the class with the largest logit), then logit_<class>
    (float32) and p_<class> (softmax or sigmoid, float64) for every class. `failures`: images that could not be read:
    sample_id, stage, error, message.
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
        InputError: unknown classes, a model in training mode, outputs that differ from the classes, no such device.
    """
    if clf.classes is None:
        raise InputError(
            "predict names the classes, and this classifier knows none: Classifier(module, classes=[...])."
        )
    check_count("batch_size", batch_size)
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
    table = _table(clf, dataset.samples.iloc[seen], torch.cat(logits))
    return Predictions(table, pd.DataFrame(failures, columns=FAILURE_COLUMNS))


def _logits(clf: Classifier, waiting: list[Tensor], place: torch.device) -> Tensor:
    """The logits of the images that wait; they wait no more."""
    images = torch.stack(waiting).to(place)
    waiting.clear()
    with torch.no_grad():
        return clf(images).float().cpu()


def _table(clf: Classifier, samples: pd.DataFrame, logits: Tensor) -> pd.DataFrame:
    classes = clf.classes or ()
    table = samples[["sample_id", "patient_id", "split", "label"]].reset_index(drop=True)
    table["predicted"] = [classes[k] for k in logits.argmax(1).tolist()]
    probabilities = clf.probabilities(logits.double())
    columns = {f"logit_{name}": logits[:, k].numpy() for k, name in enumerate(classes)}
    columns |= {f"p_{name}": probabilities[:, k].numpy() for k, name in enumerate(classes)}
    return table.assign(**columns)
