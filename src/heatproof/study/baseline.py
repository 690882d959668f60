"""What a linear model makes of tiny versions of the images: how easy a data set is."""

import numpy as np
from numpy.typing import NDArray

from heatproof.datasets.table import Dataset
from heatproof.errors import ImageError
from heatproof.images.read import read_image
from heatproof.training.performance import performance

SIDE = 16


def linear_baseline(dataset: Dataset) -> float | None:
    """AUROC on `test` (mean over classes) of a logistic regression on 16 × 16 pixels that saw `train`; None if undefined."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    (train, labels), (test, truth) = _thumbnails(dataset, "train"), _thumbnails(dataset, "test")
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    found = model.fit(train, labels).predict_proba(test)
    probabilities = np.zeros((len(test), len(dataset.classes)))
    probabilities[:, model.classes_] = found
    auroc: float | None = performance(truth, probabilities, dataset.classes).to_dict()["auroc_macro"]
    return auroc


def _thumbnails(dataset: Dataset, split: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Grey values `[n, 256]` and class indices of the readable images of a split."""
    from skimage.transform import resize

    values, labels = [], []
    for row in dataset.subset(split).samples.itertuples():
        try:
            pixels = read_image(str(row.image)).pixels
        except ImageError:
            continue  # `check_dataset` has named it
        grey = pixels if pixels.ndim == 2 else pixels.mean(-1)
        values.append(resize(grey, (SIDE, SIDE), anti_aliasing=True).ravel())
        labels.append(dataset.classes.index(str(row.label)))
    return np.array(values), np.array(labels)
