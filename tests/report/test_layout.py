"""One object gives the page, the CSV and the LaTeX of a table: the same rows, every special character escaped."""

import csv
import re
from pathlib import Path

import pandas as pd
import pytest

from heatproof.report.layout import Block, Cell, Head, Line, Mark, Sheet, Table, latex_text
from heatproof.report.text import decimals_for, interval_text
from support.pages import Element, parse

HOSTILE = r"\input{/etc/passwd} & 50 % #1 $x_2^3$ ~ <b> | “q” −1"


@pytest.fixture
def table() -> Table:
    lines = (
        Line(
            "a_1",
            (Cell("0.12", "0.123", "0.10 to 0.14", marks=(Mark("better", "▲", "better"),), best=True), Cell(HOSTILE)),
        ),
        Line("b", absent="No scores: a & b"),
    )
    heads = (Head("Method", numeric=False), Head("iou", arrow="↑"), Head("note", numeric=False))
    return Table("Scores of vit_b", heads, (Block(lines), Block((Line("c", (Cell("−1"), Cell("∞"))),), "Controls")))


def test_latex_letter_by_letter() -> None:
    expected = {
        "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}", "−": "$-$",
    }  # fmt: skip
    for character, escaped in expected.items():
        assert latex_text(f"a{character}b") == f"a{escaped}b"
    assert latex_text(r"\alpha{x}") == r"\textbackslash{}alpha\{x\}"  # what an escape adds is not escaped again
    assert latex_text("plain text 1.5") == "plain text 1.5"


def test_latex_is_a_booktabs_table_with_every_row(table: Table) -> None:
    text = table.latex()
    body = text.split("\\toprule\n")[1].split("\\bottomrule")[0]
    rows = [row for row in body.replace("\\midrule", "").split(" \\\\\n") if row.strip()]
    assert [row.strip() for row in rows] == [
        r"Method & iou $\uparrow$ & note",
        r"a\_1 & \textbf{0.12$\blacktriangle$ (0.10 to 0.14)} & " + latex_text(HOSTILE),
        r"b & \multicolumn{2}{l}{No scores: a \& b}",
        r"\multicolumn{3}{l}{\emph{Controls}}",
        r"c & $-$1 & $\infty$",
    ]
    assert r"\begin{tabular}{lrl}" in text
    assert r"\caption{Scores of vit\_b}" in text
    assert [text.count(rule) for rule in ("\\toprule", "\\midrule", "\\bottomrule")] == [1, 2, 1]


def test_no_text_can_open_a_command_or_leave_its_cell(table: Table) -> None:
    text = table.latex()
    commands = set(re.findall(r"\\([a-zA-Z]+)", text))
    assert "input" not in commands
    assert text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")
    [row] = [line for line in text.splitlines() if line.startswith("a")]
    assert len(re.findall(r"(?<!\\)&", row)) == 2


