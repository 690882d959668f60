"""The page's script in a real browser, where there is one: filters, paging, sorting, themes, widths."""

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pandas as pd
import pytest

from heatproof.study.store import Run
from support.pages import cases_of
from support.runs import HOSTILE

BROWSER = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --dump-dom"
)
PROBE = """
addEventListener("DOMContentLoaded", () => {
const cards = () => Array.from(document.querySelectorAll(".card"));
const first = () => cards()[0] ? cards()[0].querySelector("h3").textContent : "";
const text = () => document.querySelector(".paging output").textContent;
const names = () => cards().map((card) => card.querySelector("h3").firstChild.textContent);
const form = document.querySelector(".filters");
const choose = (name, value) => {
  form.elements[name].value = value;
  form.elements[name].dispatchEvent(new Event("input", { bubbles: true }));
};
const scores = (method, metric) => cards().map((card) => {
  const heads = Array.from(card.querySelectorAll("thead th"), (head) => head.textContent);
  const row = Array.from(card.querySelectorAll("tbody tr")).find((row) => row.cells[0].textContent.startsWith(metric));
  return row.cells[heads.indexOf(method)].textContent;
});
const result = { start: cards().length, text: text(), hiddenForm: form.hidden };
const third = cards()[2];
result.hostile = { name: third.querySelector("h3").firstChild.textContent };
result.hostile.scripts = third.querySelectorAll("script").length;
result.pictures = Array.from(cards()[2].querySelectorAll("img"), (image) => image.getAttribute("src"));
result.loaded = Array.from(cards()[0].querySelectorAll("img"), (image) => image.getAttribute("loading"));
result.first = cards()[0].textContent;
document.querySelector("[data-step='1']").click();
result.second = { text: text(), count: cards().length };
choose("model", "densenet");
choose("correct", "no");
result.wrong = { text: text(), names: names() };
choose("predicted", "nodule");
choose("label", "nodule");
result.none = { text: text(), count: cards().length };
["label", "predicted", "correct"].forEach((name) => choose(name, ""));
choose("model", "vit");
choose("method", "gradcam");
choose("metric", "max_sensitivity");
choose("order", "best");
result.best = scores("gradcam", "max_sensitivity");
result.columns = cards()[0].querySelectorAll("thead th").length;
choose("order", "worst");
result.worst = scores("gradcam", "max_sensitivity");
choose("order", "");
choose("from", "0.3");
choose("to", "0.45");
result.range = { text: text(), names: names() };
choose("method", "");
result.mean = { text: text() };
choose("opacity", "40");
choose("tile", "200");
result.style = document.querySelector("#cases").getAttribute("style");
const table = document.querySelector("table.scores");
const column = (body) => Array.from(body.rows).filter((r) => r.cells.length > 1).map((r) => r.cells[1].dataset.sort);
const head = (i) => table.tHead.rows[0].cells[i];
head(1).querySelector("button").click();
result.down = Array.from(table.tBodies, column);
result.aria = [head(1).getAttribute("aria-sort")];
head(1).querySelector("button").click();
result.up = Array.from(table.tBodies, column);
result.aria.push(head(1).getAttribute("aria-sort"));
head(0).querySelector("button").click();
result.aria.push(head(1).getAttribute("aria-sort"), head(0).getAttribute("aria-sort"));
result.names = Array.from(table.tBodies[0].rows, (row) => row.cells[0].textContent);
result.focusable = Array.from(document.querySelectorAll("th button")).every((button) => button.tabIndex === 0);
const empty = document.querySelectorAll("table.scores")[1];
empty.tHead.rows[0].cells[3].querySelector("button").click();
result.absent = Array.from(empty.tBodies[0].rows, (row) => row.cells.length);
const theme = document.querySelector("button.theme");
result.themes = [0, 1, 2].map(() => {
  theme.click();
  const style = getComputedStyle(document.body);
  const drawn = (kind) => Array.from(document.querySelectorAll(".figure.on-" + kind));
  const seen = (kind) => drawn(kind).filter((f) => getComputedStyle(f).display !== "none").length;
  return [theme.textContent, style.backgroundColor, seen("light"), seen("dark")];
});
result.copy = Array.from(document.querySelectorAll("button.copy"), (button) => button.hidden);
result.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
result.width = document.documentElement.clientWidth;
document.querySelectorAll("details").forEach((part) => { part.open = true; });
result.overflowOpen = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const sent = JSON.stringify(result);
document.body.dataset.result = sent;
parent.postMessage(sent, "*");
});
"""
# A page narrower than the browser's own least width has to stand in a frame, which reports what the probe found.
FRAME = """<!doctype html><body><iframe src="index.html" width="390" height="800"></iframe>
<script>addEventListener("message", (event) => { document.body.dataset.result = event.data; });</script></body>"""


def probed(report: Path, folder: Path, name: str, *flags: str) -> dict:
    if BROWSER is None:
        pytest.skip("no chromium or chrome on this machine")
    shutil.copytree(report, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("tables"))
    page = (report / "index.html").read_text(encoding="utf-8")
    (folder / "assets" / "probe.js").write_text(PROBE, encoding="utf-8")
    # not before the gallery's own script, which is deferred too
    page = page.replace(
        'gallery.js" defer></script>', 'gallery.js" defer></script><script src="assets/probe.js" defer></script>'
    )
    (folder / "index.html").write_text(page, encoding="utf-8")
    (folder / "frame.html").write_text(FRAME, encoding="utf-8")
    profile = folder / "profile"
    command = [BROWSER, *FLAGS.split(), *flags, f"--user-data-dir={profile}", (folder / name).as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<body[^>]* data-result="([^"]*)"', done.stdout)
    assert found is not None, done.stderr[-2000:]
    return json.loads(unescape(found[1]))


