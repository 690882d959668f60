"""Every explained case of every model: image, outline of the region, heatmaps, prediction and scores.

A heatmap is a palette PNG of its own, transparent where it is silent; the page lays it over the grey image. So the image
is stored once, a map costs a few kilobytes, and the page can set the opacity. The outline is a vector path. What the page
says of the cases lies in one script of plain data, `assets/cases.js`, from which it draws those that are looked at.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from heatproof.images import display
from heatproof.report.cases import (
    Row,
    explained_cases,
    is_multilabel,
    names_in,
    outcome_of,
    predictions_of,
    truth_of,
)  # fmt: skip
from heatproof.report.tables import higher_is_better, is_control, is_signed
from heatproof.report.text import significant
from heatproof.study.store import Run

# A map takes about a byte a pixel: this many pixels in all, so that a report of thousands of cases can still be copied.
PIXELS = 128_000_000
SIDES = 96, 256  # pixels, the shortest and the longest side that a picture is stored with
_REASONS = {"UnsupportedModelError": "not possible for this model"}
Case = tuple[str, str | None]  # sample, explained class


def picture_side(run: Run) -> int:
    """The longest side, in pixels, that a picture is stored with: the more maps there are, the shorter."""
    maps = len(run.methods) * sum(len(explained_cases(run, model)) for model in run.models)
    least, most = SIDES
    return max(least, min(most, math.isqrt(PIXELS // max(1, maps))))


def write_gallery(run: Run, folder: Path) -> int:
    """Write the pictures of all cases under `<folder>/assets/cases` and what is said of them; returns their number."""
    cards: dict[str, list[dict[str, Any]]] = {}
    side = picture_side(run)
    for m, model in enumerate(run.models):
        inside = f"assets/cases/{m}-{model}"
        (folder / inside).mkdir(parents=True)
        for card in _cards(run, model, folder, inside, side):
            cards.setdefault(card["sample"], []).append(card)
    in_order = [card for several in cards.values() for card in several]  # a case's models together
    content = {
        "models": run.models,
        "classes": run.classes,
        "methods": [{"name": m, "control": is_control(run, m), "signed": is_signed(run, m)} for m in run.methods],
        "metrics": [{"name": m, "higher": higher_is_better(run, m)} for m in run.metrics],
        "cards": in_order,
    }
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))  # ASCII, so no character can end a script line
    (folder / "assets" / "cases.js").write_text(f"window.heatproofCases = {text};\n", encoding="ascii")
    return len(in_order)


def _cards(run: Run, model: str, folder: Path, inside: str, side: int) -> Iterator[dict[str, Any]]:
    cases = explained_cases(run, model)
    numbers = {sample: f"{inside}/{i:04d}" for i, sample in enumerate(dict.fromkeys(s for s, _ in cases))}
    # method by method: each chunk of maps is then read once
    tiles = [_tiles(run, model, method, folder, cases, numbers, side) for method in run.methods]
    predictions = predictions_of(run, model)
    multilabel = is_multilabel(predictions)
    rows = {row["sample_id"]: row for row in predictions.to_dict("records")}
    for place, (sample, target) in enumerate(cases):
        image, roi = run.image(model, sample), run.roi(model, sample, target)
        file = folder / f"{numbers[sample]}.png"
        if not file.exists():
            _grey(image, file, side)
        yield {
            "model": model,
            "sample": sample,
            "image": f"{numbers[sample]}.png",
            "size": [image.shape[1], image.shape[0]],
            "outline": None if roi is None else outline_path(roi),
            **_said(rows[sample], target, run.classes, multilabel=multilabel),
            "tiles": [of_method[place] for of_method in tiles],
        }


def _said(row: Row, target: str | None, classes: Sequence[str], *, multilabel: bool) -> dict[str, Any]:
    """Truth and prediction of one case; `p` are the probabilities of the predicted, the true and the explained classes."""
    labels = names_in(row["labels"]) if multilabel else [row["label"]]
    predicted = names_in(row["predicted"]) if multilabel else [row["predicted"]]
    asked = target if target is not None else (predicted or labels or list(classes))[0]
    named = dict.fromkeys([*predicted, *labels, *([target] if target else [])])
    return {
        "labels": labels,
        "predicted": predicted,
        "target": target,
        "truth": truth_of(row, asked, multilabel=multilabel),
        "correct": outcome_of(row, asked, multilabel=multilabel),
        "multilabel": multilabel,
        "p": {name: round(float(row[f"p_{name}"]), 4) for name in named},
    }


def _tiles(
    run: Run, model: str, method: str, folder: Path, cases: Sequence[Case], numbers: Mapping[str, str], side: int
) -> list[dict[str, Any]]:
    """For each case its heatmap's file, the end of its scale, a note, and a score for each metric."""
    signed = is_signed(run, method)
    scores = run.scores[(run.scores["model"] == model) & (run.scores["method"] == method)]
    keys = zip(scores["sample_id"], scores["target"], scores["metric"], strict=True)
    values = dict(zip(keys, scores["value"].astype(float), strict=True))
    failures = _reasons(run, model, method)
    tiles = []
    for sample, target in cases:
        map = None if target is None else run.map(model, method, sample, target)
        tile: dict[str, Any] = {"scores": [_number(values.get((sample, target, metric))) for metric in run.metrics]}
        if map is None:
            tile["note"] = failures.get(sample, failures.get("", "no map"))
        else:
            tile["file"] = f"{numbers[sample]}-{method}-{run.classes.index(str(target))}.png"
            heatmap(map, signed, folder / tile["file"], side)
            tile["limit"], tile["note"] = _limit(map, signed), note_on(map)
        tiles.append(tile)
    return tiles


