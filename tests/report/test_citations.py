"""Everything that a run used is cited, nothing else, and each name reads as in the entry."""

import re
from pathlib import Path

import pytest

from heatproof.explanation import methods
from heatproof.report import citations, tables
from heatproof.scoring import metrics
from heatproof.study.store import Run
from support.pages import parse
from support.runs import RunFolder

ROOT = Path(__file__).resolve().parents[2]


def test_the_bibliography_of_the_package_is_that_of_the_documents() -> None:
    text = (ROOT / "docs" / "references.bib").read_text(encoding="utf-8")
    entries = citations.bibliography()
    assert len(entries) == text.count("\n@") + 1
    assert all(f"{{{key}," in entry.splitlines()[0] and entry in text for key, entry in entries.items())


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("selvaraju2017gradcam", "Selvaraju et al. 2017"),
        ("abnar2020quantifying", "Abnar and Zuidema 2020"),
        ("efron1987better", "Efron 1987"),
        ("huang2017densely", "Huang et al. 2017"),
    ],
)
def test_short_names(key: str, name: str) -> None:
    assert citations.short_name(citations.bibliography()[key]) == name


def test_every_entry_has_a_short_name() -> None:
    for key, entry in citations.bibliography().items():
        name = citations.short_name(entry)
        assert re.fullmatch(r"[^{}\\]+ \d{4}", name), name
        assert re.search(r"\d{4}", key)[0] in name


def keys_of(path: Path) -> set[str]:
    return set(re.findall(r"^@\w+\{([^,]+),", (path / "references.bib").read_text(encoding="utf-8"), re.M))


def test_the_bib_file_holds_what_the_run_used(report: Path, run: Run) -> None:
    papers = {methods()[spec.name].paper for spec in run.recipe.methods}
    papers |= {metrics()[spec.name].paper for spec in run.recipe.metrics}
    others = {
        "dosovitskiy2021image",
        "huang2017densely",
        "loshchilov2019decoupled",
        "hanley1982meaning",
        "davis2006relationship",
        "efron1987better",
        "wilson1927probable",
    }
    found = keys_of(report)
    assert papers | others <= found
    assert found - papers - others <= {"holm1979simple", "phipson2010permutation", "guo2017calibration"}


def test_what_a_run_did_not_use_is_not_cited(tmp_path: Path) -> None:
    small = Run(
        RunFolder(tmp_path / "run", models=["densenet"], cases=9, methods=["gradcam"], metrics=["sparseness"]).write()
    )
    scores, pairs = tables.score_table(small), tables.pair_table(small)
    used = set(citations.used_keys(small, scores, pairs))
    assert {"huang2017densely", "selvaraju2017gradcam", "chalasani2020concise"} <= used
    assert not {"dosovitskiy2021image", "ribeiro2016why", "wilson1927probable", "holm1979simple"} & used
    text = citations.methods_paragraph(small, scores, pairs)
    assert "sign flips" not in text
    assert "controls" not in text


def test_the_paragraph_names_every_part_with_its_source(run: Run) -> None:
    text = citations.methods_paragraph(run, tables.score_table(run), tables.pair_table(run))
    for part in (
        "vit (hf:vit; Dosovitskiy et al. 2021; trained for up to 6 epochs)",
        "on 30 test images",
        "gradcam (Selvaraju et al. 2017)",
        "lime_200 (samples = 200; Ribeiro et al. 2016)",
        "beside the controls control_random",
        "faithfulness_estimate (step = 256; Alvarez-Melis and Jaakkola 2018)",
        "bootstrapped over patients",
        "Efron 1987",
        "Holm's correction",
        "seed 3",
    ):
        assert part in text, part


def test_a_source_that_the_package_does_not_know_is_named_all_the_same() -> None:
    text = citations.bibtex(["mine2030method", "efron1987better"])
    assert "% mine2030method: no entry here, add your own" in text
    assert "@article{efron1987better," in text


def test_page_and_file_have_the_same_entries(report: Path) -> None:
    page = parse((report / "index.html").read_text(encoding="utf-8"))
    [shown] = page.all("pre", id="bibtex")
    assert shown.text == " ".join((report / "references.bib").read_text(encoding="utf-8").split())
    assert {button.attributes["data-copy"] for button in page.all("button", class_="copy")} == {"paragraph", "bibtex"}
