"""`train`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from heatproof.cli.common import Columns, Device, Regions, Seed, key_values, number, open_dataset, print_table, say

if TYPE_CHECKING:
    from heatproof.datasets.table import Dataset
    from heatproof.models import Classifier


def train(
    data: Annotated[Path, typer.Argument(help="A sample table, a folder of class folders, or a recipe (its data).")],
    out: Annotated[Path, typer.Option(help="Folder for the trained model.")],
    source: Annotated[
        str, typer.Option(help="hf:<hub id or folder>, hf:vit, monai:densenet121 or a checkpoint folder.")
    ],
    image_size: Annotated[int | None, typer.Option(help="Pixels a side; the source's own by default.")] = None,
    channels: Annotated[int | None, typer.Option(help="1 or 3; the source's own by default.")] = None,
    config: Annotated[
        list[str] | None, typer.Option("--config", help="A keyword of the source, as key=value; repeatable.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1)] = 10,
    batch_size: Annotated[int, typer.Option(min=1)] = 32,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 1e-4,
    weight_decay: Annotated[float, typer.Option()] = 0.01,
    patience: Annotated[int, typer.Option(help="Epochs without a lower validation loss.", min=1)] = 3,
    regions: Regions = None,
    column: Columns = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train a classifier on a data set, and measure it on the test images.

    Where the table has no splits, 70, 10 and 20 % of the patients train, validate and test.
    """
    from heatproof.datasets.splits import check_splits, split_by_patient
    from heatproof.models.device import resolve_device
    from heatproof.models.sources import load_classifier
    from heatproof.study.data import split
    from heatproof.training.fit import fit

    place = resolve_device(device)
    with TemporaryDirectory() as folder:
        dataset, recipe = open_dataset(data, regions, column, Path(folder))
        if recipe is not None:
            dataset = split(dataset, recipe)
        elif dataset.samples["split"].isna().any():
            dataset = dataset.with_splits(split_by_patient(dataset.samples, seed=seed))
        check_splits(dataset.samples, classes=dataset.classes, required=("train", "val"))
        options = key_values(config, "--config")
        clf = load_classifier(
            source, classes=dataset.classes, image_size=image_size, channels=channels, seed=seed, **options
        )
        result = fit(
            clf, dataset, epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, patience=patience,
            seed=seed, device=place, progress=True, folder=out,
        )  # fmt: skip
        for row in result.failures.itertuples():
            say(f"left out: {row.sample_id}: {row.message}")
        say(f"best epoch: {result.best_epoch} of {len(result.history)}")
        _test(clf.to(place), dataset, out)


def _test(clf: "Classifier", dataset: "Dataset", out: Path) -> None:
    """Measure the performance on the test images, where there are some; print it and keep it beside the model."""
    import json

    import numpy as np

    from heatproof.training.performance import performance
    from heatproof.training.predict import predict

    test = dataset.subset("test")
    if not len(test):
        return
    table = predict(clf, test, device=clf.device).table
    labels = np.array([dataset.classes.index(label) for label in table["label"]])
    found = performance(labels, table[[f"p_{name}" for name in dataset.classes]].to_numpy(), dataset.classes).to_dict()
    (out / "performance.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    rows = [(name, found["support"][name], found["auroc"][name], found["auprc"][name]) for name in dataset.classes]
    rows += [("weighted average", found["n"], found["auroc_weighted"], found["auprc_weighted"])]
    shown = [(name, count, number(auroc), number(auprc)) for name, count, auroc, auprc in rows]
    title = f"Test images: accuracy {found['accuracy']:.3f}"
    print_table(title, ("class", "images", "AUROC", "AUPRC"), shown)
