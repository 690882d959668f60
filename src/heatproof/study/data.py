"""The images of a study: loaded, looked at, split, and those chosen that are explained."""

import hashlib
import itertools
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from heatproof.datasets.check import check_dataset
from heatproof.datasets.folder import load_folder
from heatproof.datasets.splits import DEFAULT_FRACTIONS, check_splits, split_by_patient
from heatproof.datasets.table import Dataset, load_table
from heatproof.errors import HeatproofError, InputError, near_names
from heatproof.explanation import methods
from heatproof.images.read import read_image
from heatproof.images.regions import KINDS
from heatproof.study.files import whole_folder
from heatproof.study.recipe import PhantomSpec, Recipe
from heatproof.study.store import FAILURE_COLUMNS
from heatproof.study.writing import Failures

TARGETS = ("predicted", "label")
NO_LABEL = ""  # the group of the images that no label applies to
PHANTOM = "phantom-"  # begins the name of the folder that a phantom is made in


def load_dataset(recipe: Recipe, folder: Path) -> Dataset:
    """The data set that a recipe names, before any file is looked at; a phantom is made in `folder` once.

    Raises:
        InputError: the table, the folder or the recipe's `region` or `target` is not what it must be.
    """
    dataset = _source(recipe, folder)
    region, known = recipe.data.region, sorted(set(dataset.regions["region"].astype(str)))
    if region is not None and region not in known:
        raise InputError(f"data.region: no sample has a region {region!r}. {near_names(region, known)}")
    _check_target(recipe.target, dataset.classes)
    return dataset


def _check_target(target: str | list[str], classes: Sequence[str]) -> None:
    names = [target] if isinstance(target, str) else target
    allowed = [*(TARGETS if isinstance(target, str) else ()), *classes]
    for name in names:
        if name not in allowed:
            words = "neither 'predicted', 'label' nor a class" if isinstance(target, str) else "no class"
            raise InputError(f"target: {name!r} is {words}. {near_names(name, allowed)}")
    if not names or len(set(names)) < len(names):
        raise InputError(f"target: a list of distinct classes is needed, got {target!r}.")


def _source(recipe: Recipe, folder: Path) -> Dataset:
    data = recipe.data
    if data.phantom is not None:
        return _phantom(data.phantom, folder)
    if data.folder is not None:
        return load_folder(recipe.path(data.folder))
    return load_table(
        recipe.path(str(data.samples)),
        None if data.regions is None else recipe.path(data.regions),
        columns=data.columns,
        region_columns=[column.model_dump() for column in data.region_columns],
        classes=data.classes,
        label_columns=data.label_columns,
        label_separator=data.label_separator,
        no_finding=data.no_finding,
        uncertain=data.uncertain,
        blank=data.blank,
        root=None if data.root is None else recipe.path(data.root),
        name=recipe.name,  # a table is often called "manifest" or "train"
    )


def _phantom(spec: PhantomSpec, folder: Path) -> Dataset:
    """The phantom of `spec` in a folder of its own, made where it is not there yet."""
    from heatproof.datasets.phantom import load_phantom, write_phantom

    digest = hashlib.blake2b(spec.model_dump_json().encode(), digest_size=4).hexdigest()
    place = folder / f"{PHANTOM}{digest}"
    if not place.is_dir():
        with whole_folder(place) as unfinished:
            write_phantom(unfinished, spec.phantom())
    return load_phantom(place, spec.phantom())


def check_files(dataset: Dataset, *, progress: bool = False) -> tuple[Failures, tuple[str, ...]]:
    """Every image and region that cannot be read, as rows of the failures table, and what a report must say of the rest."""
    found = check_dataset(dataset, progress=progress)
    blank = dict.fromkeys(FAILURE_COLUMNS, "")
    rows = found.failures.to_dict("records")
    return [{**blank, **{str(key): str(value) for key, value in row.items()}} for row in rows], tuple(found.notes)


def without_bad_files(dataset: Dataset, failures: pd.DataFrame) -> Dataset:
    """The data set without what `failures` (sample_id, stage) says of its files: images whole, regions alone."""
    images = set(failures.loc[failures["stage"] == "image", "sample_id"])
    suspects = set(failures.loc[failures["stage"].isin(KINDS), "sample_id"]) - images
    bad = {key for key in _region_keys(dataset.regions, suspects) if not _readable(dataset, *key)}
    keys = pd.Series(list(zip(dataset.regions["sample_id"], dataset.regions["region"], strict=True)), dtype=object)
    kept = ~dataset.regions["sample_id"].isin(images) & ~keys.isin(bad).to_numpy()
    samples = dataset.samples[~dataset.samples["sample_id"].isin(images)].reset_index(drop=True)
    return replace(dataset, samples=samples, regions=dataset.regions[kept].reset_index(drop=True))


