"""The page as a file: it opens from disk, holds no foreign address, escapes what it is given, and can be read aloud."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from heatproof.errors import InputError
from heatproof.report import build_report, html, tables
from heatproof.report.text import decimals_for, enough_decimals, fixed, interval_text
from heatproof.study.store import Run
from support.pages import Element, cases_of, parse
from support.runs import HOSTILE, METHODS, METRICS, RunFolder, label_of


@pytest.fixture(scope="module")
def source(report: Path) -> str:
    return (report / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source: str) -> Element:
    return parse(source)


FEW = {"methods": ["attention", "gradcam", "control_random"], "metrics": ["faithfulness_estimate", "sparseness"]}


def section(page: Element, name: str) -> Element:
    return page.all("section", id=name)[0]


def test_sections_come_in_their_order(page: Element) -> None:
    order = ["summary", "models", "scores", "pairs", "distributions", "cases", "failures", "options", "methods"]
    assert [s.attributes["id"] for s in page.all("section")] == order
    assert [a.attributes["href"] for a in page.all("nav")[0].all("a")] == [f"#{name}" for name in order]


def test_nothing_is_fetched_from_elsewhere(report: Path) -> None:
    texts = [path for path in report.rglob("*") if path.suffix in {".html", ".css", ".js", ".svg"}]
    assert len(texts) == 1 + 5 + 2 * (2 + 2 + 14)
    for path in texts:
        content = path.read_text(encoding="utf-8")
        if path.name == "index.html":  # the BibTeX entries are text
            content = re.sub(r"<pre.*?</pre>", "", content, flags=re.DOTALL)
        content = re.sub(r'(xmlns(:xlink)?="|")http://www\.w3\.org/[^"]*"', "", content)  # names, never fetched
        assert not re.search(r"https?:|//[a-z]+\.|@import|url\((?!#)", content), path.name


def test_the_page_allows_itself_nothing_from_elsewhere_and_no_script_inside(page: Element, report: Path) -> None:
    policies = [e.attributes["content"] for e in page.all("meta") if "http-equiv" in e.attributes]
    rules = dict(rule.strip().split(" ", 1) for rule in policies[0].split(";"))
    assert len(policies) == 1
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == rules["img-src"] == "'self'"
    assert not any("style" in (e.tag, *e.attributes) and "url(" in e.attributes.get("style", "") for e in page.all())


def test_the_scripts_are_plain_and_the_page_has_no_other(page: Element, report: Path) -> None:
    named = [script.attributes["src"] for script in page.all("script")]
    assert named == [f"assets/{name}.js" for name in ("theme", "report", "cases", "gallery")]
    assert not any(script.text for script in page.all("script"))
    assert not any(name.startswith("on") for element in page.all() for name in element.attributes)
    for name in named:
        code = (report / name).read_text(encoding="utf-8")
        if "cases" not in name:
            assert not re.search(
                r"\bimport\b|\bexport\b|fetch\(|XMLHttpRequest|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(",
                code,
            )


def test_every_file_that_is_named_lies_beside_the_page(page: Element, report: Path) -> None:
    named = {e.attributes[a] for e in page.all() for a in ("src", "href", "srcset") if a in e.attributes}
    cards = cases_of(report)["cards"]
    pictures = {card["image"] for card in cards} | {t["file"] for card in cards for t in card["tiles"] if "file" in t}
    files = {name for name in named if not name.startswith("#")} | pictures
    assert all((report / name).is_file() for name in files)
    on_disk = {str(path.relative_to(report)) for path in report.rglob("*") if path.is_file()}
    assert on_disk - files == {"index.html"}  # nothing unused either
    ids = {e.attributes["id"] for e in page.all() if "id" in e.attributes}
    assert {name[1:] for name in named if name.startswith("#")} <= ids


def test_ids_are_unique_and_labels_are_there(page: Element) -> None:
    ids = [e.attributes["id"] for e in page.all() if "id" in e.attributes]
    assert len(ids) == len(set(ids))
    assert all("alt" in image.attributes for image in page.all("img"))
    assert all(image.attributes["alt"] for image in page.all("img"))
    assert all("scope" in head.attributes for head in page.all("th"))
    assert all(image.attributes.get("loading") == "lazy" for image in page.all("img"))
    assert all({"width", "height"} <= image.attributes.keys() for image in page.all("img"))
    assert page.all("html")[0].attributes["lang"] == "en"


def test_hostile_names_are_text(source: str, page: Element, report: Path) -> None:
    assert HOSTILE not in source
    assert cases_of(report)["cards"][2]["sample"] == HOSTILE  # the script puts it in as text, see test_script
    assert HOSTILE in section(page, "failures").text
    assert HOSTILE in section(page, "models").text


def test_score_cells_show_the_table(page: Element, run: Run) -> None:
    scores = tables.score_table(run)
    shown = section(page, "scores").all("table", class_="scores")[: len(run.models)]  # the others show the lift
    assert [table.all("caption")[0].text for table in shown] == run.models
    decimals = {m: decimals_for((c["high"] - c["low"]) / 2) for m, c in scores.groupby("metric")}
    for model, table in zip(run.models, shown, strict=True):
        heads = [head.text for head in table.all("thead")[0].all("th")]
        assert [head.split()[0] for head in heads] == ["Method", *(label_of(m) for m in METRICS)]
        assert [arrow for head in heads for arrow in "↑↓" if arrow in head] == list("↑↓↓↑↑↑↑")
        rows = {row.all("th")[0].text: row.all("td") for row in table.all("tr") if row.all("th", scope="row")}
        assert list(rows) == [label_of(m) for m in METHODS]
        for cell in scores[(scores["model"] == model) & (scores["n"] > 0)].itertuples():
            text = rows[cell.method][run.metrics.index(cell.metric)]
            digits = enough_decimals(cell.estimate, decimals[cell.metric])
            chance = [] if np.isnan(cell.chance) else [f"chance {fixed(cell.chance, digits)}"]
            best, plain = text.all("span", class_="best"), text.all("span", class_="value")
            assert (best or plain)[0].text == fixed(cell.estimate, digits)
            assert bool(best) == cell.best
            assert text.all("div", class_="interval")[0].text == interval_text(cell.low, cell.high, digits)
            absent = [
                f"{count} {word}" for count, word in ((cell.nan, "undefined"), (cell.missing, "missing")) if count
            ]
            assert text.all("div", class_="counts")[0].text == ", ".join([f"n {cell.n}", *chance, *absent])
            assert float(text.attributes["data-sort"]) == cell.estimate


def test_a_mean_far_below_its_column_keeps_its_digits(page: Element, run: Run) -> None:
    scores = tables.score_table(run).set_index(["model", "method", "metric"])["estimate"]
    tiny = scores["vit", "control_center", "avg_sensitivity"]
    assert 0 < tiny < 1e-4
    table = section(page, "scores").all("table", class_="scores")[0]
    row = next(row for row in table.all("tr") if row.text.startswith("control_center"))
    assert row.all("span", class_="value")[run.metrics.index("avg_sensitivity")].text == f"{tiny:.6f}"


def test_controls_stand_in_their_own_block(page: Element) -> None:
    for table in section(page, "scores").all("table", class_="scores"):
        own = table.all("tbody", class_="controls")[0]
        assert [row.text for row in own.all("th", scope="row")] == ["control_random", "control_center"]
        assert not own.all("span", class_="best")


def test_marks_are_those_of_the_findings(page: Element, run: Run) -> None:
    verdicts = tables.comparisons(run).groupby(["model", "metric", "method"])["verdict"].apply(set)
    for model, table in zip(run.models, section(page, "scores").all("table", class_="scores"), strict=False):
        rows = {row.all("th")[0].text: row.all("td") for row in table.all("tr") if row.all("th", scope="row")}
        for (_, metric, method), found in verdicts[[model]].items():
            cell = rows[method][run.metrics.index(metric)]
            assert bool(cell.all("span", class_="better")) == (found == {"better"})
            assert bool(cell.all("span", class_="worse")) == ("worse" in found)


def test_a_method_that_the_model_cannot_serve_says_why(page: Element) -> None:
    table = section(page, "scores").all("table", class_="scores")[1]
    row = next(row for row in table.all("tr") if row.text.startswith("attention "))
    assert "UnsupportedModelError: attention: the model has no attention" in row.text


def test_reductions_and_failures_are_all_listed(page: Element, run: Run) -> None:
    shown = [[c.text for c in row.children if isinstance(c, Element)] for row in section(page, "options").all("tr")]
    assert shown[1:] == run.reductions().to_numpy().tolist()
    assert ["lime_200", "samples", "200", "1000"] in shown
    rows = section(page, "failures").all("tbody")[0].all("tr")
    assert sorted(row.all("td")[-1].text for row in rows) == sorted(run.failures["message"])


def test_undefined_and_missing_scores_are_all_listed(page: Element, run: Run) -> None:
    scores = tables.score_table(run)
    gaps = scores[(scores["nan"] > 0) | (scores["missing"] > 0)]
    expected = {(g.model, g.metric, g.method, f"{g.n}", f"{g.nan}", f"{g.missing}") for g in gaps.itertuples()}
    rows = section(page, "failures").all("table")[1].all("tbody")[0].all("tr")
    shown = [tuple(cell.text for cell in (*row.all("th"), *row.all("td"))) for row in rows]
    assert len(shown) == len(expected) > 10
    assert set(shown) == expected


def test_undefined_performance_is_shown_and_counted(tmp_path: Path) -> None:
    class Without(RunFolder):
        def __post_init__(self) -> None:
            super().__post_init__()
            self.labels = [self.classes[i % 2] for i in range(self.cases)]

    page = parse(
        build_report(Without(tmp_path / "run", cases=12, models=["vit"], **FEW).write()).read_text(encoding="utf-8")
    )
    models = section(page, "models")
    row = next(row for row in models.all("table")[1].all("tr") if row.text.startswith("nodule"))
    assert [cell.text for cell in row.all("td")] == ["0", "undefined no positives", "undefined no positives"]
    assert "1 class has an undefined value, left out of the means." in models.text
    assert "logistic regression on 16 × 16 pixels reaches a mean AUROC of 0.71" in models.text


def test_a_run_that_has_only_begun_has_a_report(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", cases=9, **FEW)
    path = folder.write()
    for name in ("failures.parquet", "predictions/densenet.parquet", "models/densenet/performance.json"):
        (path / name).unlink()
    for kind in ("inputs", "maps", "scores"):
        for file in (path / kind / "densenet").rglob("*.*"):
            file.unlink()
    page = parse(build_report(path).read_text(encoding="utf-8"))
    assert "The run is not finished" in page.text
    assert "densenet has no predictions of test images" in page.text
    assert len(cases_of(path / "report")["cards"]) == 9
    assert "No scores. not computed yet" in section(page, "scores").text


def fingerprint(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_a_second_report_replaces_the_first_and_is_the_same(tmp_path: Path) -> None:
    path = RunFolder(tmp_path / "run", cases=6, models=["vit"], **FEW).write()
    first = fingerprint(build_report(path).parent)
    (path / "report" / "stale.txt").write_text("old")
    assert fingerprint(build_report(path).parent) == first
    assert not [entry.name for entry in path.iterdir() if entry.name.startswith(".")]


def test_a_report_that_fails_leaves_the_earlier_one_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_path = RunFolder(tmp_path / "run", cases=6, models=["vit"], **FEW).write()
    report = build_report(run_path).parent
    before = fingerprint(report)

    def broken(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(html.gallery, "write_gallery", broken)
    with pytest.raises(OSError, match="disk full"):
        build_report(run_path)
    assert fingerprint(report) == before
    assert not (run_path / ".unfinished-report").exists()


def test_what_is_no_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="study"):
        build_report(tmp_path)


def test_no_patient_is_named_in_any_file(source: str, run: Run, report: Path) -> None:
    patients = re.compile("|".join(rf"\\b{re.escape(patient)}\\b" for patient in set(run.samples["patient_id"])))
    assert not patients.search(source)
    for path in [*(report / "tables").iterdir(), report / "assets" / "cases.js"]:
        assert not patients.search(path.read_text(encoding="utf-8")), path.name
