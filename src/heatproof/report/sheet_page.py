"""A sheet as one HTML file that needs nothing beside it: style, scripts and pictures are in it."""

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof.images import display
from heatproof.report.gallery import outline_path, write_levels
from heatproof.report.html import gradient, render
from heatproof.report.sheet_content import Cell, Film, Sheet

_STYLES = ("report.css", "sheet.css")
_SCRIPTS = ("theme.js", "sheet.js")


def page(sheet: Sheet, facts: Mapping[str, Any]) -> str:
    """The file's text; `facts` are what `gallery.json` says of how the sheet was made."""
    scripts = [_asset(name) for name in _SCRIPTS]
    return render(
        "sheet.html.j2",
        sheet=sheet,
        facts=facts,
        styles=[_asset(name) for name in _STYLES],
        scripts=scripts,
        hashes=[_hash(script) for script in scripts],
        films=[_film(film) for film in sheet.films],
        families=[(family, [_row(sheet, row) for row in rows]) for family, rows in sheet.by_family()],
        kinds={sheet.is_signed(row) for row in range(len(sheet.methods))},
        scales={"positive": gradient(signed=False), "signed": gradient(signed=True)},
        opacity=display.OPACITY,
    )


def _asset(name: str) -> str:
    return resources.files("heatproof.report").joinpath("assets", name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """What the content security policy allows this script by."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _film(film: Film) -> dict[str, Any]:
    height, width = film.pixels.shape
    return {
        "name": film.image,
        "lines": film.lines,
        "width": width,
        "height": height,
        "picture": _grey_uri(film.pixels),
        "outline": None if film.region is None else outline_path(film.region),
    }


def _row(sheet: Sheet, row: int) -> dict[str, Any]:
    method = sheet.methods[row]
    return {
        "name": method.name,
        "remarks": method.remarks,
        "summary": method.entry.summary,
        "signed": sheet.is_signed(row),
        "parts": [_part(sheet, row, columns, failure) for columns, failure in sheet.spans(row)],
    }


def _part(sheet: Sheet, row: int, columns: Sequence[int], failure: Any) -> dict[str, Any]:
    first = columns[0]
    cell, film = sheet.cells[row][first], sheet.films[first]
    shown = {} if failure else {"map": _map_uri(cell), "caption": cell.caption}
    alt = f"{sheet.methods[row].name} of {film.image} by {film.model}"
    return {"span": len(columns), "film": first, "failure": failure, "alt": alt, **shown}


def _map_uri(cell: Cell) -> str:
    assert cell.map is not None  # noqa: S101 a cell without a failure has a map
    file = io.BytesIO()
    write_levels(display.levels(cell.map, signed=cell.signed, limits=cell.limits), cell.signed, file)
    return _uri(file.getvalue())


def _grey_uri(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="png")
    return _uri(file.getvalue())


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
