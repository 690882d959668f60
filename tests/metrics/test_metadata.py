"""What every metric says of itself, and the reference page that is written from it."""

import re
import runpy
from pathlib import Path

import pytest

from heatproof.metrics import METRICS
from heatproof.metrics.registry import Metric
from heatproof.registry import Entry, entry_fields

REFERENCE = Path(__file__).resolve().parents[2] / "docs" / "reference"
PEER = ("Follows `", "Differs: `", "Not in Quantus.")


@pytest.fixture(scope="module")
def generator():
    return runpy.run_path(str(REFERENCE / "generate.py"))


def test_the_reference_page_is_what_the_metrics_say(generator):
    stored = (REFERENCE / "metrics.md").read_text(encoding="utf-8")
    assert stored == generator["metrics_page"](), "the page is out of date: run make reference"


@pytest.mark.parametrize("metric", METRICS.values(), ids=list(METRICS))
def test_a_metric_says_what_it_is(metric):
    assert metric.formula, "the docstring needs a section Formula"
    assert metric.quantus.startswith(PEER), f"the docstring needs a section Quantus that begins with one of {PEER}"
    assert list(metric.meanings) == list(metric.options), "every option needs its meaning under Args"
    assert all(metric.meanings.values())
    assert metric.sections["Returns"]
    assert metric.summary[-1] in ".:"


def test_the_page_names_every_metric_once_in_the_table_and_once_in_a_heading(generator):
    page = generator["metrics_page"]()
    assert set(generator["CATEGORIES"]) == {metric.category for metric in METRICS.values()}
    for name, metric in METRICS.items():
        assert page.count(f"\n| [`{name}`](#{name}) |") == page.count(f"\n### {name}\n") == 1
        section = page.partition(f"\n### {name}\n")[2].partition("\n### ")[0]
        assert metric.formula in section
        assert f"`{metric.paper}`" in section
        aliases = [alias for alias, of in METRICS.aliases.items() if of == name]
        assert re.findall(r"Also called `(\w+)`", section) == aliases
        for option, default in metric.options.items():
            assert f"\n| `{option}` | `{default}` | " in section


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("deletion", ["lower", "any value", "the model", "225 passes", "follows in part"]),  # 224 rows and the image
        ("srg", ["higher", "any value", "the model", "449 passes", "–"]),  # two curves of the same image
        ("sparseness", ["higher", "0 to 1", "the map alone", "no pass", "follows"]),
        ("random_logit", ["lower", "−1 to 1", "the model, the method", "1 map, 1 pass", "differs"]),
        ("efficient_mprt", ["higher", "−1 or more", "the model, the method", "1 map", "follows"]),
        ("model_parameter_randomization", ["lower", "−1 to 1", "the model, the method", "L maps", "follows in part"]),
        ("smooth_mprt", ["lower", "−1 to 1", "the model, the method", "50 L + 50 maps", "follows in part"]),
        (
            "relative_output_stability",
            ["lower", "0 or more", "the model, the method", "10 maps, 22 passes", "follows in part"],
        ),
        ("focus", ["higher", "0 to 1", "the model, the method, a cohort", "4 maps", "follows"]),
    ],
)
def test_the_table_by_hand(generator, name, cells):
    assert f"| [`{name}`](#{name}) | {' | '.join(cells)} |\n" in generator["metrics_page"]()


def test_tables_have_as_many_cells_as_columns(generator):
    for table in re.findall(r"(?:^\|.*\n)+", generator["metrics_page"](), re.MULTILINE):
        columns = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
        assert len(columns) == 1, table


def test_sources_are_linked_by_doi_or_arxiv(generator):
    page = generator["metrics_page"]()
    assert "Source: [Petsiuk et al. 2018](https://arxiv.org/abs/1806.07421), `petsiuk2018rise`." in page
    assert "Source: [Hanley and McNeil 1982](https://doi.org/10.1148/radiology.143.1.7063747)" in page
    assert "Source: Rong et al. 2022, `rong2022consistent`." in page


def test_what_is_read_from_a_docstring():
    def sharp(case, *, k=1, edge="soft", unsaid=0):
        """How sharp the map is.

        With a colon inside: as here.

        Formula:
            max a
            / Σ a

        Args:
            case: N samples.
            k: how many
                pixels: the highest.
            edge: `soft` or `hard`.

        Returns:
            `[N]`.
        """

    entry = metric_of(sharp)
    assert entry.sections == {
        "": "With a colon inside: as here.",
        "Formula": "max a\n/ Σ a",
        "Args": "case: N samples.\nk: how many\n    pixels: the highest.\nedge: `soft` or `hard`.",
        "Returns": "`[N]`.",
    }
    assert entry.formula == "max a / Σ a"
    assert entry.quantus == ""
    assert entry.meanings == {"k": "how many pixels: the highest.", "edge": "`soft` or `hard`."}
    assert Entry(**entry_fields("x", sharp, "x", ())).meanings == entry.meanings


def test_options_that_mean_what_those_of_another_metric_mean():
    def flat(case, *, bins=100, shift=0, samples=50, unsaid=1):
        """How flat the map is.

        Arguments and undefined cases
        are those of `smooth_mprt`, which is something else.

        Args:
            shift: its own.
            samples: its own as well.
        """

    meanings = metric_of(flat).meanings
    assert meanings == {"shift": "its own.", "samples": "its own as well."}
    flat.__doc__ = flat.__doc__.replace("smooth_mprt", "efficient_mprt")
    assert metric_of(flat).meanings == {"bins": "of the histograms.", **meanings}

    def bare(case, *, bins=100):
        """Nothing more is said."""

    assert metric_of(bare).meanings == {}


def metric_of(function):
    fields = entry_fields("x", function, "x", ())
    return Metric(**fields, others=METRICS, category="x", higher_is_better=True, bounds=(None, None))
