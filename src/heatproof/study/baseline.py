"""What a linear model makes of tiny versions of the images: how easy a data set is."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof.datasets.table import Dataset
from heatproof.errors import ImageError
from heatproof.images.read import read_image
from heatproof.training.performance import performance

SIDE = 16


def linear_baseline(dataset: Dataset) -> float | None:
    """AUROC on `test` (mean over classes) of a logistic regression on 16 × 16 pixels that saw `train`; None if undefined."""
    (train, known), (test, truth) = _thumbnails(dataset, "train"), _thumbnails(dataset, "test")
    if dataset.task == "multilabel":
        probabilities = np.column_stack([_fitted(train, column, test) for column in known.T])
        found = performance(truth, probabilities, dataset.classes, task="multilabel")
    else:
        probabilities = _fitted(train, known.argmax(axis=1), test, len(dataset.classes))
        found = performance(truth.argmax(axis=1), probabilities, dataset.classes)
    auroc: float | None = found.to_dict()["auroc_macro"]
    return auroc


def _fitted(
    train: NDArray[np.float64], labels: NDArray[Any], test: NDArray[np.float64], classes: int | None = None
) -> NDArray[np.float64]:
    """Probabilities of the test images: `[n]` that a label (NaN where unknown) applies, or `[n, classes]`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    known = ~np.isnan(labels)
    present = np.unique(labels[known]).astype(int)
    columns = np.zeros((len(test), classes or 2))
    if len(present) == 1:  # nothing to tell apart
        columns[:, present] = 1
    else:
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
        columns[:, present] = model.fit(train[known], labels[known].astype(int)).predict_proba(test)
    return columns if classes else columns[:, 1]


def _thumbnails(dataset: Dataset, split: str) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Grey values `[n, 256]` and targets `[n, K]` of the readable images of a split."""
    from skimage.transform import resize

    part = dataset.subset(split)
    values, rows = [], []
    for row, path in enumerate(part.samples["image"]):
        try:
            pixels = read_image(str(path)).pixels
        except ImageError:
            continue  # `check_dataset` has named it
        grey = pixels if pixels.ndim == 2 else pixels.mean(-1)
        values.append(resize(grey, (SIDE, SIDE), anti_aliasing=True).ravel())
        rows.append(row)
    return np.array(values), part.targets()[rows]
