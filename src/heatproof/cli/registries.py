"""`methods` and `metrics`: the registries as tables."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from heatproof.cli.common import print_json, print_table
from heatproof.registry import Entry

AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable, with every option and its default.")]

_HEADER = ("name", "kind", "what it is")


def methods(as_json: AsJson = False) -> None:
    """List the explainers."""
    from heatproof.explanation import methods as known

    facts = {name: {**_facts(entry), "family": entry.family, "signed": entry.signed} for name, entry in known().items()}
    if as_json:
        print_json(facts)
        return
    kinds = {name: f"{fact['family']}, {'signed' if fact['signed'] else 'positive'}" for name, fact in facts.items()}
    print_table("Explainers", _HEADER, [(name, kinds[name], _description(fact)) for name, fact in facts.items()])


def metrics(as_json: AsJson = False) -> None:
    """List the metrics."""
    from heatproof.scoring import metrics as known

    facts = {
        name: {
            **_facts(entry),
            "category": entry.category,
            "higher_is_better": entry.higher_is_better,
            "bounds": list(entry.bounds),
            "formula": entry.formula,
            "quantus": entry.quantus,
        }
        for name, entry in known().items()
    }
    if as_json:
        print_json(facts)
        return
    kinds = {
        name: f"{fact['category']}, {'higher' if fact['higher_is_better'] else 'lower'} is better"
        for name, fact in facts.items()
    }
    print_table("Metrics", _HEADER, [(name, kinds[name], _description(fact)) for name, fact in facts.items()])


def _facts(entry: Entry) -> dict[str, Any]:
    return {
        "summary": entry.summary,
        "needs": sorted(entry.needs),
        "options": dict(entry.options),
        "meanings": entry.meanings,
        "paper": entry.paper,
    }


def _description(fact: Mapping[str, Any]) -> str:
    lines = {
        "options": ", ".join(f"{name}={default}" for name, default in fact["options"].items()),
        "needs": ", ".join(fact["needs"]),
        "source": fact["paper"],
    }
    return "\n".join([fact["summary"], *(f"{name}: {text}" for name, text in lines.items() if text)])
