"""`data check` and `data phantom`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heatproof.cli.common import (
    BAD_ROWS,
    EPILOG,
    Columns,
    LabelColumns,
    Regions,
    Seed,
    key_values,
    open_dataset,
    print_table,
    say,
)
from heatproof.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from heatproof.datasets.check import DatasetCheck
    from heatproof.datasets.table import Dataset
    from heatproof.study.recipe import Recipe

app = typer.Typer(help="Look at data sets, and make synthetic ones.", epilog=EPILOG, no_args_is_help=True)


@app.command(epilog=EPILOG)
def check(
    path: Annotated[Path, typer.Argument(help="A sample table, a folder of class folders, or a recipe.")],
    regions: Regions = None,
    column: Columns = None,
    label_column: LabelColumns = None,
) -> None:
    """Read every image and region; name what is wrong."""
    from heatproof.datasets.check import check_dataset

    with TemporaryDirectory() as folder:
        dataset, recipe = open_dataset(path, regions, column, Path(folder), label_column)
        dataset, problems = _split(dataset, recipe)
        found = check_dataset(dataset, progress=True)
    _print_check(dataset.name, found)
    problems += [f"{row.sample_id} ({row.stage}): {row.message}" for row in found.failures.itertuples()]
    for problem in problems:
        say(problem)
    if problems:
        raise typer.Exit(BAD_ROWS)
    say(f"{len(dataset)} images, nothing wrong.")


def _split(dataset: "Dataset", recipe: "Recipe | None") -> tuple["Dataset", list[str]]:
    """The data set as it would be split, where that is said, and what is wrong with that."""
    from heatproof.datasets.splits import check_splits
    from heatproof.study.data import split

    try:
        if recipe is not None:
            return split(dataset, recipe), []
        if dataset.samples["split"].notna().all():
            check_splits(dataset.samples, classes=dataset.classes)
    except InputError as error:
        return dataset, [str(error)]
    return dataset, []


def _print_check(name: str, found: "DatasetCheck") -> None:
    counts = _by_split(found.counts)
    print_table(
        f"{name}: images",
        ("class", *counts.columns),
        [(str(k), *row) for k, row in zip(counts.index, counts.to_numpy(), strict=True)],
    )
    print_table(f"{name}: patients", ("split", "patients"), list(found.patients.items()))
    if len(found.regions):
        header = ("region", "label", "kind", "readers", "annotated", "of them empty")
        print_table(f"{name}: regions", header, [tuple(row) for row in found.regions.itertuples()])
    for note in found.notes:
        say(note)


def _by_split(counts: "pd.DataFrame") -> "pd.DataFrame":
    """The counts of several labels with one column a split: positive / negative / unknown."""
    import pandas as pd

    splits = dict.fromkeys(str(column).split(" ")[0] for column in counts)
    if list(splits) == list(counts):
        return counts
    parts = {split: counts.filter(regex=f"^{split} ").astype(str).agg(" / ".join, axis=1) for split in splits}
    return pd.DataFrame(parts).add_suffix(": yes / no / ?")


@app.command(epilog=EPILOG)
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write images, masks and tables into.")],
    patients: Annotated[int, typer.Option(help="How many patients.", min=1)] = 400,
    images_per_patient: Annotated[int, typer.Option(help="Images of each.", min=1)] = 1,
    varied: Annotated[bool, typer.Option("--varied", help="That is the mean; some have more, some fewer.")] = False,
    size: Annotated[int, typer.Option(help="Pixels a side.", min=16)] = 128,
    task: Annotated[str, typer.Option(help="multiclass (one label an image) or multilabel.")] = "multiclass",
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="A class; repeatable. Default: see task.")
    ] = None,
    prevalence: Annotated[
        list[str] | None, typer.Option(help="How frequent a finding is, as finding=0.2; repeatable (multilabel).")
    ] = None,
    uncertain: Annotated[float, typer.Option(help="Part of the label cells that say -1 (multilabel).")] = 0.0,
    conspicuity: Annotated[float, typer.Option(help="How much the findings stand out; 0.4 is subtle.")] = 1.0,
    shortcut: Annotated[
        str | None, typer.Option(help="Letters that give a class away, as class=strength: 0 tells nothing, 1 all.")
    ] = None,
    scanners: Annotated[int, typer.Option(help="Devices that the images come from.", min=1)] = 1,
    scanner_bias: Annotated[
        str | None, typer.Option(help="How far a class gives the device away, as class=strength.")
    ] = None,
    file_format: Annotated[str, typer.Option("--format", help="png or dicom.")] = "png",
    bits: Annotated[int | None, typer.Option(help="Of a pixel: 8 or 16 (png), 12 or 16 (dicom).")] = None,
    seed: Seed = 0,
) -> None:
    """Make synthetic chest radiographs with exact lesion masks."""
    from heatproof.datasets.phantom import Scanners, Shortcut, make_phantom

    if scanner_bias is not None and scanners == 1:
        raise InputError("--scanner-bias needs several devices: give --scanners 2 or more.")
    dataset = make_phantom(
        out,
        patients=patients,
        images_per_patient=images_per_patient,
        varied=varied,
        size=size,
        task=task,
        classes=classes or (),
        prevalence=key_values(prevalence, "--prevalence"),
        uncertain=uncertain,
        conspicuity=conspicuity,
        shortcut=None if shortcut is None else Shortcut(*_label_strength(shortcut, "--shortcut")),
        scanners=None if scanners == 1 else Scanners(scanners, *_label_strength(scanner_bias, "--scanner-bias")),
        format=file_format,
        bits=bits,
        seed=seed,
    )
    typer.echo(f"{len(dataset)} images of {patients} patients: {out / 'samples.csv'}, {out / 'regions.csv'}")


def _label_strength(text: str | None, option: str) -> tuple[Any, ...]:
    """`"opacity=0.5"` as its two parts; nothing where nothing was given."""
    return () if text is None else next(iter(key_values([text], option).items()))
