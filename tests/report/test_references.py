"""Every source that the package cites stands in `docs/references.bib`."""

import re
import unicodedata
from pathlib import Path

from heatproof.explanation import methods
from heatproof.report import citations
from heatproof.scoring import metrics

ROOT = Path(__file__).resolve().parents[2]
KEY = re.compile(r"`([a-z]+(?:18|19|20)\d\d[a-z]+)`")


def entries() -> dict[str, str]:
    text = (ROOT / "docs" / "references.bib").read_text(encoding="utf-8")
    found = re.findall(r"@\w+\{([^,]+),(.*?)\n\}", text, flags=re.DOTALL)
    assert len({key for key, _ in found}) == len(found) == text.count("\n@") + 1
    return dict(found)


def test_methods_metrics_and_docstrings_cite_known_sources() -> None:
    cited = {entry.paper for entry in (*methods().values(), *metrics().values())}
    for path in (ROOT / "src").rglob("*.py"):
        cited |= set(KEY.findall(path.read_text(encoding="utf-8")))
    assert cited - set(entries()) == set()


def test_every_entry_is_complete_and_its_key_fits() -> None:
    for key, fields in entries().items():
        given = dict(re.findall(r"^\s*(\w+)\s*=\s*\{(.*)\},$", fields, flags=re.MULTILINE))
        assert {"author", "title", "year"} <= set(given), key
        assert {"journal", "booktitle", "publisher", "eprint"} & set(given), key
        assert given["year"] in key
        plain = unicodedata.normalize("NFKD", citations._plain(given["author"].split(",")[0])).encode("ascii", "ignore")
        family = re.sub("[- ]", "", plain.decode().lower())
        assert key.startswith(family), key
        assert fields.count("{") == fields.count("}")