@pytest.fixture(scope="module")
def result(report: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return probed(report, tmp_path_factory.mktemp("browser"), "index.html")


@pytest.fixture(scope="module")
def phone(report: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    return probed(report, tmp_path_factory.mktemp("phone"), "frame.html", "--virtual-time-budget=10000")


def test_cases_come_in_pages(result: dict) -> None:
    assert (result["start"], result["text"], result["hiddenForm"]) == (12, "1 to 12 of 60", False)
    assert result["second"] == {"text": "13 to 24 of 60", "count": 12}


def test_a_case_is_drawn_from_its_data_and_hostile_names_are_text(result: dict, report: Path) -> None:
    card = cases_of(report)["cards"][2]
    assert result["hostile"] == {"name": HOSTILE, "scripts": 0}
    expected = [card["image"]]
    for tile in card["tiles"]:
        expected += [card["image"], tile["file"]] if "file" in tile else []
    assert result["pictures"] == expected
    assert set(result["loaded"]) == {"lazy"}
    first = cases_of(report)["cards"][0]
    assert f"predicted {first['predicted'][0]} {first['p'][first['predicted'][0]]:.2f}" in result["first"]
    assert ("✓ correct" in result["first"]) == (first["correct"] == "yes")
    assert "region not annotated" in result["first"]


def test_filters_leave_the_cases_that_fit_and_begin_at_the_first(result: dict, run: Run) -> None:
    rows = run.predictions
    wrong = rows[(rows["model"] == "densenet") & (rows["predicted"] != rows["label"])]
    assert result["wrong"]["text"] == f"1 to {min(12, len(wrong))} of {len(wrong)}"
    assert [name.strip() for name in result["wrong"]["names"]] == list(wrong["sample_id"])[:12]
    assert result["none"] == {"text": "No case fits", "count": 0}


def scores_of(run: Run, metric: str) -> pd.Series:
    scores = run.scores[(run.scores["model"] == "vit") & (run.scores["metric"] == metric)]
    return scores.set_index(["sample_id", "method"])["value"]


def test_cases_are_ordered_by_a_score_in_its_direction(result: dict, run: Run) -> None:
    values = scores_of(run, "max_sensitivity").xs("gradcam", level="method")
    shown = [float(text) for text in result["best"]]
    assert shown == pytest.approx(sorted(values)[:12], rel=5e-3)  # lower is better
    assert [float(text) for text in result["worst"]] == pytest.approx(sorted(values, reverse=True)[:12], rel=5e-3)
    assert result["columns"] == 2  # the image and the chosen method


def test_a_range_of_scores_leaves_what_lies_in_it(result: dict, run: Run) -> None:
    values = scores_of(run, "max_sensitivity")
    mine = values.xs("gradcam", level="method")
    inside = [sample for sample in run.cases("vit") if sample in mine and 0.3 <= round(mine[sample], 4) <= 0.45]
    assert 0 < len(inside) < 30
    assert [name.strip() for name in result["range"]["names"]] == inside[:12]
    explainers = values[~values.index.get_level_values("method").str.startswith("control")]
    means = explainers.groupby("sample_id").mean()
    assert result["mean"]["text"].rpartition(" of ")[2] in (str(int(means.between(0.3, 0.45).sum())), "No case fits")


def test_opacity_and_size_are_set_for_all_cases(result: dict) -> None:
    assert "--opacity: 0.4;" in result["style"]
    assert "--tile: 200px;" in result["style"]


def test_sorting_keeps_the_controls_apart(result: dict) -> None:
    for way, reverse in (("down", True), ("up", False)):
        explainers, controls = ([float(value) for value in block] for block in result[way])
        assert (len(explainers), len(controls)) == (6, 2)
        assert explainers == sorted(explainers, reverse=reverse)
        assert controls == sorted(controls, reverse=reverse)
    assert result["names"] == sorted(result["names"])


def test_sorting_says_so_and_can_be_reached_by_key(result: dict) -> None:
    assert result["aria"] == ["descending", "ascending", None, "ascending"]
    assert result["focusable"]


def test_rows_without_numbers_come_last(result: dict) -> None:
    assert result["absent"] == sorted(result["absent"], reverse=True)
    assert result["absent"][-3:] == [2, 2, 2]


def test_the_theme_can_be_chosen_and_the_figures_follow(result: dict) -> None:
    figures = 2 + 2 + 14
    assert result["themes"] == [
        ["Theme: light", "rgb(255, 255, 255)", figures, 0],
        ["Theme: dark", "rgb(20, 24, 28)", 0, figures],
        ["Theme: auto", "rgb(255, 255, 255)", figures, 0],
    ]
    assert result["copy"] == [False, False]


def test_a_phone_never_scrolls_the_page_sideways(phone: dict, result: dict) -> None:
    assert 300 < phone["width"] <= 390
    assert (phone["overflow"], phone["overflowOpen"]) == (0, 0)
    assert (result["overflow"], result["overflowOpen"]) == (0, 0)
