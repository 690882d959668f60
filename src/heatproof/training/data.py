"""Images of a data set as tensors: read once, kept small, and every bad file named."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from heatproof.datasets.cells import some
from heatproof.datasets.labels import targets_of
from heatproof.datasets.table import Dataset
from heatproof.errors import ImageError, InputError
from heatproof.images.read import read_image
from heatproof.models.classifier import Preprocessing, Task
from heatproof.probing.progress import bar

FAILURE_COLUMNS = ["sample_id", "stage", "error", "message"]
"""The columns of every table of failures here; `stage` is `image`."""

_CHUNK = 32


class ImageTable(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Intensities of images, with their targets (`targets_for`).

    Every image is read once at the start, which finds the bad files; it stays in memory while `memory` lasts, and the
    rest is read again whenever asked for. Intensities are kept in half precision (an error below 3e-4, less than half a
    grey level of 8 bits), grey images as one channel; an image has the same values whether it was kept or not.

    Args:
        dataset: the samples, all of them.
        preprocessing: of the model; its normalisation is left to the caller.
        classes: the labels in the order of the model's outputs.
        task: of the model.
        memory: bytes, of which `kept_bytes` were used.
        workers: threads that read.
        progress: show a bar.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        task: Task = "multiclass",
        *,
        memory: int,
        workers: int = 0,
        progress: bool = False,
    ) -> None:
        self.channels = preprocessing.channels
        self.workers = workers
        self._intensities = replace(preprocessing, mean=(0.0,) * self.channels, std=(1.0,) * self.channels)
        targets = torch.from_numpy(targets_for(dataset, classes, task))
        self.kept_bytes = 0
        self._kept: dict[int, Tensor] = {}
        self._paths: list[str] = []
        self.sample_ids: list[str] = []
        found: list[Tensor] = []
        failures: list[dict[str, str]] = []
        rows = dataset.samples[["sample_id", "image"]].itertuples(index=False)
        images = read_images(dataset, self._intensities, workers=workers, progress=progress)
        for (sample_id, path), target, image in zip(rows, targets, images, strict=True):
            if isinstance(image, ImageError):
                failures.append(failure(sample_id, image, dataset))
                continue
            compact = _compact(image)
            if self.kept_bytes + compact.nbytes <= memory:
                self._kept[len(found)] = compact
                self.kept_bytes += compact.nbytes
            self._paths.append(path)
            self.sample_ids.append(str(sample_id))
            found.append(target)
        self.targets = torch.stack(found) if found else targets[:0]
        self.failures = pd.DataFrame(failures, columns=FAILURE_COLUMNS)

    @property
    def all_kept(self) -> bool:
        """Whether no file will be read again."""
        return len(self._kept) == len(self)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Several items at once (the loader asks for a batch so), read by `workers` threads."""
        if not self.workers or self.all_kept:
            return [self[index] for index in indices]
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(self.__getitem__, indices))

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Intensities in [0, 1], float16 `[C, H, W]`, and the targets `[K]`."""
        image = self._kept.get(index)
        if image is None:
            image = _compact(self._intensities(read_image(self._paths[index]))[0])
        return image.expand(self.channels, -1, -1), self.targets[index]


def read_images(
    dataset: Dataset, preprocessing: Preprocessing, *, workers: int = 0, progress: bool = False
) -> Iterator[Tensor | ImageError]:
    """The model input `[C, H, W]` of every sample in turn, or the error where its file cannot be read."""

    def read(path: str) -> Tensor | ImageError:
        try:
            return preprocessing(read_image(path))[0]
        except ImageError as error:
            return error

    paths = dataset.samples["image"].tolist()
    pool = ThreadPoolExecutor(workers) if workers else nullcontext()
    with pool as threads, bar("Reading images", len(paths), progress) as done:
        for start in range(0, len(paths), _CHUNK):  # in chunks, so that the threads do not run far ahead
            chunk = paths[start : start + _CHUNK]
            yield from threads.map(read, chunk) if threads else map(read, chunk)
            done(start + len(chunk))


def targets_for(dataset: Dataset, classes: Sequence[str], task: Task) -> NDArray[np.float32]:
    """What a model of these classes shall say of each sample, float32 `[N, K]`: 1 the class applies, 0 not, NaN unknown.

    A multi-class model needs one label an image; a multi-label model takes any data set (one label an image is a row
    with a single 1).

    Raises:
        InputError: a label that is no class of the model, or a multi-class model where images have several labels.
    """
    if task == "multiclass":
        require_label(dataset)
        _refuse_unknown({str(label) for label in dataset.samples["label"]} - set(classes), classes)
        return targets_of(dataset.samples, classes, task)
    _refuse_unknown(set(dataset.classes) - set(classes), classes)
    lacking = [name for name in classes if name not in dataset.classes]
    if lacking:
        raise InputError(f"Classes of the model that {dataset.name!r} says nothing about: {', '.join(lacking)}.")
    return dataset.targets()[:, [dataset.classes.index(name) for name in classes]]


def require_label(dataset: Dataset) -> None:
    """Raise `InputError` for a data set that a multi-class model cannot be trained or measured on."""
    if "label" not in dataset.samples:
        raise InputError(
            f"A multi-class model needs one label an image, and {dataset.name!r} has several: give the model "
            "task='multilabel', or the table a column `label`."
        )


def _refuse_unknown(labels: set[str], classes: Sequence[str]) -> None:
    if labels:
        raise InputError(
            f"Labels that are no classes of the model: {some(sorted(labels), len(labels))}. Its classes are "
            f"{', '.join(classes)}: load it with the classes of the data set, or leave these samples out."
        )


def failure(sample_id: str, error: ImageError, dataset: Dataset) -> dict[str, str]:
    """One row of failures; paths in the message count from the data set's folder."""
    message = str(error).replace(f"{dataset.root}/", "")
    return {"sample_id": sample_id, "stage": "image", "error": type(error).__name__, "message": message}


def _compact(image: Tensor) -> Tensor:
    half = image.half()
    grey: Any = (half == half[:1]).all()
    return half[:1].clone() if grey else half
