"""Synthetic chest radiographs whose findings are known to the pixel: data for demonstrations and tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from heatproof.datasets.radiograph import FINDINGS, draw_anatomy, draw_radiograph
from heatproof.datasets.splits import split_by_patient
from heatproof.datasets.table import Dataset, load_table
from heatproof.errors import InputError, near_names

SMALLEST = 16


def make_phantom(
    folder: str | Path,
    *,
    patients: int = 400,
    images_per_patient: int = 1,
    size: int = 128,
    classes: Sequence[str] = FINDINGS,
    bits: int = 8,
    seed: int = 0,
) -> Dataset:
    """Draw a data set into `folder`: `images/`, `masks/`, `samples.csv`, `regions.csv`.

    Position, exposure, anatomy and shadows vary more than the findings weigh, so that a linear model of coarse pixels
    learns little; texture and outline give a finding away. The regions are `lesion` (annotated as empty where the image is
    normal) and `lung`. Patients take the classes in turn; a fifth of their further images shows any of them. An image
    depends on `seed`, its patient's number and its own, not on how many are made. The splits are those of
    `split_by_patient` with its default fractions.

    Args:
        folder: is made; must be empty if it exists.
        patients: number of patients.
        images_per_patient: images of each.
        size: pixels a side, at least 16; made for 64 and more.
        classes: some of `normal`, `opacity`, `nodule`, in the order of the data set's classes.
        bits: of a pixel in the PNG files, 8 or 16.
        seed: of everything drawn.

    Raises:
        InputError: a number out of range, an unknown class, a folder that is not empty.
    """
    _check(folder, patients, images_per_patient, size, classes, bits)
    root = Path(folder)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    samples, regions = [], []
    for patient in range(patients):
        anatomy = draw_anatomy(np.random.default_rng([seed, patient]))
        for number in range(images_per_patient):
            random = np.random.default_rng([seed, patient, number])
            label = _label(patient, number, classes, random)
            radiograph = draw_radiograph(anatomy, label, size, random)
            sample_id = f"p{patient:05d}_{number}"
            samples.append((sample_id, f"images/{sample_id}.png", label, f"p{patient:05d}"))
            _save(_integers(radiograph.pixels, bits), root / f"images/{sample_id}.png")
            regions += _save_regions(sample_id, {"lesion": radiograph.lesion, "lung": radiograph.lungs}, root)
    table = pd.DataFrame(samples, columns=["sample_id", "image", "label", "patient_id"])
    table.assign(split=split_by_patient(table, seed=seed)).to_csv(root / "samples.csv", index=False)
    columns = ["sample_id", "region", "label", "kind", "data"]
    pd.DataFrame(regions, columns=columns).to_csv(root / "regions.csv", index=False)
    return load_table(root / "samples.csv", root / "regions.csv", classes=classes, name="phantom")


def _check(
    folder: str | Path, patients: int, images_per_patient: int, size: int, classes: Sequence[str], bits: int
) -> None:
    for name, value, smallest in (
        ("patients", patients, 1),
        ("images_per_patient", images_per_patient, 1),
        ("size", size, SMALLEST),
    ):
        if value < smallest:
            raise InputError(f"{name} must be at least {smallest}, got {value}.")
    if bits not in (8, 16):
        raise InputError(f"bits must be 8 or 16, got {bits}.")
    if isinstance(classes, str) or not classes or len(set(classes)) < len(classes):
        raise InputError(f"classes must be a list of distinct names, got {classes!r}. Known: {', '.join(FINDINGS)}.")
    for name in classes:
        if name not in FINDINGS:
            raise InputError(f"Unknown class {name!r}. {near_names(name, FINDINGS)}")
    if Path(folder).exists() and (not Path(folder).is_dir() or any(Path(folder).iterdir())):
        raise InputError(f"{folder}: is there and not an empty folder. Choose another, or remove it first.")


def _label(patient: int, number: int, classes: Sequence[str], random: np.random.Generator) -> str:
    """A patient's class, or for a fifth of the further images any class: patients have a history."""
    other = number > 0 and random.random() < 0.2
    return classes[int(random.integers(len(classes))) if other else patient % len(classes)]


def _integers(pixels: NDArray[np.float64], bits: int) -> NDArray[Any]:
    return np.asarray(np.rint(pixels * (2**bits - 1)), dtype=np.uint8 if bits == 8 else np.uint16)


def _save_regions(sample_id: str, regions: dict[str, NDArray[np.bool_]], root: Path) -> list[tuple[str, ...]]:
    """The rows of the region table; an empty region is a row without boxes."""
    rows: list[tuple[str, ...]] = []
    for region, mask in regions.items():
        file = f"masks/{sample_id}_{region}.png"
        if mask.any():
            _save(mask.astype(np.uint8) * 255, root / file)
        rows.append((sample_id, region, "", *(("mask", file) if mask.any() else ("box", ""))))
    return rows


def _save(pixels: NDArray[Any], path: Path) -> None:
    Image.fromarray(pixels).save(path, compress_level=1)