def test_a_sheet_writes_all_digits_and_every_table(table: Table, tmp_path: Path) -> None:
    frame = pd.DataFrame({"name": ["a,b", 'say "x"'], "value": [1 / 3, float("nan")]})
    Sheet("scores", frame, (table, table)).write(tmp_path)
    with (tmp_path / "scores.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["name", "value"], ["a,b", repr(1 / 3)], ['say "x"', ""]]
    text = (tmp_path / "scores.tex").read_text(encoding="utf-8")
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 2


SHEETS = [
    "data",
    "performance",
    "classes",
    "confusion",
    "scores",
    "lift",
    "controls",
    "pairs",
    "ranks",
    "gaps",
    "failures",
    "options",
]


@pytest.fixture(scope="module")
def page(report: Path) -> Element:
    return parse((report / "index.html").read_text(encoding="utf-8"))


def test_every_table_of_the_page_can_be_had_as_csv_and_latex(page: Element, report: Path) -> None:
    links = {a.attributes["href"] for a in page.all("a") if "download" in a.attributes}
    assert links == {f"tables/{name}.{kind}" for name in SHEETS for kind in ("csv", "tex")} | {"references.bib"}
    captions = [
        caption
        for path in (report / "tables").glob("*.tex")
        for caption in re.findall(r"\\begin{table}", path.read_text())
    ]
    assert len(captions) == len(page.all("table"))


@pytest.mark.parametrize(
    "name", ["scores", "lift", "pairs", "ranks", "performance", "classes", "confusion", "controls"]
)
def test_page_and_latex_say_the_same(name: str, page: Element, report: Path) -> None:
    text = (report / "tables" / f"{name}.tex").read_text(encoding="utf-8")
    tables = {re.search(r"\\caption{(.*)}", part)[1]: part for part in text.split("\\begin{table}")[1:]}
    shown = {
        box.attributes["aria-label"]: box.all("table")[0] for box in page.all("div", role="region") if box.all("table")
    }
    assert tables
    for caption, part in tables.items():
        [table] = [found for label, found in shown.items() if latex_text(label) == caption]
        rows = [row for row in table.all("tr") if row.all("td") and not row.all("td", class_="quiet")]
        lines = [line for line in part.splitlines() if " & " in line and "multicolumn" not in line][1:]
        assert len(rows) == len(lines) > 0
        for row, line in zip(rows, lines, strict=True):
            for cell, latex in zip(row.all("td"), re.split(r"(?<!\\)&", line.removesuffix("\\\\"))[1:], strict=True):
                number = "".join((s[0].text if (s := cell.all("span")) else cell.text).split())
                bare = latex.replace("\\textbf{", "").replace(" ", "")
                assert bare.startswith(latex_text(number).replace(" ", "")), (cell.text, latex)
                for interval in cell.all("div", class_="interval"):
                    assert latex_text(interval.text).replace(" ", "") in bare


def test_the_confusion_matrix_is_that_of_the_predictions(report: Path) -> None:
    found = pd.read_csv(report / "tables" / "confusion.csv")
    predictions = pd.read_parquet(report.parent / "predictions" / "vit.parquet")
    crossed = pd.crosstab(predictions["label"], predictions["predicted"])
    mine = found[found["model"] == "vit"].pivot(index="truth", columns="predicted", values="images")
    assert mine.loc[crossed.index, crossed.columns].to_numpy().tolist() == crossed.to_numpy().tolist()
    assert mine.to_numpy().sum() == 30


def test_right_and_wrong_labels_are_those_of_the_predictions(label_report: Path) -> None:
    found = pd.read_csv(label_report / "tables" / "confusion.csv").query("model == 'vit'").set_index("label")
    predictions = pd.read_parquet(label_report.parent / "predictions" / "vit.parquet")
    for name, row in found.iterrows():
        truth, said = predictions[f"label_{name}"], predictions[f"p_{name}"] >= 0.5
        expected = [(truth == 1) & said, (truth == 1) & ~said, (truth == 0) & said, (truth == 0) & ~said]
        assert row[["true_positive", "false_negative", "false_positive", "true_negative"]].tolist() == [
            int(part.sum()) for part in expected
        ]
    assert found.drop(columns="model").to_numpy().sum() == 3 * 30 - 5  # five labels are unknown


def test_pairs_are_written_from_both_sides(page: Element, report: Path) -> None:
    pairs = pd.read_csv(report / "tables" / "pairs.csv")
    rows = pairs[(pairs["model"] == "vit") & (pairs["metric"] == "sparseness")]
    row = rows.iloc[0]
    [box] = page.all("div", **{"aria-label": "Differences of sparseness, vit; higher is better"})
    heads = [head.text for head in box.all("th", scope="col")]
    lines = {line.all("th")[0].text: line.all("td") for line in box.all("tr") if line.all("td")}
    there = lines[row["method_a"]][heads.index(row["method_b"]) - 1]
    back = lines[row["method_b"]][heads.index(row["method_a"]) - 1]
    assert float(there.attributes["data-sort"]) == row["difference"] == -float(back.attributes["data-sort"])
    decimals = decimals_for((rows["high"] - rows["low"]) / 2)
    assert there.all("div", class_="interval")[0].text == interval_text(row["low"], row["high"], decimals)
    assert back.all("div", class_="interval")[0].text == interval_text(-row["high"], -row["low"], decimals)
