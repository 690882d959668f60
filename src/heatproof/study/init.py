"""A first recipe for data that somebody has, with a comment at everything they may want to change."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import yaml

from heatproof.datasets.table import Dataset
from heatproof.errors import HeatproofError, InputError
from heatproof.images.read import read_image
from heatproof.study.data import load_dataset
from heatproof.study.files import write_whole
from heatproof.study.inspection import Inspection, inspect
from heatproof.study.loading import parse_recipe, parse_yaml
from heatproof.study.recipe import Recipe

_LOOKED_AT = 20  # images that are opened, evenly over the table
_SAYING_NOTHING = ("manifest", "samples", "images", "labels", "train", "data", "index", "list", "table", "metadata")
_PRETRAINED = "google/vit-base-patch16-224"


def write_recipe(path: str | Path, out: str | Path, *, pretrained: bool = True) -> Recipe:
    """Look at a folder or a table of images and write a commented recipe for it.

    Args:
        path: a sample table (CSV, Parquet), a folder that holds one, or a folder of class folders.
        out: the YAML file to write; it must not exist.
        pretrained: begin with a ViT-B/16 that knows ImageNet; else with two small models from scratch.

    Returns:
        The recipe as written.

    Raises:
        InputError: `out` exists, or nothing at `path` can be made out; the message says what was looked for.
    """
    out = Path(out)
    if out.exists():
        raise InputError(f"{out} exists already; choose another file with --out, or remove it.")
    text = "\n".join(_lines(inspect(path), Path(path), out, pretrained)) + "\n"
    recipe = parse_recipe(parse_yaml(text), folder=out.absolute().parent, name=str(out))
    write_whole(out, lambda file: file.write(text.encode()))
    return recipe


def _lines(found: Inspection, path: Path, out: Path, pretrained: bool) -> Iterator[str]:
    folder = out.absolute().parent
    name = _name(found.folder or found.samples or path)
    data = list(_data(found, folder))
    dataset = load_dataset(
        parse_recipe(parse_yaml("\n".join(_minimal(name, data))), folder=folder, name=str(path)), folder
    )
    channels, sizes, broken = _glance(dataset)
    yield f"# {len(dataset)} images, {_classes_in_words(dataset)}; {sizes}."
    for remark in (*found.remarks, *broken):
        yield f"# {remark}"
    yield "# What is not said here has a default. Look before you run:"
    yield f"#   heatproof data check {out.name}             every image and region is read, what is broken is named"
    yield f"#   heatproof study run {out.name} --dry-run    the plan, and how long it takes"
    yield f"#   heatproof study run {out.name}              an interrupted run goes on where it stopped"
    yield f"name: {name}"
    yield "seed: 0"
    yield ""
    yield from data
    yield from _splits(found)
    yield from _region(found)
    yield "  # Explained are this many test images, equal shares of the classes; leave it out to explain them all."
    yield "  test_limit: 60"
    yield from _target(dataset)
    yield ""
    yield from _models(dataset, channels, pretrained)
    yield ""
    yield from _methods_and_metrics(bool(found.regions))


def _name(path: Path) -> str:
    path = path.absolute()
    words = path.parent.name if path.is_file() and path.stem.lower() in _SAYING_NOTHING else path.stem
    return "".join(mark if mark.isalnum() and mark.isascii() else "-" for mark in words).strip("-") or "study"


def _minimal(name: str, data: list[str]) -> list[str]:
    """A recipe that is only good for loading the data."""
    return [f"name: {name}", *data, "models: [{name: none, source: none}]", "methods: [none]", "metrics: [none]"]


def _flow(value: object) -> str:
    """A value in one line of YAML."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True).strip()


def _scalar(value: object) -> str:
    return _flow([value])[1:-1]


def _data(found: Inspection, folder: Path) -> Iterator[str]:
    yield "data:"
    place = found.samples or found.folder or folder
    yield f"  {'samples' if found.samples else 'folder'}: {_scalar(_relative(place, folder))}"
    if found.regions_table is not None:
        yield f"  regions: {_scalar(_relative(found.regions_table, folder))}"
    if found.root is not None:
        yield f"  root: {_scalar(_relative(found.root, folder))}  # the folder that the images' paths count from"
    if found.columns:
        yield f"  columns: {_flow(found.columns)}  # our name: the table's"
    if found.separator is not None:
        yield f"  label_separator: {_scalar(found.separator)}"
    if found.no_finding is not None:
        yield f"  no_finding: {_scalar(found.no_finding)}  # the word for no label at all"
    if found.label_columns:
        yield f"  label_columns: {_flow(list(found.label_columns))}  # 1 there, 0 not there, -1 uncertain"
        yield "  uncertain: ignore  # what is uncertain counts as: zero, one, ignore; or one of them for each label"
        yield "  blank: zero"
    if found.region_columns:
        yield "  region_columns:"
        for region, kind, column in found.region_columns:
            yield f"    - {_flow({'region': region, 'kind': kind, 'column': column})}"


def _relative(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path.absolute(), folder)).as_posix()


