"""`data check` and `data phantom`."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from heatproof.cli.common import BAD_ROWS, EPILOG, Columns, Regions, Seed, open_dataset, print_table, say
from heatproof.errors import InputError

if TYPE_CHECKING:
    from heatproof.datasets.check import DatasetCheck
    from heatproof.datasets.table import Dataset
    from heatproof.study.recipe import Recipe

app = typer.Typer(help="Look at data sets, and make synthetic ones.", epilog=EPILOG, no_args_is_help=True)


@app.command(epilog=EPILOG)
def check(
    path: Annotated[Path, typer.Argument(help="A sample table, a folder of class folders, or a recipe.")],
    regions: Regions = None,
    column: Columns = None,
) -> None:
    """Read every image and region; name what is wrong."""
    from heatproof.datasets.check import check_dataset

    with TemporaryDirectory() as folder:
        dataset, recipe = open_dataset(path, regions, column, Path(folder))
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
    counts = found.counts
    print_table(
        f"{name}: images",
        ("class", *counts.columns),
        [(str(k), *row) for k, row in zip(counts.index, counts.to_numpy(), strict=True)],
    )
    print_table(f"{name}: patients", ("split", "patients"), list(found.patients.items()))
    if len(found.regions):
        rows = [(str(row.Index), row.annotated, row.empty) for row in found.regions.itertuples()]
        print_table(f"{name}: regions", ("region", "annotated", "of them empty"), rows)
    for note in found.notes:
        say(note)


@app.command(epilog=EPILOG)
def phantom(
    out: Annotated[Path, typer.Argument(help="Folder to write images, masks and tables into.")],
    patients: Annotated[int, typer.Option(help="How many patients.", min=1)] = 400,
    images_per_patient: Annotated[int, typer.Option(help="Images of each.", min=1)] = 1,
    size: Annotated[int, typer.Option(help="Pixels a side.", min=16)] = 128,
    seed: Seed = 0,
) -> None:
    """Make synthetic chest radiographs with exact lesion masks."""
    from heatproof.datasets.phantom import make_phantom

    dataset = make_phantom(out, patients=patients, images_per_patient=images_per_patient, size=size, seed=seed)
    typer.echo(f"{len(dataset)} images of {patients} patients: {out / 'samples.csv'}, {out / 'regions.csv'}")
