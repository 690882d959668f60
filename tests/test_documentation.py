"""What the documents say is true: sources exist, examples run."""

import re
from pathlib import Path

import pytest

import heatproof as hp
from support.isolation import run_python

ROOT = Path(__file__).resolve().parents[1]


def test_every_method_and_metric_has_its_source_in_the_bibliography() -> None:
    entries = re.findall(r"^@\w+\{([^,\s]+),", (ROOT / "docs" / "references.bib").read_text(encoding="utf-8"), re.M)
    assert len(entries) == len(set(entries))
    cited = {entry.paper for registry in (hp.methods(), hp.metrics()) for entry in registry.values()}
    assert cited <= set(entries)


@pytest.mark.parametrize("page", sorted(path.name for path in (ROOT / "docs" / "how-to").glob("*.md")))
def test_how_to_pages_run_as_written(page: str) -> None:
    """Each Python block of a page, in order, in one fresh interpreter; what a comment says is printed is printed."""
    text = (ROOT / "docs" / "how-to" / page).read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    assert code
    printed = run_python(code)
    expected = re.findall(r"^print\(.*\)\n# (.*)$", code, re.M)
    assert printed.split("\n")[: len(expected)] == expected


def test_links_between_documents_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"
