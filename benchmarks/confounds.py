"""What a run's heatmaps say of a confound: `python benchmarks/confounds.py RECIPE RUN [--column source]`.

Two tables. How well parts of the image that show no lung tell the class and another column of the sample table (`source`,
`scanner`): the area under the ROC curve, mean over their values, of a logistic regression on 32 x 32 pixels of which it sees
the frame (the outermost eighth on each side), the four corners, or all, in five folds by patient. And how much of each
method's positive relevance lies there, beside the share of the area and that of the random control, by true class.

Prints Markdown. Regions that the data set holds besides the recipe's own are measured as well, where they are annotated.
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from skimage.transform import resize
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from heatproof.datasets.table import Dataset
from heatproof.images.read import read_image
from heatproof.models.checkpoint import load_checkpoint
from heatproof.statistics import patient_bootstrap
from heatproof.study.data import load_dataset
from heatproof.study.loading import load_recipe
from heatproof.study.store import Run

SIDE = 32
EDGE = 8  # the frame is one eighth of the side, a corner two


def parts(height: int, width: int) -> dict[str, NDArray[np.bool_]]:
    """Parts of an image that show no lung in a frontal radiograph, bool `[H, W]`."""
    rows, columns = np.mgrid[:height, :width]
    from_edge = np.minimum(rows / height, 1 - (rows + 1) / height)
    aside = np.minimum(columns / width, 1 - (columns + 1) / width)
    return {
        "frame": np.minimum(from_edge, aside) < 1 / EDGE,
        "corners": (from_edge < 2 / EDGE) & (aside < 2 / EDGE),
        "all": np.ones((height, width), bool),
    }


def thumbnails(dataset: Dataset) -> NDArray[np.float64]:
    """Grey values `[N, SIDE, SIDE]`."""
    found = []
    for path in dataset.samples["image"]:
        pixels = read_image(path).pixels
        found.append(resize(pixels if pixels.ndim == 2 else pixels.mean(-1), (SIDE, SIDE), anti_aliasing=True))
    return np.stack(found)


def told_by(features: NDArray[np.float64], values: pd.Series, patients: pd.Series) -> float:
    """Mean AUROC over the values of a column, predicted for patients that the model has not seen."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=3000, C=0.1))
    found = cross_val_predict(model, features, values, groups=patients, cv=GroupKFold(5), method="predict_proba")
    names = sorted(values.unique())
    return float(np.mean([roc_auc_score(values == name, found[:, k]) for k, name in enumerate(names)]))


def pixel_table(dataset: Dataset, columns: list[str]) -> Iterator[str]:
    images, patients = thumbnails(dataset), dataset.samples["patient_id"]
    yield "| a linear model sees | " + " | ".join(f"AUROC, {column}" for column in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, part in parts(SIDE, SIDE).items():
        areas = [told_by(images[:, part], dataset.samples[column].astype(str), patients) for column in columns]
        yield f"| {name} | " + " | ".join(f"{area:.2f}" for area in areas) + " |"


def share(map: NDArray[np.float32], region: NDArray[np.bool_]) -> float:
    """The part of the positive relevance inside a region; NaN where there is none."""
    positive = np.clip(map.astype(np.float64), 0, None)
    total = positive.sum()
    return float(positive[region].sum() / total) if total > 0 else float("nan")


def shares(dataset: Dataset, run: Run) -> pd.DataFrame:
    """One row a map and part: model, method, sample_id, patient_id, label, part, share, area."""
    rows = []
    others = sorted(set(dataset.regions["region"].astype(str)) - {str(run.recipe.data.region)})
    for model in run.models:
        preprocessing = load_checkpoint(run.path / "models" / model).preprocessing
        for sample in run.cases(model):
            row = dataset.row(sample)
            geometry = preprocessing(read_image(row["image"]))[1]
            where = {name: part for name, part in parts(*preprocessing.image_size).items() if name != "all"}
            for name in others:
                region = dataset.region(sample, name, geometry.source_size)
                if region is not None and region.any():
                    where[name] = geometry.mask(region)
            for method in run.methods:
                map = run.map(model, method, sample)
                if map is not None:
                    common = {"model": model, "method": method, "sample_id": sample, "patient_id": row["patient_id"]}
                    rows += [
                        {**common, "label": row["label"], "part": name, "share": share(map, part), "area": part.mean()}
                        for name, part in where.items()
                    ]
    return pd.DataFrame(rows)


def share_table(found: pd.DataFrame, labels: list[str]) -> Iterator[str]:
    for (model, part), block in found.groupby(["model", "part"], sort=False):
        images = block["sample_id"].nunique()
        yield f"\n**{model}, {part}**: {images} images, {block['area'].mean():.2f} of the area\n"
        yield "| method | share of the positive relevance | " + " | ".join(labels) + " |"
        yield "|---" * (len(labels) + 2) + "|"
        for method, rows in block.groupby("method", sort=False):
            interval = patient_bootstrap(rows["share"], rows["patient_id"])
            by_label = [rows.loc[rows["label"] == label, "share"].mean() for label in labels]
            cells = " | ".join("–" if np.isnan(value) else f"{value:.2f}" for value in by_label)
            undefined = f", {interval.nan} undefined" if interval.nan else ""
            yield (
                f"| `{method}` | {interval.estimate:.2f} ({interval.low:.2f} to {interval.high:.2f}{undefined}) | {cells} |"
            )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("recipe", type=Path)
    arguments.add_argument("run", type=Path)
    arguments.add_argument("--column", help="of the sample table, which may go along with the class")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = load_dataset(load_recipe(given.recipe), Path(folder))
        columns = ["label", *([given.column] if given.column else [])]
        if given.column:
            print(pd.crosstab(dataset.samples["label"], dataset.samples[given.column]), "\n")
        print("\n".join(pixel_table(dataset, columns)))
        print("\n".join(share_table(shares(dataset, Run(given.run)), list(dataset.classes))))


if __name__ == "__main__":
    main()
