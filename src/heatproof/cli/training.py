"""`train`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heatproof.cli.common import (
    Columns,
    Device,
    LabelColumns,
    Regions,
    Seed,
    key_values,
    open_dataset,
    print_table,
    say,
)
from heatproof.errors import InputError, near_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from heatproof.datasets.table import Dataset
    from heatproof.models import Classifier
    from heatproof.models.classifier import Task


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
    more: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            help="Another option of the training, as key=value: optimizer, schedule, warmup, layer_decay, freeze, augment, "
            "class_weights, label_smoothing, grad_clip, precision ...; repeatable.",
        ),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="multiclass or multilabel; that of the source or of the data by default.")
    ] = None,
    regions: Regions = None,
    column: Columns = None,
    label_column: LabelColumns = None,
    seed: Seed = 0,
    device: Device = "auto",
) -> None:
    """Train a classifier on a data set, and measure it on the test images.

    A training that was interrupted goes on with its last epoch when the same command is given again. Where the table has
    no splits, 70, 10 and 20 % of the patients train, validate and test.
    """
    from heatproof.datasets.splits import check_splits, split_by_patient
    from heatproof.models.device import resolve_device
    from heatproof.models.sources import load_classifier
    from heatproof.study.data import split
    from heatproof.training.fit import fit

    place = resolve_device(device)
    with TemporaryDirectory() as folder:
        dataset, recipe = open_dataset(data, regions, column, Path(folder), label_column)
        if recipe is not None:
            dataset = split(dataset, recipe)
        elif dataset.samples["split"].isna().any():
            dataset = dataset.with_splits(split_by_patient(dataset.samples, seed=seed))
        check_splits(dataset.samples, classes=dataset.classes, required=("train", "val"))
        options = key_values(config, "--config")
        clf = load_classifier(
            source,
            classes=dataset.classes,
            task=_task(task, dataset),
            image_size=image_size,
            channels=channels,
            seed=seed,
            **options,
        )
        result = fit(
            clf, dataset, epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=weight_decay, patience=patience,
            seed=seed, device=place, progress=True, folder=out, resume=True, **_further(more),
        )  # fmt: skip
        for row in result.failures.itertuples():
            say(f"left out: {row.sample_id}: {row.message}")
        say(f"best epoch: {result.best_epoch} of {len(result.history)}")
        _test(clf.to(place), dataset, out)


def _task(task: str | None, dataset: "Dataset") -> "Task | None":
    """The task asked for; left to the source where nothing is, and the images have one label each."""
    from heatproof.checks import check_choice

    if task is None:
        return "multilabel" if dataset.task == "multilabel" else None
    check_choice("--task", task, ("multiclass", "multilabel"))
    return "multilabel" if task == "multilabel" else "multiclass"


def _further(pairs: list[str] | None) -> dict[str, Any]:
    """Options of `fit` that have no switch of their own."""
    from heatproof.study.recipe import TrainingSpec

    found = key_values(pairs, "--option")
    own = ("epochs", "batch_size", "lr", "weight_decay", "patience")
    for name in found:
        if name in own:
            raise InputError(f"--option {name}: give it as --{name.replace('_', '-')}.")
        if name not in TrainingSpec.model_fields:
            known = [field for field in TrainingSpec.model_fields if field not in own]
            raise InputError(f"--option: the training has no option {name!r}. {near_names(name, known)}")
    return found


def _test(clf: "Classifier", dataset: "Dataset", out: Path) -> None:
    """Measure the performance on the test images, where there are some; print it and keep it beside the model."""
    from heatproof.study.models import performance_of
    from heatproof.study.writing import write_json
    from heatproof.training.predict import predict

    test = dataset.subset("test")
    if not len(test):
        return
    found = performance_of(predict(clf, test, device=clf.device).table, dataset.classes)
    write_json(out / "performance.json", found)
    rows = [
        (name, found["support"][name], _with_interval(found, f"auroc.{name}"), _with_interval(found, f"auprc.{name}"))
        for name in dataset.classes
    ]
    averages = [_with_interval(found, name) for name in ("auroc_weighted", "auprc_weighted")]
    rows.append(("weighted average", found["n"], *averages))
    title = f"{found['n']} test images: accuracy {_with_interval(found, 'accuracy')}"
    print_table(title, ("class", "images", "AUROC", "AUPRC"), rows)


def _with_interval(performance: "Mapping[str, Any]", name: str) -> str:
    """An estimate with its 95 % interval over patients."""
    found = performance["intervals"][name]
    if found["estimate"] is None:
        return "undefined"
    bounds = "" if found["low"] is None else f" ({found['low']:.2f} to {found['high']:.2f})"
    return f"{found['estimate']:.3f}{bounds}"
