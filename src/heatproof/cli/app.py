"""The commands, put together."""

from typing import Annotated

import typer

import heatproof
from heatproof.cli import data, explaining, registries, studies, training
from heatproof.cli.common import EPILOG

app = typer.Typer(
    name="heatproof",
    help="Heatmaps, with proof: explain medical-image classifiers and measure whether the explanations can be believed.",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data.app, name="data")
app.command("train", epilog=EPILOG)(training.train)
app.command("explain", epilog=EPILOG)(explaining.explain)
app.command("gallery", epilog=EPILOG)(explaining.gallery)
app.command("score", epilog=EPILOG)(explaining.score)
app.add_typer(studies.app, name="study")
app.command("report", epilog=EPILOG)(studies.report)
app.command("methods", epilog=EPILOG)(registries.methods)
app.command("metrics", epilog=EPILOG)(registries.metrics)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"heatproof {heatproof.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command(epilog=EPILOG)
def doctor() -> None:
    """Print what this installation can do, and what is wrong with it."""
    from heatproof.doctor import diagnose, render

    render(diagnose())