def _splits(found: Inspection) -> Iterator[str]:
    if found.splits_given:
        yield "  splits: column  # the table's own; or fractions by patient: {train: 0.7, val: 0.1, test: 0.2}"
    else:
        yield "  splits: {train: 0.7, val: 0.1, test: 0.2}  # by patient, seeded"


def _region(found: Inspection) -> Iterator[str]:
    if not found.regions:
        yield "  # No masks or boxes were found, so nothing says where a map should look. With them, name them here:"
        yield "  #   region_columns: [{region: lesion, kind: mask, column: lesion_mask}]   (or kind: box, polygon, rle)"
        yield "  #   region: lesion"
        return
    first, *others = found.regions
    beside = f" (or {', '.join(others)})" if others else ""
    yield f"  region: {_scalar(first)}  # what localization metrics compare the maps with{beside}"


def _target(dataset: Dataset) -> Iterator[str]:
    yield ""
    if dataset.task == "multilabel":
        yield "target: predicted  # explained is the likeliest label; or `label` (each that is there), or a list of labels"
    else:
        yield "target: predicted  # explained is the predicted class; or `label`, the image's own, or a class by name"


def _models(dataset: Dataset, channels: int, pretrained: bool) -> Iterator[str]:
    if len(dataset) < 1000 and not pretrained:
        yield f"# {len(dataset)} images are few for models from scratch: expect weak ones, and read the report accordingly."
    yield "models:"
    if pretrained:
        yield "  - name: vit"
        yield f"    source: hf:{_PRETRAINED}  # is downloaded once; or hf:<folder> with the same files"
        yield "    training: {epochs: 10, lr: 1.0e-4, batch_size: 32, patience: 3}"
        yield "  # Without a download, from scratch:"
        yield "  # - name: densenet"
        yield "  #   source: monai:densenet121"
        yield f"  #   channels: {channels}"
        yield "  #   training: {epochs: 20, lr: 5.0e-4, batch_size: 16, patience: 5}"
        return
    yield "  - name: vit"
    yield "    source: hf:vit"
    yield "    image_size: 128"
    yield f"    channels: {channels}"
    yield "    config:"
    yield "      {patch_size: 16, hidden_size: 96, num_hidden_layers: 6, num_attention_heads: 4, intermediate_size: 192}"
    yield "    training: {epochs: 40, lr: 5.0e-4, batch_size: 16, patience: 10}"
    yield "  - name: densenet"
    yield "    source: monai:densenet121"
    yield "    image_size: 128"
    yield f"    channels: {channels}"
    yield "    training: {epochs: 15, lr: 5.0e-4, batch_size: 16, patience: 4}"


def _methods_and_metrics(regions: bool) -> Iterator[str]:
    yield "methods:  # all of them: heatproof methods"
    yield "  - transformer_lrp  # a method that cannot serve a model is named in the report, and is no error"
    yield "  - attention_rollout"
    yield "  - gradcam"
    yield "  - lrp_epsilon"
    yield "  - {method: lime, samples: 300}"
    yield "  - control_random  # the controls know nothing of the model: what is not better than they are proves nothing"
    yield "  - control_center"
    yield ""
    yield "metrics:  # all of them: heatproof metrics"
    yield "  - faithfulness_estimate"
    yield "  - {metric: max_sensitivity, samples: 5}"
    yield "  - sparseness"
    if regions:
        yield "  - pointing_game"
        yield "  - {metric: iou, top: 20}"
        yield "  - relevance_mass_accuracy"


def _classes_in_words(dataset: Dataset) -> str:
    targets = dataset.targets()
    counts: Mapping[str, int] = {
        name: int((targets[:, place] == 1).sum()) for place, name in enumerate(dataset.classes)
    }
    shown = ", ".join(f"{name} {count}" for name, count in list(counts.items())[:8])
    rest = f" and {len(counts) - 8} more" if len(counts) > 8 else ""
    return f"{len(counts)} {'labels, several an image' if dataset.task == 'multilabel' else 'classes'} ({shown}{rest})"


def _glance(dataset: Dataset) -> tuple[int, str, list[str]]:
    """Channels that the images need, their sizes in words, and what cannot be read, from a few of them."""
    places = np.unique(np.linspace(0, len(dataset) - 1, _LOOKED_AT).astype(int))
    sizes, colour, broken = [], False, []
    for path in dataset.samples["image"].iloc[places]:
        try:
            raw = read_image(path)
        except HeatproofError as error:
            broken.append(f"Cannot be read: {Path(path).name} ({error})".replace("\n", " ")[:150])
            continue
        sizes.append(raw.size)
        colour = colour or (raw.pixels.ndim == 3 and bool((raw.pixels != raw.pixels[..., :1]).any()))
    if not sizes:
        raise InputError(f"{dataset.name}: none of {len(places)} images that were tried can be read. {broken[0]}")
    heights, widths = zip(*sizes, strict=True)
    size = f"{_between(widths)} × {_between(heights)} pixels"
    return (3 if colour else 1), f"{size}, {'colour' if colour else 'grey'}", broken


def _between(lengths: Sequence[int]) -> str:
    low, high = min(lengths), max(lengths)
    return f"{low}" if low == high else f"{low}–{high}"
