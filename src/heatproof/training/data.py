"""Images of a data set as tensors: read once, kept small, and every bad file named."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from heatproof.datasets.table import Dataset, some
from heatproof.errors import ImageError, InputError
from heatproof.images.read import read_image
from heatproof.models.classifier import Preprocessing
from heatproof.probing.progress import bar

FAILURE_COLUMNS = ["sample_id", "stage", "error", "message"]
"""The columns of every table of failures here; `stage` is `image`."""

_CHUNK = 32


class ImageTable(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Intensities of images, with the number of their class.

    Every image is read once at the start, which finds the bad files; it stays in memory while `memory` lasts, and the
    rest is read again whenever asked for. Intensities are kept in half precision (an error below 3e-4, less than half a
    grey level of 8 bits), grey images as one channel; an image has the same values whether it was kept or not.

    Args:
        dataset: the samples, all of them.
        preprocessing: of the model; its normalisation is left to the caller.
        classes: the labels in the order of the model's outputs.
        memory: bytes, of which `kept_bytes` were used.
        workers: threads that read.
        progress: show a bar.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocessing: Preprocessing,
        classes: Sequence[str],
        *,
        memory: int,
        workers: int = 0,
        progress: bool = False,
    ) -> None:
        self.channels = preprocessing.channels
        self.workers = workers
        self._intensities = replace(preprocessing, mean=(0.0,) * self.channels, std=(1.0,) * self.channels)
        labels = label_indices(dataset.samples["label"], classes)
        self.kept_bytes = 0
        self._kept: dict[int, Tensor] = {}
        self._paths: list[str] = []
        self.labels: list[int] = []
        failures: list[dict[str, str]] = []
        rows = dataset.samples[["sample_id", "image"]].itertuples(index=False)
        images = read_images(dataset, self._intensities, workers=workers, progress=progress)
        for (sample_id, path), label, image in zip(rows, labels, images, strict=True):
            if isinstance(image, ImageError):
                failures.append(failure(sample_id, image, dataset))
                continue
            compact = _compact(image)
            if self.kept_bytes + compact.nbytes <= memory:
                self._kept[len(self.labels)] = compact
                self.kept_bytes += compact.nbytes
            self._paths.append(path)
            self.labels.append(label)
        self.failures = pd.DataFrame(failures, columns=FAILURE_COLUMNS)

    @property
    def all_kept(self) -> bool:
        """Whether no file will be read again."""
        return len(self._kept) == len(self.labels)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Several items at once (the loader asks for a batch so), read by `workers` threads."""
        if not self.workers or self.all_kept:
            return [self[index] for index in indices]
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(self.__getitem__, indices))

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Intensities in [0, 1], float16 `[C, H, W]`, and the class."""
        image = self._kept.get(index)
        if image is None:
            image = _compact(self._intensities(read_image(self._paths[index]))[0])
        return image.expand(self.channels, -1, -1), self.labels[index]


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


def label_indices(labels: "pd.Series[str]", classes: Sequence[str]) -> list[int]:
    """The number of each label among `classes`.

    Raises:
        InputError: a label that is none of them.
    """
    number: Mapping[str, int] = {name: k for k, name in enumerate(classes)}
    unknown = sorted({str(label) for label in labels if label not in number})
    if unknown:
        raise InputError(
            f"Labels that are no classes of the model: {some(unknown, len(unknown))}. Its classes are "
            f"{', '.join(classes)}: load it with the classes of the data set, or leave these samples out."
        )
    return [number[label] for label in labels]


def failure(sample_id: str, error: ImageError, dataset: Dataset) -> dict[str, str]:
    """One row of failures; paths in the message count from the data set's folder."""
    message = str(error).replace(f"{dataset.root}/", "")
    return {"sample_id": sample_id, "stage": "image", "error": type(error).__name__, "message": message}


def _compact(image: Tensor) -> Tensor:
    half = image.half()
    grey: Any = (half == half[:1]).all()
    return half[:1].clone() if grey else half
