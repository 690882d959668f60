"""The page's script in a real browser, where there is one: filters, paging, sorting."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from heatproof.study.store import Run

BROWSER = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --dump-dom"
)
PROBE = """
const shown = () => Array.from(document.querySelectorAll(".card:not([hidden])"), (c) => ({ ...c.dataset }));
const text = () => document.querySelector(".paging output").textContent;
const form = document.querySelector(".filters");
const choose = (name, value) => {
  form.elements[name].value = value;
  form.elements[name].dispatchEvent(new Event("input", { bubbles: true }));
};
const result = { start: shown().length, text: text(), hiddenForm: form.hidden };
document.querySelector("[data-step='1']").click();
result.second = { text: text(), count: shown().length };
choose("model", "densenet");
choose("correct", "no");
result.wrong = { text: text(), cards: shown() };
choose("predicted", form.elements.predicted.options[2].value);
choose("label", form.elements.predicted.options[2].value);
result.none = { text: text(), count: shown().length };
choose("opacity", "40");
choose("tile", "200");
result.style = document.querySelector("#cases").getAttribute("style");
const table = document.querySelector("table.scores");
const column = (body) => Array.from(body.rows).filter((r) => r.cells.length > 1).map((r) => r.cells[1].dataset.sort);
table.tHead.querySelectorAll("button")[1].click();
result.down = Array.from(table.tBodies, column);
table.tHead.querySelectorAll("button")[1].click();
result.up = Array.from(table.tBodies, column);
document.body.dataset.result = JSON.stringify(result);
"""


@pytest.fixture(scope="module")
def result(report: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    if BROWSER is None:
        pytest.skip("no chromium or chrome on this machine")
    folder = tmp_path_factory.mktemp("browser")
    page = (report / "index.html").read_text(encoding="utf-8")
    (folder / "assets").mkdir()
    shutil.copy(report / "assets" / "report.js", folder / "assets")
    (folder / "assets" / "probe.js").write_text(PROBE, encoding="utf-8")
    page = page.replace("defer></script>", 'defer></script><script src="assets/probe.js" defer></script>')
    (folder / "index.html").write_text(page, encoding="utf-8")
    command = [BROWSER, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", (folder / "index.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    found = re.search(r'data-result="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-2000:]
    return json.loads(unescape(found[1]))


def test_cases_come_in_pages(result: dict) -> None:
    assert (result["start"], result["text"], result["hiddenForm"]) == (12, "1 to 12 of 60", False)
    assert result["second"] == {"text": "13 to 24 of 60", "count": 12}


def test_filters_leave_the_cases_that_fit_and_begin_at_the_first(result: dict, run: Run) -> None:
    rows = run.predictions
    wrong = rows[(rows["model"] == "densenet") & (rows["predicted"] != rows["label"])]
    assert result["wrong"]["text"] == f"1 to {min(12, len(wrong))} of {len(wrong)}"
    assert {(card["model"], card["correct"]) for card in result["wrong"]["cards"]} == {("densenet", "no")}
    shown = [(card["label"], card["predicted"]) for card in result["wrong"]["cards"]]
    assert shown == list(zip(wrong["label"], wrong["predicted"], strict=True))[:12]
    assert result["none"] == {"text": "No case fits", "count": 0}


def test_opacity_and_size_are_set_for_all_cases(result: dict) -> None:
    assert result["style"] == "--opacity: 0.4; --tile: 200px;"


def test_sorting_keeps_the_controls_apart(result: dict) -> None:
    for way, reverse in (("down", True), ("up", False)):
        explainers, controls = ([float(value) for value in block] for block in result[way])
        assert (len(explainers), len(controls)) == (6, 2)
        assert explainers == sorted(explainers, reverse=reverse)
        assert controls == sorted(controls, reverse=reverse)