def _number(value: float | None) -> float | str | None:
    """A score with four digits; None where undefined, an empty text where there is none."""
    if value is None:
        return ""
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return None if math.isnan(value) else float(f"{value:.4g}")


def _reasons(run: Run, model: str, method: str) -> dict[str, str]:
    """Sample id (empty: all samples) -> the error for which there is no map."""
    rows = run.failures[(run.failures["model"] == model) & (run.failures["method"] == method)]
    rows = rows[rows["metric"] == ""]
    return {s: _REASONS.get(e, f"no map: {e}") for s, e in zip(rows["sample_id"], rows["error"], strict=True)}


def _limit(map: NDArray[Any], signed: bool) -> str:
    limits = display.robust_limits(map, signed=signed)
    return "" if limits is None else significant(limits[1], 2)


def note_on(map: NDArray[Any]) -> str:
    """What of the map has no place on a scale; empty where all has."""
    reason = display.undefined_reason(map)
    if reason is not None:
        return reason
    undefined = int((~np.isfinite(map)).sum())
    return f"{undefined:,} pixels undefined (grey)" if undefined else ""


def heatmap(map: NDArray[Any], signed: bool, path: Path, side: int) -> None:
    """Write the map as a palette PNG of at most `side` pixels, coloured by the rules of `heatproof.images.display`."""
    limits, shown = display.robust_limits(map, signed=signed), shrunk(map.astype(np.float32), side)
    undefined = np.full(shown.shape, display.UNDEFINED, np.uint8)
    level = undefined if limits is None else display.levels(shown, signed=signed, limits=limits)
    write_levels(level, signed, path)


def write_levels(level: NDArray[np.uint8], signed: bool, file: Path | IO[bytes]) -> None:
    """Write colour levels as a palette PNG, the more transparent the weaker they are."""
    from PIL import Image

    picture = Image.fromarray(level, mode="P")
    picture.putpalette(display.colours(signed).tobytes())
    picture.save(file, format="png", transparency=display.alphas(signed, opacity=1.0).tobytes())


def _grey(image: NDArray[np.uint8], path: Path, side: int) -> None:
    from PIL import Image

    Image.fromarray(shrunk(image, side)).save(path)


def shrunk(pixels: NDArray[Any], side: int) -> NDArray[Any]:
    """Pixel values averaged down to `side` on the longer side, where it is longer; NaN stays NaN."""
    from PIL import Image

    height, width = pixels.shape
    scale = side / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))


def outline_path(roi: NDArray[np.bool_]) -> str:
    """The region's border as the `d` of an SVG path, in pixels from the image's upper left corner."""
    parts = []
    for polygon in display.contours(roi):
        points = [f"{x + 0.5:g} {y + 0.5:g}" for x, y in polygon[:-1]]
        parts.append(f"M{'L'.join(points)}Z")
    return "".join(parts)
