"""A table as it is read: heads, blocks of rows and cells of text, from which the page and the LaTeX file are made.

A `Sheet` joins the numbers (a frame, which becomes the CSV file) and the tables that show them.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

# What LaTeX would take for a command, and characters that its usual fonts lack.
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "−": "$-$", "–": "--", "×": r"$\times$", "±": r"$\pm$",
    "∞": r"$\infty$", "≥": r"$\geq$", "≤": r"$\leq$", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "·": r"$\cdot$",
    "▲": r"$\blacktriangle$", "▼": r"$\blacktriangledown$", "●": r"$\bullet$", "“": "``", "”": "''", "…": r"\ldots{}",
    "\n": " ", "\r": " ", "\t": " ",
}  # fmt: skip
_SPECIAL = re.compile("|".join(map(re.escape, _LATEX)))


@dataclass(frozen=True)
class Bar:
    """An interval on its column's scale; places are percentages of the scale, None where absent."""

    at: float | None
    from_: float | None = None
    to: float | None = None
    reference: float | None = None
    chance: float | None = None


@dataclass(frozen=True)
class Mark:
    """A sign beside a number, with its meaning in words: `kind` is `better`, `worse` or `different`."""

    kind: str
    sign: str
    meaning: str


@dataclass(frozen=True)
class Cell:
    """One cell: the text, below it small `detail` (an interval) and `notes`; `sort` where it is not sorted by its text."""

    text: str
    sort: str | None = None
    detail: str = ""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    marks: tuple[Mark, ...] = ()
    best: bool = False
    bar: Bar | None = None
    shade: float | None = None

    @property
    def plain(self) -> str:
        """The text with its marks and its interval, in one line."""
        marks = "".join(mark.sign for mark in self.marks)
        return f"{self.text}{marks}{f' ({self.detail})' if self.detail else ''}"


@dataclass(frozen=True)
class Head:
    """A column's head: `arrow` and `direction` say which way is better, `numeric` columns stand to the right."""

    text: str
    numeric: bool = True
    summary: str = ""
    arrow: str = ""
    direction: str = ""


@dataclass(frozen=True)
class Line:
    """A row: its name and its cells; or in `absent` why there are none."""

    name: str
    cells: tuple[Cell, ...] = ()
    absent: str = ""
    strong: bool = False


@dataclass(frozen=True)
class Block:
    """Rows that are sorted among themselves, under a title of their own where it has one."""

    lines: tuple[Line, ...]
    title: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a sheet. `kind` is how the page shows it: `plain`, `scores` or `matrix`."""

    caption: str
    heads: tuple[Head, ...]
    blocks: tuple[Block, ...]
    kind: str = "plain"
    title: str = ""

    def latex(self) -> str:
        """The table in LaTeX, for `booktabs`; every text escaped."""
        columns = "".join("r" if head.numeric else "l" for head in self.heads)
        heads = " & ".join(latex_text(f"{head.text} {head.arrow}".strip()) for head in self.heads)
        bodies = r"\midrule".join(
            ["\n" + "".join(f"{row} \\\\\n" for row in self._rows(block)) for block in self.blocks if block.lines]
        )
        return (
            "\\begin{table}\n\\centering\n"
            f"\\caption{{{latex_text(self.caption)}}}\n"
            f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{heads} \\\\\n\\midrule{bodies}\\bottomrule\n"
            "\\end{tabular}\n\\end{table}\n"
        )

    def _rows(self, block: Block) -> Iterator[str]:
        if block.title:
            yield rf"\multicolumn{{{len(self.heads)}}}{{l}}{{\emph{{{latex_text(block.title)}}}}}"
        for line in block.lines:
            if line.absent:
                absent = rf"\multicolumn{{{len(self.heads) - 1}}}{{l}}{{{latex_text(line.absent)}}}"
                yield f"{latex_text(line.name)} & {absent}"
            else:
                cells = (rf"\textbf{{{latex_text(c.plain)}}}" if c.best else latex_text(c.plain) for c in line.cells)
                yield " & ".join([latex_text(line.name), *cells])


@dataclass(frozen=True)
class Sheet:
    """Numbers and the tables that show them: `<name>.csv` and `<name>.tex` beside the page."""

    name: str
    frame: pd.DataFrame
    tables: tuple[Table, ...]

    def write(self, folder: Path) -> None:
        """The CSV file with all digits and the LaTeX file."""
        self.frame.to_csv(folder / f"{self.name}.csv", index=False)
        preamble = "% needs \\usepackage[T1]{fontenc}, \\usepackage{booktabs} and \\usepackage{amssymb}\n\n"
        text = preamble + "\n".join(table.latex() for table in self.tables)
        (folder / f"{self.name}.tex").write_text(text, encoding="utf-8")


def write_sheets(folder: Path, sheets: Iterable[Sheet]) -> None:
    """All sheets in a new folder."""
    folder.mkdir(parents=True)
    for sheet in sheets:
        sheet.write(folder)


def latex_text(text: str) -> str:
    r"""`text` so that LaTeX shows it letter by letter.

    >>> latex_text("50 % of {a_b}: −1")
    '50 \\% of \\{a\\_b\\}: $-$1'
    """
    return _SPECIAL.sub(lambda match: _LATEX[match[0]], text)
