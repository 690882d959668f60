"""From models, images and methods to the content of a sheet."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from heatproof.datasets.region_table import read_region_table
from heatproof.datasets.table import Dataset
from heatproof.errors import EmptyMapWarning, HeatproofError, InputError, UnsupportedModelError, near_names
from heatproof.explainers import Explainer
from heatproof.explanation import Resolution, check_finite, explain
from heatproof.images import display
from heatproof.images.geometry import Geometry, fit_geometry
from heatproof.images.read import RawImage, read_image
from heatproof.models import Classifier, Targets
from heatproof.models.targets import class_index
from heatproof.report.gallery import note_on, shrunk
from heatproof.report.sheet_content import FAMILIES, Cell, Failure, Film, Method, Sheet

QUICK = {"samples": 100, "steps": 10}  # draws and steps that do for a first look
_AT_ONCE = 8  # images in a forward pass for predictions
Found: TypeAlias = NDArray[np.float32] | Failure


def ordered(methods: Sequence[tuple[Explainer, Mapping[str, Any]]], *, quick: bool) -> list[Method]:
    """The rows in the order of the families, controls last; a method without options once.

    With `quick`, draws and steps that are not given are cut to a few.

    Raises:
        InputError: an option that the method does not have.
    """
    rows: list[Method] = []
    for entry, options in methods:
        entry.check_options(options)
        fewer = {name: most for name, most in QUICK.items() if quick and _is_above(entry.options.get(name), most)}
        plain = not options and any(row.entry is entry and row.options == fewer for row in rows)
        rows += [] if plain else [Method(entry, {**fewer, **options})]
    places = {family: place for place, family in enumerate(FAMILIES)}
    return sorted(rows, key=lambda row: places.get(row.entry.family, places["control"] - 0.5))


def _is_above(value: Any, most: int) -> bool:
    return isinstance(value, int) and value > most


@dataclass(frozen=True)
class Asked:
    """What is wanted of every model: arguments of `heatproof.report.sheet.gallery`."""

    target: str | int | None
    against: str | int | None
    resolution: Resolution
    side: int
    batch_size: int | None
    seed: int


@dataclass(frozen=True, eq=False)
class Regions:
    """The regions named `region` of some images."""

    dataset: Dataset
    region: str

    @classmethod
    def read(cls, table: str | Path, region: str | None, keys: Sequence[str]) -> "Regions":
        """Those of a region table, by the images' keys.

        Raises:
            InputError: no such table or region, several regions and none named, or none of the images is in the table.
        """
        rows = read_region_table(table, Path(table).parent)
        known = list(dict.fromkeys(rows["region"]))
        if region is None and len(known) > 1:
            raise InputError(
                f"{table} holds several regions: {', '.join(known)}. Say which one is to be drawn: region."
            )
        region = known[0] if region is None else region
        if region not in known:
            raise InputError(f"{table} has no region {region!r}. {near_names(region, known)}")
        ends = _ends(rows["sample_id"].unique().tolist())
        rows = rows.assign(sample_id=rows["sample_id"].map(lambda name: ends.get(name, name)))
        found = rows[rows["sample_id"].isin(list(keys))].reset_index(drop=True)
        if found.empty:
            raise InputError(
                f"{table}: none of its samples is one of the images. A sample_id must be the name of the image's file "
                f"without suffix, with or without folders before it; the first is {rows['sample_id'].iloc[0]!r}."
            )
        samples = pd.DataFrame({"sample_id": list(keys)})
        return cls(Dataset(str(table), samples, found, classes=(), root=Path(table).parent), region)

    def seen(self, key: str, geometry: Geometry, side: int, label: str | None) -> NDArray[np.bool_] | None:
        """The region as the model sees it, bool `[h, w]` of at most `side` pixels; None where nobody annotated it."""
        found = self.dataset.region(key, self.region, geometry.source_size, label=label)
        if found is None:
            return None
        mask = geometry.mask(found)
        height, width = shrunk(mask.astype(np.float32), side).shape
        return fit_geometry("resize", geometry.size, (height, width)).mask(mask)

    def label(self, clf: Classifier, target: str) -> str | None:
        """The class whose regions count: the explained one, where each has its own."""
        own = clf.task == "multilabel" and self.dataset.regions["label"].notna().any()
        return target if own else None


def _ends(ids: Sequence[str]) -> dict[str, str]:
    """Sample ids -> what stands after their last slash, of those that it tells from all others."""
    ends = {name: PurePosixPath(name).name for name in ids}
    counts = Counter(ends.values())
    return {name: end for name, end in ends.items() if counts[end] == 1}


def make_sheet(
    models: Mapping[str, Classifier],
    images: Mapping[str, str | Path],
    methods: Sequence[Method],
    asked: Asked,
    *,
    regions: Regions | None,
    names: Mapping[str, str],
    done: Callable[[int], None],
) -> Sheet:
    """Read, predict and explain.

    Args:
        models: by name.
        images: files by key, which random draws come from and regions are found by.
        methods: the rows.
        asked: of every model.
        regions: of the images, where they are outlined.
        names: what each key is called on the sheet.
        done: told of a row whenever a model is through with it.

    Raises:
        InputError: none of the images can be shown, or a model does not have a class that is asked for.
    """
    unread: list[Failure] = []
    raws: dict[str, RawImage] = {}
    for key, path in images.items():
        try:
            raws[key] = read_image(path)
        except HeatproofError as error:
            unread.append(Failure(str(error), "the file cannot be read", image=names[key]))
    benches = [_bench(model, clf, raws, names, asked, regions, unread) for model, clf in models.items()]
    films = [film for bench in benches for film in bench.films]
    if not films:
        raise InputError(f"None of the images can be shown. The first: {unread[0].message}")
    cells = []
    for place, method in enumerate(methods):
        found: list[Found] = []
        for bench in benches:
            found += bench.maps(method, asked)
            done(place)
        signed = method.entry.signed or _is_negative(found, asked)
        cells.append([_cell(one, signed, asked.side) for one in found])
    region, native = None if regions is None else regions.region, asked.resolution == "native"
    return Sheet(methods, films, cells, region, native, list(dict.fromkeys(unread)))


@dataclass(frozen=True, eq=False)
class _Bench:
    """A model with the images `[B, C, H, W]` that it can take, and what is explained of each."""

    clf: Classifier
    keys: Sequence[str]
    films: Sequence[Film]
    images: Tensor
    targets: Tensor
    against: int | None

    def maps(self, method: Method, asked: Asked) -> list[Found]:
        """By one method, a map `[H, W]` of each film, or why there is none."""
        if "references" in method.entry.needs and "references" not in method.options:
            message = f"{method.name} is made of training images, which are given as options: references, labels."
            return [self._failure(row, method, message, "needs training images") for row in range(len(self.films))]
        rows = [row for row, target in enumerate(self.targets.tolist()) if target != self.against]
        found = dict(zip(rows, self._maps(method, rows, asked), strict=True)) if rows else {}
        against = "{} cannot be explained against itself."
        return [
            found[row]
            if row in found
            else self._failure(row, method, against.format(film.target), "nothing to explain")
            for row, film in enumerate(self.films)
        ]

    def _failure(self, row: int, method: Method, message: str, verdict: str) -> Failure:
        film = self.films[row]
        return Failure(message, verdict, expected=True, model=film.model, image=film.image, method=method.name)

    def _maps(self, method: Method, rows: list[int], asked: Asked) -> list[Found]:
        """The same of some films; where some fail, each is tried alone."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", EmptyMapWarning)  # the sheet says so under the map
                maps = explain(
                    self.clf,
                    self.images[rows],
                    self.targets[rows],
                    method=method.name,
                    against=self.against,
                    keys=[self.keys[row] for row in rows],
                    batch_size=asked.batch_size,
                    seed=asked.seed,
                    resolution=asked.resolution,
                    **method.options,
                )
        except UnsupportedModelError as error:
            return [self._raised(row, method, error) for row in rows]
        except (HeatproofError, RuntimeError) as error:  # what torch raises are RuntimeErrors, out of memory among them
            if len(rows) > 1:
                return [found for row in rows for found in self._maps(method, [row], asked)]
            return [self._raised(rows[0], method, error)]
        whole = F.interpolate(maps[:, None], tuple(self.images.shape[2:]))  # the nearest cell of the method's own grid
        return list(whole[:, 0].cpu().numpy())

    def _raised(self, row: int, method: Method, error: Exception) -> Failure:
        film = self.films[row]
        return Failure.of_method(error, model=film.model, image=film.image, method=method.name)


