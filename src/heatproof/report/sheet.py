"""Front door `gallery`: every method's maps of a few images on one sheet, to be compared by eye."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from torch import nn

from heatproof.checks import check_choice, check_count
from heatproof.errors import InputError
from heatproof.explainers import Explainer
from heatproof.explanation import Resolution, check_batch_size
from heatproof.explanation import methods as known_methods
from heatproof.images import display
from heatproof.models import Classifier, as_classifier
from heatproof.probing.progress import bar
from heatproof.report.sheet_content import Cell, Failure, Method, Sheet
from heatproof.report.sheet_making import QUICK, Asked, Regions, make_sheet, ordered
from heatproof.report.sheet_page import page
from heatproof.report.sheet_picture import draw
from heatproof.study.environment import environment
from heatproof.study.files import write_whole
from heatproof.study.plan import map_passes

FILES = ("gallery.html", "gallery.json", "gallery.png")
MOST_COLUMNS = 24  # more than an eye compares


def gallery(
    models: Classifier | nn.Module | Mapping[str, Classifier | nn.Module],
    images: Sequence[str | Path] | Mapping[str, str | Path],
    out: str | Path,
    *,
    methods: Sequence[str | tuple[str, Mapping[str, Any]]] | None = None,
    target: str | int | None = None,
    against: str | int | None = None,
    regions: str | Path | None = None,
    region: str | None = None,
    resolution: Resolution = "input",
    quick: bool = False,
    anonymous: bool = False,
    side: int = 128,
    batch_size: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Sheet:
    """Draw the maps of some images by every method under one or several models on one sheet.

    A row is a method, a column an image under a model. A method that a model cannot serve, or that fails on an image, keeps
    its place and says why. Colours are those of `heatproof.images.display`, and each map has a scale of its own.

    Args:
        models: one, or several by name.
        images: files (PNG, JPEG or DICOM); by name where the files' names are not distinct. Regions are found by these
            names, and random draws come from them.
        out: the folder, which gets `gallery.png`, `gallery.html` (one file, nothing beside it is needed) and
            `gallery.json`, what was drawn and how. It is made, or holds an earlier gallery, which is replaced.
        methods: names of `methods()`, or pairs of a name and options; by default all.
        target: the explained class, a name or an index; by default what the model predicts of each image.
        against: a contrast class: the difference of the two logits is explained.
        regions: a region table (`sample_id, region, kind, data`), whose regions are outlined. A `sample_id` is an image's
            name, with or without folders before it.
        region: the one of its regions that is drawn; needed where the table holds several.
        resolution: `input`, or `native` to show each map on the grid that its method computes.
        quick: no more than 100 samples and 10 steps where a method has such an option and it is not given.
        anonymous: call the images `image 1`, `image 2` ... in all that is written; files are often named after patients.
        side: the longest side of a picture, in pixels. Larger images and maps are averaged down to it.
        batch_size: images at a time, see `explain`.
        seed: of the random draws.
        progress: show a progress bar on standard error.

    Returns:
        What stands on the sheet. Its `failures` are images, regions and maps that should be there and are not.

    Raises:
        InputError: an argument is not what it must be, none of the images can be read, or the folder holds other things.

    Example:
        >>> import tempfile
        >>> from PIL import Image
        >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
        >>> clf = Classifier(net, ["normal", "lesion"], image_size=16, channels=1, mean=[0.5], std=[0.25])
        >>> folder = Path(tempfile.mkdtemp())
        >>> Image.linear_gradient("L").save(folder / "a.png")
        >>> sheet = gallery(clf, [folder / "a.png"], folder / "out", methods=["gradcam", "lrp_z", "attention"])
        >>> [row[0].failure.verdict if row[0].failure else "drawn" for row in sheet.cells]
        ['not for this model', 'drawn', 'drawn']
        >>> sorted(path.name for path in (folder / "out").iterdir())
        ['gallery.html', 'gallery.json', 'gallery.png']
    """
    folder = _checked_folder(out)
    classifiers = _named_models(models)
    files = _named_files(images)
    _check_columns(len(classifiers), len(files))
    check_choice("resolution", resolution, get_args(Resolution))
    asked = Asked(target, against, resolution, check_count("side", side), check_batch_size(batch_size), seed)
    annotated = _regions(regions, region, list(files))
    rows = ordered(_entries(methods), quick=quick)
    work = [1 + _passes(row) for row in rows]
    with bar("drawing maps", sum(work) * len(classifiers), progress) as show:
        finished = 0

        def done(row: int) -> None:
            nonlocal finished
            finished += work[row]
            show(finished)

        names = {key: f"image {i}" if anonymous else key for i, key in enumerate(files, 1)}
        sheet = make_sheet(classifiers, files, rows, asked, regions=annotated, names=names, done=done)
    _write(sheet, folder, _facts(sheet, classifiers, asked, quick=quick))
    return sheet


def _checked_folder(out: str | Path) -> Path:
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, and a gallery is a folder. Choose another name.")
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in there if name not in FILES and not name.startswith(".")]
    if others:
        raise InputError(
            f"{folder}: holds other things ({', '.join(others[:3])}{' ...' if len(others) > 3 else ''}), and a gallery has "
            "a folder of its own. Choose another."
        )
    return folder


def _named_models(models: Classifier | nn.Module | Mapping[str, Classifier | nn.Module]) -> dict[str, Classifier]:
    if isinstance(models, Classifier | nn.Module):
        clf = as_classifier(models)
        return {type(clf.module).__name__: clf}
    if not isinstance(models, Mapping):
        raise InputError(f"models must be a model or models by name, {{'vit': clf}}, got {type(models).__name__}.")
    return {str(name): as_classifier(model) for name, model in models.items()}


def _named_files(images: Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, str | Path]:
    if isinstance(images, Mapping):
        return dict(images)
    if isinstance(images, str | Path):
        raise InputError(f"images must be a list of files, got the single path {str(images)!r}: put it in a list.")
    named = {Path(path).stem: path for path in images}
    if len(named) < len(images):
        raise InputError("Several images have the same name: give them by names of your own, {'name': path}.")
    return named


def _check_columns(models: int, images: int) -> None:
    """Raise `InputError` for nothing to show, or more than can be compared."""
    if not models or not images:
        raise InputError(f"A gallery needs at least one model and one image, got {models} and {images}.")
    if models * images > MOST_COLUMNS:
        raise InputError(
            f"A sheet has a column for each image under each model, {MOST_COLUMNS} at most, got {images} × {models}. Give "
            "fewer images, or run a study: its report shows every case."
        )


def _regions(table: str | Path | None, region: str | None, keys: Sequence[str]) -> Regions | None:
    if table is not None:
        return Regions.read(table, region, keys)
    if region is not None:
        raise InputError(f"region {region!r} is one of a region table, and none is given: name its file as regions.")
    return None


def _entries(
    methods: Sequence[str | tuple[str, Mapping[str, Any]]] | None,
) -> list[tuple[Explainer, Mapping[str, Any]]]:
    if isinstance(methods, str) or (methods is not None and not len(methods)):
        raise InputError(f"methods must be a list of at least one name, got {methods!r}. Leave it out for all.")
    pairs = [(method, {}) if isinstance(method, str) else method for method in methods or known_methods()]
    return [(known_methods()[name], options) for name, options in pairs]


def _passes(method: Method) -> int:
    """About how many forward passes a map costs, for the progress bar."""
    return map_passes(method.entry, {name: value for name, value in method.options.items() if isinstance(value, int)})


def _write(sheet: Sheet, folder: Path, facts: Mapping[str, Any]) -> None:
    """The three files, each whole or not at all."""
    text = json.dumps(
        {**facts, **_content(sheet)}, indent=1, default=lambda value: type(value).__name__, allow_nan=False
    )
    drawn = draw(sheet, facts["side"])
    write_whole(folder / "gallery.png", lambda file: drawn.save(file, format="png", optimize=True))
    write_whole(folder / "gallery.html", lambda file: file.write(page(sheet, _in_words(facts)).encode()))
    write_whole(folder / "gallery.json", lambda file: file.write(f"{text}\n".encode("ascii")))


def _facts(sheet: Sheet, models: Mapping[str, Classifier], asked: Asked, *, quick: bool) -> dict[str, Any]:
    """How the sheet was made; nothing that names files, people or the machine."""
    shown = [(name, models[name]) for name, _ in sheet.by_model()]
    where = {key: value for key, value in environment(str(shown[0][1].device)).items() if key != "created"}
    return {
        **dataclasses.asdict(asked),
        "quick": QUICK if quick else None,
        "scaling": {
            "of": "each map alone",
            "limit": f"percentile {display.PERCENTILE:g} of the absolute values",
            "signed": "from -limit to limit, RdBu without its ends",
            "positive": "from 0 to limit, viridis",
            "opacity": display.OPACITY,
        },
        "region": sheet.region,
        "models": [
            {
                "name": name,
                "network": type(clf.module).__name__,
                "task": clf.task,
                "classes": None if clf.classes is None else list(clf.classes),
                "preprocessing": dataclasses.asdict(clf.preprocessing),
            }
            for name, clf in shown
        ],
        "environment": where,
    }


def _in_words(facts: Mapping[str, Any]) -> dict[str, str]:
    """What of it a reader of the page wants to know."""
    packages = {"heatproof": facts["environment"]["heatproof"], **facts["environment"]["packages"]}
    words = {
        "explained": facts["target"] if facts["target"] is not None else "the class that the model predicts",
        "against": facts["against"],
        "resolution": facts["resolution"],
        "scale": "of each map alone, to the " + facts["scaling"]["limit"],
        "draws": facts["quick"] and ", ".join(f"at most {most} {name}" for name, most in facts["quick"].items()),
        "seed": facts["seed"],
        "device": facts["environment"]["device"]["name"],
        "versions": ", ".join(f"{name} {packages[name]}" for name in ("heatproof", "torch", "numpy", "pillow")),
    }
    words |= {
        f"model {model['name']}": f"{model['network']}, {' × '.join(map(str, model['preprocessing']['image_size']))} pixels"
        for model in facts["models"]
    }
    return {name: str(text) for name, text in words.items() if text is not None}


def _content(sheet: Sheet) -> dict[str, Any]:
    """What stands on the sheet, in plain values."""
    return {
        "columns": [
            {
                "model": film.model,
                "image": film.image,
                "predicted": film.predicted,
                "target": film.target,
                "against": film.against,
                "probabilities": dict(film.probabilities),
                "region": None if film.region is None else bool(film.region.any()),
            }
            for film in sheet.films
        ],
        "rows": [
            {
                "method": method.name,
                "family": method.entry.family,
                "signed": sheet.is_signed(row),
                "options": {**method.entry.options, **method.options},
                "paper": method.entry.paper,
                "cells": [_plain(cell) for cell in sheet.cells[row]],
            }
            for row, method in enumerate(sheet.methods)
        ],
        "unread": [_named(failure) for failure in sheet.unread],
    }


def _plain(cell: Cell) -> dict[str, Any]:
    if cell.failure is not None:
        return {"verdict": cell.failure.verdict, "message": cell.failure.message}
    return {"limit": cell.limit, "note": cell.note}


def _named(failure: Failure) -> dict[str, str]:
    return {"image": failure.image, "model": failure.model, "verdict": failure.verdict}
