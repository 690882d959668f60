"""How hard the phantom is for a linear model, and how far its shortcuts carry: `python benchmarks/phantom_hardness.py`.

A logistic regression sees 16 x 16 pixels of each image (findings), the upper corners alone (letters) or the outermost
pixels alone (devices). It is trained on the splits `train` and `val`, and its area under the ROC curve on `test` is shown
with a 95 % interval over patients. Letters or a device that go along with a label with strength s allow (1 + s) / 2.

Writes the tables to `benchmarks/results/phantom_hardness.md`; some minutes.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from heatproof.datasets.phantom import Scanners, Shortcut, make_phantom
from heatproof.datasets.table import Dataset
from heatproof.images.read import read_image
from heatproof.statistics import patient_bootstrap_statistic

Floats = NDArray[np.float64]

SIZE = 64
RESULTS = Path(__file__).parent / "results" / "phantom_hardness.md"


def images_of(data: Dataset) -> Floats:
    """All images `[N, SIZE, SIZE]`."""
    return np.stack([read_image(path).pixels for path in data.samples["image"]]).astype(np.float64)


def coarse(images: Floats) -> Floats:
    """16 x 16 pixels of each image."""
    return images.reshape(-1, 16, SIZE // 16, 16, SIZE // 16).mean(axis=(2, 4)).reshape(len(images), -1)


def corners(images: Floats) -> Floats:
    """What is bright against its surroundings in the blocks of 6 x 8 pixels of the two upper strips."""
    strip = images[:, :12] - ndimage.gaussian_filter(images[:, :12], (0, 2, 2))
    return strip.reshape(-1, 2, 6, 8, SIZE // 8).max(axis=(2, 4)).reshape(len(images), -1)


def rim(images: Floats) -> Floats:
    """The outermost row and column on each side."""
    return np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], axis=1)


def auroc(features: Floats, labels: NDArray[np.bool_], samples: pd.DataFrame) -> str:
    """The area on the test images, with its interval over patients."""
    test = (samples["split"] == "test").to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000, C=0.1))
    scores = model.fit(features[~test], labels[~test]).decision_function(features[test])
    found = patient_bootstrap_statistic(
        roc_auc_score, samples["patient_id"][test], labels[test], scores, draws=500, method="percentile"
    )
    return f"{found.estimate:.2f} ({found.low:.2f} to {found.high:.2f})"


def hardness(folder: Path, patients: int) -> pd.DataFrame:
    """Findings as rows, conspicuity as columns."""
    columns = {}
    for conspicuity in (1.0, 0.6, 0.3):
        data = make_phantom(
            folder / f"findings{conspicuity}", patients=patients, size=SIZE, task="multilabel", conspicuity=conspicuity
        )
        features, truth = coarse(images_of(data)), data.targets() == 1
        columns[f"conspicuity {conspicuity}"] = [auroc(features, column, data.samples) for column in truth.T]
    return pd.DataFrame(columns, index=data.classes).rename_axis("finding")


def shortcuts(folder: Path, patients: int) -> pd.DataFrame:
    """Strengths as rows; what letters and devices give away."""
    rows = {}
    for strength in (0.0, 0.5, 1.0):
        options: dict[str, Any] = {"patients": patients, "size": SIZE, "classes": ["normal", "effusion"]}
        found = [f"{(1 + strength) / 2:.2f}"]
        for name, sign, part in (
            ("shortcut", Shortcut("effusion", strength), corners),
            ("scanners", Scanners(2, "effusion", strength), rim),
        ):
            data = make_phantom(folder / f"{name}{strength}", **options, **{name: sign})
            ill = (data.samples["label"] == "effusion").to_numpy()
            found.append(auroc(part(images_of(data)), ill, data.samples))
        rows[strength] = found
    columns = ["possible", "letters, from the upper corners", "device, from the rim"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns).rename_axis("strength")


def speed(folder: Path) -> pd.DataFrame:
    """Images a second, files and masks written."""
    rows = {}
    for size, count in ((64, 200), (128, 100), (224, 60)):
        for kind in ("png", "dicom"):
            start = time.process_time()
            make_phantom(folder / f"{size}{kind}", patients=count, size=size, task="multilabel", format=kind)
            rows.setdefault(size, {})[kind] = f"{count / (time.process_time() - start):.0f}"
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("size")


def as_markdown(table: pd.DataFrame) -> str:
    """A Markdown table."""
    header = [str(table.index.name), *map(str, table.columns)]
    rows = [[str(name), *map(str, row)] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=2000, help="one image each")
    patients = parser.parse_args().patients
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report = "\n\n".join(
            [
                f"# How hard the phantom is\n\n{patients} patients with one image of {SIZE} pixels each, seed 0. "
                "Areas under the ROC curve of logistic regressions on the test images, 95 % intervals over patients.",
                f"## Findings, from 16 x 16 pixels\n\n{as_markdown(hardness(folder, patients))}",
                f"## Shortcuts\n\n{as_markdown(shortcuts(folder, patients))}",
                f"## Images a second of processor time\n\n{as_markdown(speed(folder))}",
            ]
        )
    print(report)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
