"""Every explained case of every model: image, outline of the region, heatmaps, prediction and scores.

A heatmap is a palette PNG of its own, transparent where it is silent; the page lays it over the grey image. So the image
is stored once, a map costs a few kilobytes, and the page can set the opacity. The outline is a vector path.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heatproof.images import display
from heatproof.report.tables import is_control, is_signed
from heatproof.report.text import significant
from heatproof.study.store import Run

_REASONS = {"UnsupportedModelError": "not possible for this model"}


@dataclass(frozen=True)
class Tile:
    """A heatmap of one case: its file (relative to the page), its scale, its scores; or why there is none."""

    method: str
    control: bool
    signed: bool
    file: str | None
    limit: str
    note: str
    scores: Mapping[str, float | None]
    explained: str | None


@dataclass(frozen=True)
class Card:
    """One case seen by one model. `outline` is the `d` of an SVG path in a box of `width` × `height` pixels."""

    model: str
    sample_id: str
    label: str
    predicted: str
    probability: float
    probability_of_label: float
    image: str
    height: int
    width: int
    annotated: bool
    outline: str
    tiles: tuple[Tile, ...]

    @property
    def correct(self) -> bool:
        """Whether the prediction is the label."""
        return self.predicted == self.label

    @property
    def explained(self) -> str | None:
        """The class that the maps explain, where it is one for all of them and not the predicted one."""
        targets = {tile.explained for tile in self.tiles} - {None}
        return targets.pop() if len(targets) == 1 and targets != {self.predicted} else None


def gallery(run: Run, folder: Path) -> list[Card]:
    """Write the pictures of all cases under `<folder>/assets/cases` and return their cards, a case's models together."""
    cards: dict[tuple[str, str], Card] = {}
    for m, model in enumerate(run.models):
        inside = f"assets/cases/{m}-{model}"
        (folder / inside).mkdir(parents=True)
        cards.update({(card.sample_id, model): card for card in _cards(run, model, folder, inside)})
    in_order = dict.fromkeys(sample for model in run.models for sample in run.cases(model))
    return [cards[sample, model] for sample in in_order for model in run.models if (sample, model) in cards]


def _cards(run: Run, model: str, folder: Path, inside: str) -> Iterator[Card]:
    names = {sample: f"{inside}/{i:04d}" for i, sample in enumerate(run.cases(model))}
    # method by method: each chunk of maps is then read once
    tiles = {method: _tiles(run, model, method, folder, names) for method in run.methods}
    predictions = run.predictions[run.predictions["model"] == model].to_dict("records")
    rows = {row["sample_id"]: row for row in predictions}
    for sample, name in names.items():
        image, roi = run.image(model, sample), run.roi(model, sample)
        file = f"{name}.png"
        _grey(image, folder / file)
        row = rows[sample]
        yield Card(
            model=model,
            sample_id=sample,
            label=row["label"],
            predicted=row["predicted"],
            probability=float(row[f"p_{row['predicted']}"]),
            probability_of_label=float(row[f"p_{row['label']}"]),
            image=file,
            height=image.shape[0],
            width=image.shape[1],
            annotated=roi is not None,
            outline="" if roi is None else outline_path(roi),
            tiles=tuple(tiles[method][sample] for method in run.methods),
        )


def _tiles(run: Run, model: str, method: str, folder: Path, names: Mapping[str, str]) -> dict[str, Tile]:
    signed, control = is_signed(run, method), is_control(run, method)
    scores = run.scores[(run.scores["model"] == model) & (run.scores["method"] == method)]
    values = {(s, m): float(v) for s, m, v in zip(scores["sample_id"], scores["metric"], scores["value"], strict=True)}
    failures = _reasons(run, model, method)
    tiles = {}
    for sample, name in names.items():
        map = run.map(model, method, sample)
        file = None if map is None else f"{name}-{method}.png"
        if map is not None:
            heatmap(map, signed, folder / str(file))
        tiles[sample] = Tile(
            method=method,
            control=control,
            signed=signed,
            file=file,
            limit="" if map is None else _limit(map, signed),
            note=failures.get(sample, failures.get("", "no map")) if map is None else _note(map),
            scores={metric: values.get((sample, metric)) for metric in run.metrics},
            explained=run.target(model, method, sample),
        )
    return tiles


def _reasons(run: Run, model: str, method: str) -> dict[str, str]:
    """Sample id (empty: all samples) -> the error for which there is no map."""
    rows = run.failures[(run.failures["model"] == model) & (run.failures["method"] == method)]
    rows = rows[rows["metric"] == ""]
    return {s: _REASONS.get(e, f"no map: {e}") for s, e in zip(rows["sample_id"], rows["error"], strict=True)}


def _limit(map: NDArray[Any], signed: bool) -> str:
    limits = display.robust_limits(map, signed=signed)
    return "" if limits is None else significant(limits[1], 2)


def _note(map: NDArray[Any]) -> str:
    reason = display.undefined_reason(map)
    if reason is not None:
        return reason
    undefined = int((~np.isfinite(map)).sum())
    return f"{undefined:,} pixels undefined (grey)" if undefined else ""


def heatmap(map: NDArray[Any], signed: bool, path: Path) -> None:
    """Write the map as a palette PNG whose colours and transparency are those of `heatproof.images.display`."""
    from PIL import Image

    picture = Image.fromarray(display.levels(map, signed=signed), mode="P")
    picture.putpalette(display.colours(signed).tobytes())
    picture.save(path, transparency=display.alphas(signed, opacity=1.0).tobytes())


def _grey(image: NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    Image.fromarray(image).save(path)


def outline_path(roi: NDArray[np.bool_]) -> str:
    """The region's border as the `d` of an SVG path, in pixels from the image's upper left corner."""
    parts = []
    for polygon in display.contours(roi):
        points = [f"{x + 0.5:g} {y + 0.5:g}" for x, y in polygon[:-1]]
        parts.append(f"M{'L'.join(points)}Z")
    return "".join(parts)
