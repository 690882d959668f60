"""A sheet as a PNG: strips beside each other, in each the images at the top and a row a method under them.

Pictures are enlarged by whole numbers, so that every pixel of a map is a square of one colour.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from PIL.ImageFont import FreeTypeFont

from heatproof.images import display
from heatproof.report.figures import GRID, INK, MUTED
from heatproof.report.sheet_content import Cell, Failure, Film, Sheet

RAISED = "#f5f7f8"
MARGIN, GAP = 28, 8
LABEL = 150  # width of the methods' names
NARROWEST = 116  # width of a column, which has words in it
BAR = 40, 5  # the colour bar beside a name
_SIZES = {"title": 22, "heading": 15, "text": 13, "small": 11}
_LEADING = 1.3  # from line to line, of the font's size
_SHAPE = 0.9  # width of the whole by its height, as near as strips allow
_MOST_STRIPS = 8
_WORDS = 900  # longest line of the text at the top
Pixels = NDArray[np.uint8]


def tile(film: Film, cell: Cell | None, side: int) -> Pixels:
    """The film's image with the cell's map over it, or alone, uint8 `[h, w, 3]`.

    As large as whole multiples of the film's own pixels allow within `side`.
    """
    pixels, region = _enlarged(film.pixels, side), None if film.region is None else _enlarged(film.region, side)
    if cell is None or cell.map is None:
        return display.overlay(pixels, np.zeros(pixels.shape), roi=region, opacity=0.0)
    return display.overlay(pixels, _enlarged(cell.map, side), signed=cell.signed, roi=region, limits=cell.limits)


def _enlarged(array: NDArray[Any], side: int) -> NDArray[Any]:
    times = max(1, side // max(array.shape))
    return array.repeat(times, 0).repeat(times, 1)


def draw(sheet: Sheet, side: int) -> Image.Image:
    """The whole sheet; `side` is the longest side of a picture in pixels."""
    return _Drawing(sheet, side).whole()


class _Drawing:
    """Where things stand, in pixels, and the drawing of each."""

    def __init__(self, sheet: Sheet, side: int) -> None:
        self.sheet, self.side = sheet, side
        shapes = [_enlarged(film.pixels, side).shape for film in sheet.films]
        self.tile: tuple[int, int] = max(height for height, _ in shapes), max(width for _, width in shapes)
        self.column = max(self.tile[1], NARROWEST)
        models = [number for number, (_, columns) in enumerate(sheet.by_model()) for _ in columns]
        self.left = [LABEL + c * (self.column + GAP) + m * GAP for c, m in enumerate(models)]  # models a little apart
        self.strip = self.left[-1] + self.column + GAP
        self.heads = [self._head(film) for film in sheet.films]
        self.head = _height("text") + self.tile[0] + GAP + max(map(_height_of, self.heads)) + GAP
        labels = max(_height_of(self._label(row)) for row in range(len(sheet.methods))) + BAR[1] + GAP
        self.row = max(self.tile[0] + _height("small"), labels) + GAP
        self.heading = _height("heading") + GAP
        self.families = [family for family, rows in sheet.by_family() for _ in rows]

    def whole(self) -> Image.Image:
        """The sheet."""
        strips = self._strips(min(range(1, _MOST_STRIPS + 1), key=self._distance))
        width, height = self._size(strips)
        image = Image.new("RGB", (width, height), "white")
        top = self._top(image, width)
        for number, rows in enumerate(strips):
            self._strip(image, rows, MARGIN + number * (self.strip + MARGIN), top)
        self._bottom(image, height)
        return image

    def _distance(self, count: int) -> float:
        """How far the shape of a sheet of so many strips is from what is wanted."""
        width, height = self._size(self._strips(count))
        return abs(math.log(width / height / _SHAPE))

    def _strips(self, count: int) -> list[Sequence[int]]:
        """The rows of each strip, about as many in each."""
        rows = range(len(self.sheet.methods))
        each = math.ceil(len(rows) / count)
        return [rows[start : start + each] for start in range(0, len(rows), each)]

    def _size(self, strips: Sequence[Sequence[int]]) -> tuple[int, int]:
        width = max(MARGIN + len(strips) * (self.strip + MARGIN), _WORDS)
        return width, self._top(None, width) + max(map(self._strip_height, strips)) + self._bottom(None, 0)

    def _strip_height(self, rows: Sequence[int]) -> int:
        return self.head + len(rows) * self.row + len(self._headings(rows)) * self.heading

    def _headings(self, rows: Sequence[int]) -> dict[int, str]:
        """The heading before a row, where a family or a strip begins."""
        found = {}
        for row in rows:
            begins = row == 0 or self.families[row] != self.families[row - 1]
            if begins or row == rows[0]:
                found[row] = self.families[row] + ("" if begins else " (continued)")
        return found

    def _top(self, image: Image.Image | None, width: int) -> int:
        """What stands above the strips; its height."""
        y = MARGIN
        y += _write(image, (MARGIN, y), [("title", INK, "Heatproof gallery")]) + GAP
        lines = [line for note in self.sheet.notes for line in wrapped(note, "text", min(width, _WORDS) - 2 * MARGIN)]
        y += _write(image, (MARGIN, y), [("text", MUTED, line) for line in lines]) + GAP
        for signed, ends, meaning in LEGEND:
            if any(self.sheet.is_signed(row) == signed for row in range(len(self.sheet.methods))):
                y += _legend(image, (MARGIN, y), signed, ends, meaning)
        return y + 2 * GAP

    def _bottom(self, image: Image.Image | None, bottom: int) -> int:
        """What could not be read, above the lower edge; its height."""
        lines = [
            ("text", MUTED, f"{f.image}: {f.verdict}{f' ({f.model})' if f.model else ''}.") for f in self.sheet.unread
        ]
        height = _height_of(lines) + MARGIN
        _write(image, (MARGIN, bottom - height), lines)
        return height

    def _strip(self, image: Image.Image, rows: Sequence[int], x: int, y: int) -> None:
        for model, columns in self.sheet.by_model():
            width = len(columns) * (self.column + GAP) - GAP
            lines = wrapped(model, "text", width, most=1)
            _write(image, (x + self.left[columns[0]], y), [("text", INK, line) for line in lines])
        below = y + _height("text")
        for column, film in enumerate(self.sheet.films):
            place = x + self.left[column], below
            image.paste(Image.fromarray(tile(film, None, self.side)), place)
            _write(image, (place[0], below + self.tile[0] + GAP // 2), self.heads[column])
        y, headings = y + self.head, self._headings(rows)
        for row in rows:
            if row in headings:
                ImageDraw.Draw(image).line((x, y, x + self.strip - GAP, y), GRID)
                [heading] = wrapped(headings[row], "heading", self.strip - GAP, most=1)
                _write(image, (x, y + GAP // 2), [("heading", INK, heading)])
                y += self.heading
            self._row(image, row, x, y)
            y += self.row

    def _row(self, image: Image.Image, row: int, x: int, y: int) -> None:
        below = y + _write(image, (x, y), self._label(row)) + GAP // 2
        image.paste(_bar(self.sheet.is_signed(row), BAR), (x, below))
        for columns, failure in self.sheet.spans(row):
            place = x + self.left[columns[0]], y
            if failure is not None:
                self._absent(image, failure, place, len(columns))
                continue
            cell = self.sheet.cells[row][columns[0]]
            picture = tile(self.sheet.films[columns[0]], cell, self.side)
            image.paste(Image.fromarray(picture), place)
            lines = wrapped(cell.caption, "small", self.column, most=1)
            _write(image, (place[0], y + picture.shape[0]), [("small", MUTED, line) for line in lines])

    def _absent(self, image: Image.Image, failure: Failure, place: tuple[int, int], columns: int) -> None:
        width = columns * (self.column + GAP) - GAP
        x, y = place
        ImageDraw.Draw(image).rectangle((x, y, x + width - 1, y + self.tile[0] - 1), RAISED)
        most = max(1, (self.tile[0] - GAP) // _height("small"))
        lines = [*wrapped(failure.verdict, "small", width - GAP), *wrapped(failure.short, "small", width - GAP)]
        _write(image, (x + GAP // 2, y + GAP // 2), [("small", MUTED, line) for line in cut(lines, most)])

    def _head(self, film: Film) -> list[tuple[str, str, str]]:
        name = [("small", INK, line) for line in wrapped(film.image, "small", self.column, most=2)]
        said = [line for text in film.lines for line in wrapped(text, "small", self.column, most=2)]
        return [*name, *(("small", MUTED, line) for line in said)]

    def _label(self, row: int) -> list[tuple[str, str, str]]:
        method = self.sheet.methods[row]
        name = [("text", INK, line) for line in wrapped(method.name, "text", LABEL - GAP, most=3)]
        return [*name, *(("small", MUTED, line) for line in wrapped(method.remarks, "small", LABEL - GAP, most=3))]


LEGEND = (
    (False, ("0", "limit"), "positive maps"),
    (True, ("−limit", "limit"), "signed maps: blue speaks against the class, red for it"),
)


def wrapped(text: str, size: str, width: int, most: int = 100) -> list[str]:
    """The text in lines of at most `width` pixels, broken at spaces and after underscores; an ellipsis ends what is cut.

    >>> wrapped("smoothgrad_squared", "text", 100)
    ['smoothgrad_', 'squared']
    """
    lines: list[str] = []
    for piece in _pieces(text):
        if lines and _font(size).getlength((lines[-1] + piece).rstrip()) <= width:
            lines[-1] += piece
        else:
            lines.append(piece)
    return [_fitting(line.rstrip(), size, width) for line in cut(lines, most)]


def cut(lines: Sequence[str], most: int) -> list[str]:
    """The first `most` lines; where there were more, an ellipsis ends the last.

    >>> cut(["one", "two", "three"], 2)
    ['one', 'two …']
    """
    return list(lines) if len(lines) <= most else [*lines[: most - 1], f"{lines[most - 1].rstrip()} …"]


def _pieces(text: str) -> Iterator[str]:
    """The parts between which a line may end."""
    rest = " ".join(text.split())
    while rest:
        end = min((place + 1 for place in (rest.find(" "), rest.find("_")) if place >= 0), default=len(rest))
        yield rest[:end]
        rest = rest[end:]


def _fitting(line: str, size: str, width: int) -> str:
    if _font(size).getlength(line) <= width:
        return line
    while line and _font(size).getlength(f"{line}…") > width:
        line = line[:-1]
    return f"{line}…"


@lru_cache
def _font(size: str) -> FreeTypeFont:
    import matplotlib

    file = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), _SIZES[size], layout_engine=ImageFont.Layout.BASIC)


def _height(size: str) -> int:
    return round(_SIZES[size] * _LEADING)


def _height_of(lines: Sequence[tuple[str, str, str]]) -> int:
    return sum(_height(size) for size, _, _ in lines)


def _write(image: Image.Image | None, place: tuple[int, int], lines: Sequence[tuple[str, str, str]]) -> int:
    """Lines of (size, colour, text) from `place` downwards; their height. Without an image nothing is drawn."""
    x, y = place
    for size, colour, text in lines:
        if image is not None:
            ImageDraw.Draw(image).text((x, y), text, fill=colour, font=_font(size))
        y += _height(size)
    return y - place[1]


def _legend(
    image: Image.Image | None, place: tuple[int, int], signed: bool, ends: tuple[str, str], meaning: str
) -> int:
    """A colour bar between its ends, and what it means; its height."""
    (x, y), bar = place, (110, 10)
    middle = x + max(round(_font("text").getlength(low)) for _, (low, _), _ in LEGEND) + GAP
    low, high = ends
    start = middle - GAP - round(_font("text").getlength(low))
    _write(image, (start, y), [("text", MUTED, low)])
    _write(image, (middle + bar[0] + GAP, y), [("text", MUTED, f"{high}   {meaning}")])
    if image is not None:
        image.paste(_bar(signed, bar), (middle, y + 4))
    return _height("text")


def _bar(signed: bool, size: tuple[int, int]) -> Image.Image:
    """The colours of the scale from its low end to its high one, of this (width, height)."""
    width, height = size
    level = np.rint(np.linspace(0, display.UNDEFINED - 1, width)).astype(np.uint8)
    return Image.fromarray(np.repeat(display.colours(signed)[level][None], height, 0))