def _is_negative(found: Sequence[Found], asked: Asked) -> bool:
    """Whether maps of a method that is not signed are negative, as those of a contrast can be."""
    maps = [map for map in found if not isinstance(map, Failure)]
    return asked.against is not None and any(display.is_signed(map) for map in maps)


def _cell(found: Found, signed: bool, side: int) -> Cell:
    if isinstance(found, Failure):
        return Cell(signed, failure=found)
    limits = display.robust_limits(found, signed=signed)
    return Cell(signed, shrunk(found, side), None if limits is None else limits[1], note_on(found))


def _bench(
    model: str,
    clf: Classifier,
    raws: Mapping[str, RawImage],
    names: Mapping[str, str],
    asked: Asked,
    regions: Regions | None,
    unread: list[Failure],
) -> _Bench:
    taken: dict[str, tuple[Tensor, Geometry]] = {}
    for key, raw in raws.items():
        try:
            taken[key] = clf.preprocessing(raw)
        except HeatproofError as error:
            unread.append(Failure(str(error), "the image does not fit the model", model=model, image=names[key]))
    if not taken:
        return _Bench(clf, [], [], torch.empty(0), torch.empty(0), None)
    images = torch.stack([tensor for tensor, _ in taken.values()]).to(clf.device)
    with torch.no_grad():
        logits = torch.cat([clf(part) for part in images.split(_AT_ONCE)])
        check_finite(clf, images, logits)
    predicted, against = logits.argmax(1), None if asked.against is None else _index(clf, asked.against, "against")
    targets = predicted if asked.target is None else torch.full_like(predicted, _index(clf, asked.target, "target"))
    Targets.of(targets, against, logits.shape[1])  # refuses a number that is no class before the work
    labels = [str(k) for k in range(logits.shape[1])] if clf.classes is None else list(clf.classes)
    films = []
    for row, (key, (_, geometry)) in enumerate(taken.items()):
        k, t, p = int(predicted[row]), int(targets[row]), clf.probabilities(logits[row]).tolist()
        region = None
        if regions is not None:
            try:
                region = regions.seen(key, geometry, asked.side, regions.label(clf, labels[t]))
            except HeatproofError as error:
                unread.append(Failure(str(error), "the region cannot be read", image=names[key]))
        film = Film(
            model=model,
            image=names[key],
            pixels=_grey(raws[key], geometry, asked.side),
            region=region,
            predicted=labels[k],
            target=labels[t],
            against=None if against is None else labels[against],
            probabilities={labels[i]: p[i] for i in (k, t, k if against is None else against)},
            multilabel=clf.task == "multilabel",
        )
        films.append(film)
    return _Bench(clf, list(taken), films, images, targets, against)


def _index(clf: Classifier, wanted: str | int, argument: str) -> int:
    return class_index(clf.classes, wanted, argument) if isinstance(wanted, str) else wanted


def _grey(raw: RawImage, geometry: Geometry, side: int) -> NDArray[np.uint8]:
    """What the model sees, at the size of the pictures."""
    grey = raw.pixels if raw.pixels.ndim == 2 else raw.pixels.mean(-1)
    levels: NDArray[np.uint8] = np.rint(shrunk(geometry.image(grey), side).clip(0, 1) * 255).astype(np.uint8)
    return levels
