"""What the commands share: exit codes, options, and how results are printed."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from heatproof.errors import InputError

if TYPE_CHECKING:
    from heatproof.datasets.table import Dataset
    from heatproof.study.recipe import Recipe

PARTLY, BAD_INPUT, BAD_ROWS = 1, 2, 3

EPILOG = (
    "Exit codes: 0 done (a study names what failed in its failures table); 1 done, but some of the given files failed "
    "and are named; 2 wrong usage or input; 3 `data check` found bad rows; 130 interrupted."
)

Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda:N.", metavar="DEVICE")]
Seed = Annotated[int, typer.Option("--seed", help="Of every random draw.")]
Options = Annotated[
    list[str] | None, typer.Option("--option", "-o", help="An option of the method, as key=value; repeatable.")
]
Columns = Annotated[
    list[str] | None, typer.Option("--column", help="A foreign column name, as ours=theirs; repeatable.")
]
LabelColumns = Annotated[
    list[str] | None,
    typer.Option("--label-column", help="A column that holds a label: 1, 0, -1 (uncertain) or nothing; repeatable."),
]
Regions = Annotated[Path | None, typer.Option("--regions", help="The region table of a sample table.")]


def key_values(pairs: Sequence[str] | None, option: str) -> dict[str, Any]:
    """`["step=512", "shape=mask"]` as a mapping, the values parsed as YAML."""
    from heatproof.study.loading import parse_yaml

    found = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InputError(f"{option} {pair}: write it as key=value.")
        found[key] = parse_yaml(value)
    return found


def open_dataset(
    path: Path,
    regions: Path | None,
    columns: Sequence[str] | None,
    folder: Path,
    label_columns: Sequence[str] | None = None,
) -> tuple["Dataset", "Recipe | None"]:
    """The data set of a sample table, a class folder or a recipe, and that recipe; a phantom is made in `folder`."""
    from heatproof.datasets.folder import load_folder
    from heatproof.datasets.table import load_table

    if label_columns and (path.is_dir() or path.suffix in (".yaml", ".yml")):
        raise InputError(f"--label-column belongs to a sample table, and {path} is none. Leave it out.")
    if path.suffix in (".yaml", ".yml"):
        from heatproof.study.data import load_dataset
        from heatproof.study.loading import load_recipe

        recipe = load_recipe(path)
        return load_dataset(recipe, folder), recipe
    if path.is_dir():
        return load_folder(path), None
    foreign = {key: str(value) for key, value in key_values(columns, "--column").items()}
    return load_table(path, regions, columns=foreign, label_columns=label_columns or None), None


def say(text: str) -> None:
    """A message for the person, on standard error."""
    typer.echo(text, err=True)


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """A table on standard output."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for column, name in enumerate(header):
        table.add_column(name, no_wrap=column == 0)
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    Console().print(table)


def print_json(content: Mapping[str, Any]) -> None:
    """JSON on standard output."""
    import json

    typer.echo(json.dumps(content, indent=2, default=str))