def _region_keys(regions: pd.DataFrame, samples: Collection[str]) -> set[tuple[str, str]]:
    rows = regions[regions["sample_id"].isin(list(samples))]
    return set(zip(rows["sample_id"].astype(str), rows["region"].astype(str), strict=True))


def _readable(dataset: Dataset, sample_id: str, region: str) -> bool:
    try:
        dataset.region(sample_id, region, read_image(dataset.row(sample_id)["image"]).size)
    except HeatproofError:
        return False  # `check_dataset` has named it
    return True


def split(dataset: Dataset, recipe: Recipe) -> Dataset:
    """The data set with the splits that the recipe asks for.

    Raises:
        InputError: a patient in two splits, an empty split, a class without training images, samples without split.
    """
    wanted = recipe.data.splits
    if (wanted is not None and not wanted.column) or (wanted is None and dataset.samples["split"].isna().any()):
        fractions = DEFAULT_FRACTIONS if wanted is None else wanted.fractions
        dataset = dataset.with_splits(split_by_patient(dataset.samples, fractions=fractions, seed=recipe.seed))
    trained = any(model.training is not None for model in recipe.models)
    of_training = any("references" in methods()[method.name].needs for method in recipe.methods)
    required = ("train", "val", "test") if trained else ("train", "test") if of_training else ("test",)
    check_splits(dataset.samples, classes=dataset.classes, required=required)
    return dataset


def choose_explained(dataset: Dataset, recipe: Recipe) -> list[str]:
    """The ids of the test images that are explained, in the order of the sample table (rule: `DataSpec`)."""
    test = dataset.subset("test").samples
    limit = recipe.data.test_limit
    if limit is None or limit >= len(test):
        return list(test["sample_id"])
    groups: dict[str, list[str]] = {}
    for sample, labels in zip(test["sample_id"], _labels_of(dataset.subset("test")), strict=True):
        for label in labels or (NO_LABEL,):
            groups.setdefault(label, []).append(sample)
    for label, samples in groups.items():
        samples.sort(
            key=lambda sample: (not _annotated(dataset, recipe, sample, label), draw(recipe.seed, sample, "explained"))
        )
    chosen = equal_shares({label: groups[label] for label in sorted(groups)}, limit)
    return [sample for sample in test["sample_id"] if sample in chosen]


def _labels_of(dataset: Dataset) -> list[tuple[str, ...]]:
    """The labels that apply to each image."""
    return [tuple(itertools.compress(dataset.classes, row)) for row in dataset.targets() == 1]


def _annotated(dataset: Dataset, recipe: Recipe, sample: str, label: str) -> bool:
    region = recipe.data.region
    return region is not None and dataset.has_region(sample, region, label=label or None)


def equal_shares(groups: Mapping[Any, Sequence[Any]], total: int) -> set[Any]:
    """`total` members of the groups, their first ones, as many of each as equal shares allow.

    Again and again the group with the fewest chosen members, the first one on a tie, gives its next. A member of several
    groups counts in each.

    >>> chosen = equal_shares({"normal": "abcdefgh", "nodule": "xyz", "opacity": "klmnop"}, 11)
    >>> "".join(sorted(chosen))
    'abcdklmnxyz'
    >>> sorted(equal_shares({"mass": "abc", "nodule": "ade"}, 3))  # a counts for both
    ['a', 'b', 'd']
    """
    belongs: dict[Any, list[Any]] = {}
    for name, members in groups.items():
        for member in members:
            belongs.setdefault(member, []).append(name)
    waiting = {name: deque(members) for name, members in groups.items() if members}
    shares, chosen = dict.fromkeys(groups, 0), set[Any]()
    while len(chosen) < total and waiting:
        name = min(waiting, key=lambda name: shares[name])
        member = waiting[name].popleft()
        if not waiting[name]:
            del waiting[name]
        if member not in chosen:
            chosen.add(member)
            for group in belongs[member]:
                shares[group] += 1
    return chosen


def draw(seed: int, sample_id: str, purpose: str) -> bytes:
    """A random place in an order for some `purpose`, which depends on the seed and the sample alone."""
    return hashlib.blake2b(f"{seed}\x1f{sample_id}\x1f{purpose}".encode(), digest_size=8).digest()


def sample_table(dataset: Dataset, explained: Collection[str]) -> pd.DataFrame:
    """`samples.parquet`: the samples with `explained`, without the folders of this machine in any path."""
    table = dataset.samples.assign(explained=dataset.samples["sample_id"].isin(list(explained)))
    for column in table.columns:
        if table[column].map(lambda value: isinstance(value, str) and Path(value).is_absolute()).any():
            table[column] = table[column].map(lambda value: _without_folder(value, dataset.root))
    return table


def _without_folder(value: Any, root: Path) -> Any:
    """A path relative to the data set's folder, or its name alone where it lies elsewhere; anything else as it is."""
    if not isinstance(value, str) or not Path(value).is_absolute():
        return value
    path = Path(value)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
