"""`study run` and `report`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from heatproof.cli.common import EPILOG, say

if TYPE_CHECKING:
    from heatproof.study.store import Run

app = typer.Typer(help="Data × models × methods × metrics, from a recipe.", epilog=EPILOG, no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Data × models × methods × metrics, from a recipe."""


@app.command(epilog=EPILOG)
def run(
    recipe: Annotated[Path, typer.Argument(help="The recipe, a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="The run folder; by default runs/<name of the recipe>.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="key.path=value, for instance models[0].training.epochs=3.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print the plan, no more.")] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda:N, in place of the recipe's.")] = None,
) -> None:
    """Run a study and write its report; a run that was interrupted goes on where it stopped."""
    from heatproof.study.runner import plan_study, run_study

    if dry_run:
        plan_study(recipe, overrides=overrides or (), device=device)
        return
    try:
        finished = run_study(recipe, out, overrides=overrides or (), device=device)
    except KeyboardInterrupt:
        say("Interrupted. The same command goes on where it stopped.")
        raise
    _count_failures(finished)
    report(finished.path)


def _count_failures(run: "Run") -> None:
    failures = run.failures
    if len(failures):
        counts = ", ".join(f"{count} in {stage}" for stage, count in failures["stage"].value_counts().items())
        say(f"{len(failures)} failures, named in {run.path / 'failures.parquet'} and in the report: {counts}")


def report(run: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Write the report of a run, finished or not, as one folder that opens from disk."""
    from heatproof.report import build_report

    typer.echo(f"Report: {build_report(run)}")


@app.command(epilog=EPILOG)
def init(
    path: Annotated[
        Path, typer.Argument(help="A table of images, a folder that holds one, or a folder of class folders.")
    ],
    out: Annotated[Path, typer.Option(help="The recipe to write.")] = Path("study.yaml"),
    scratch: Annotated[
        bool, typer.Option("--scratch", help="Small models from scratch, in place of one that must be downloaded.")
    ] = False,
) -> None:
    """Look at images and write a commented recipe for them."""
    from heatproof.study.init import write_recipe

    write_recipe(path, out, pretrained=not scratch)
    typer.echo(f"Recipe: {out}")
    say(f"Read it, then: heatproof study run {out} --dry-run")
