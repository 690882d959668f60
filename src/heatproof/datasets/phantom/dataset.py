"""The phantom as a data set on disk."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from heatproof.datasets.labels import SEPARATOR
from heatproof.datasets.phantom.anatomy import Anatomy, Array, Mask, draw_anatomy
from heatproof.datasets.phantom.dicom import write_dicom
from heatproof.datasets.phantom.film import SCANNERS, burnt_in, scanned
from heatproof.datasets.phantom.findings import DRAWN
from heatproof.datasets.phantom.labels import chance_of_sign, draw_count, draw_label, draw_labels, draw_scanner
from heatproof.datasets.phantom.options import BITS, PREVALENCE, Phantom
from heatproof.datasets.phantom.radiograph import Radiograph, draw_radiograph
from heatproof.datasets.phantom.randomness import generator
from heatproof.datasets.splits import split_by_patient
from heatproof.datasets.table import Dataset, load_table
from heatproof.errors import InputError

Row = dict[str, Any]
Key = tuple[int, int, int]  # seed, patient, number of the image


def make_phantom(folder: str | Path, **options: Any) -> Dataset:
    """Draw a data set into `folder`: `images/`, `masks/`, `samples.csv`, `regions.csv`.

    Position, exposure, anatomy and shadows vary more than most findings weigh, so that a linear model of coarse pixels
    sees opacity, nodule and pneumothorax only in part; texture and outline give them away. Effusion and cardiomegaly are
    matters of place and size, which it does see. An image depends on `seed`, its patient's number and its own, not on how
    many are made. The splits are those of `split_by_patient` with its default fractions.

    The sample table has `label`, or with several labels a column for each class (1, 0, or -1 where uncertain), and where
    they vary `scanner` (a letter) and `marker` (1 where letters are burnt in). The regions are `lesion` (with several
    labels one of each label; annotated as empty where the finding is absent), `lung` (as if there were no fluid or air
    around it) and, with a shortcut, `marker` (the box about the letters, empty where there are none).

    Args:
        folder: is made; must be empty if it exists.
        **options: the fields of `Phantom`.

    Raises:
        InputError: see `Phantom`; a folder that is not empty.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     make_phantom(f"{folder}/phantom", patients=4, size=32).samples["label"].tolist()
        ['normal', 'opacity', 'nodule', 'normal']
    """
    phantom = Phantom(**options)
    write_phantom(folder, phantom)
    return load_phantom(folder, phantom)


def write_phantom(folder: str | Path, phantom: Phantom) -> None:
    """The files of `make_phantom`."""
    root = Path(folder)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise InputError(f"{root}: is there and not an empty folder. Choose another, or remove it first.")
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    samples: list[Row] = []
    regions: list[Row] = []
    for patient in range(phantom.patients):
        anatomy = draw_anatomy(np.random.default_rng([phantom.seed, patient]))
        for number in range(_image_count(phantom, patient)):
            sample, rows = _make_image(phantom, anatomy, patient, number, root)
            samples.append(sample)
            regions += rows
    table = pd.DataFrame(samples)
    table.assign(split=_splits(table, phantom)).to_csv(root / "samples.csv", index=False)
    columns = ["sample_id", "region", "label", "kind", "data"]
    pd.DataFrame(regions, columns=columns).to_csv(root / "regions.csv", index=False)


def load_phantom(folder: str | Path, phantom: Phantom) -> Dataset:
    """The data set that `make_phantom` has written; uncertain labels are unknown."""
    names: dict[str, Any] = {"classes": phantom.labels}
    if phantom.task == "multilabel":
        names["label_columns"] = phantom.labels
    return load_table(Path(folder) / "samples.csv", Path(folder) / "regions.csv", name="phantom", **names)


def _image_count(phantom: Phantom, patient: int) -> int:
    if phantom.varied:
        return draw_count(phantom.images_per_patient, phantom.seed, patient)
    return phantom.images_per_patient


def _splits(table: pd.DataFrame, phantom: Phantom) -> "pd.Series[str]":
    if phantom.task == "multilabel":
        names = np.array(phantom.labels, dtype=object)
        table = table.assign(labels=[SEPARATOR.join(names[row == 1]) for row in table[list(names)].to_numpy()])
    return split_by_patient(table, seed=phantom.seed)


def _make_image(phantom: Phantom, anatomy: Anatomy, patient: int, number: int, root: Path) -> tuple[Row, list[Row]]:
    """Draw and save one image with its masks: its row of the sample table, its rows of the region table."""
    key = (phantom.seed, patient, number)
    several = phantom.task == "multilabel"
    # numpy gives (seed, patient) and (seed, patient, 0) the same numbers, so that of one label the pose of a first image
    # follows from the anatomy; demonstrations rely on those pictures
    random = generator("film", *key) if several else np.random.default_rng(key)
    labels = _labels(phantom, patient, number, random)
    # a finding of several is drawn from numbers of its own: without it the film is the same but for it
    own = {name: generator(name, *key) if several else random for name in DRAWN if name in labels}
    radiograph = draw_radiograph(
        anatomy, own, phantom.size, random, conspicuity=phantom.conspicuity, side_marker=phantom.shortcut is None
    )
    film, shown, signs, box = _filmed(phantom, radiograph.pixels, labels, key)
    sample_id = f"p{patient:05d}_{number}"
    sample: Row = {"sample_id": sample_id, "image": _save_image(phantom, film, sample_id, key, root)}
    sample |= {**_label_cells(phantom, labels, key), "patient_id": f"p{patient:05d}", **signs}
    regions = [
        {
            "sample_id": sample_id,
            "region": region,
            "label": label,
            **_stored(mask & shown, f"{sample_id}_{label or region}", root),
        }
        for region, label, mask in _masks(phantom, radiograph)
    ]
    if phantom.shortcut is not None:
        regions.append({"sample_id": sample_id, "region": "marker", "label": "", "kind": "box", "data": box})
    return sample, regions


def _labels(phantom: Phantom, patient: int, number: int, random: np.random.Generator) -> list[str]:
    if phantom.task == "multiclass":
        return [draw_label(patient, number, phantom.labels, random)]
    prevalence = {name: phantom.prevalence.get(name, PREVALENCE) for name in phantom.labels}
    return draw_labels(prevalence, phantom.seed, patient, number)


def _label_cells(phantom: Phantom, labels: list[str], key: Key) -> Row:
    if phantom.task == "multiclass":
        return {"label": labels[0]}
    unsure = [name for name in phantom.labels if generator(f"uncertain {name}", *key).random() < phantom.uncertain]
    return {name: -1 if name in unsure else int(name in labels) for name in phantom.labels}


def _filmed(phantom: Phantom, film: Array, labels: list[str], key: Key) -> tuple[Array, Mask, Row, str]:
    """The film as it leaves the device, where it shows anything, what is said of it, and the box about its letters."""
    shown, box = np.ones(film.shape, dtype=bool), ""
    signs: Row = {}
    if phantom.scanners is not None:
        random = generator("scanner", *key)
        scanner = SCANNERS[draw_scanner(phantom.scanners, labels, random)]
        film, shown = scanned(film, scanner, random)
        signs["scanner"] = scanner.name
    if phantom.shortcut is not None:
        random, about = generator("marker", *key), phantom.shortcut
        signs["marker"] = int(random.random() < chance_of_sign(about.label in labels, about.rate, about.strength))
        if signs["marker"]:
            film, corners = burnt_in(film, about.text, random)
            box = " ".join(map(str, corners))
    return film, shown, signs, box


def _masks(phantom: Phantom, radiograph: Radiograph) -> list[tuple[str, str, Mask]]:
    """Region, label and outline of all that is annotated in one image."""
    nothing = np.zeros(radiograph.lungs.shape, dtype=bool)
    if phantom.task == "multiclass":
        lesions = [("lesion", "", next(iter(radiograph.lesions.values()), nothing))]
    else:
        lesions = [("lesion", name, radiograph.lesions.get(name, nothing)) for name in phantom.labels]
    return [*lesions, ("lung", "", radiograph.lungs)]


def _stored(mask: Mask, name: str, root: Path) -> Row:
    """Kind and data of a region row; an empty region is a row without boxes."""
    if not mask.any():
        return {"kind": "box", "data": ""}
    _save(mask.astype(np.uint8) * 255, root / f"masks/{name}.png")
    return {"kind": "mask", "data": f"masks/{name}.png"}


def _save_image(phantom: Phantom, film: Array, name: str, key: Key, root: Path) -> str:
    """Store the film; its path in the data set."""
    bits = phantom.bits or BITS[phantom.format][0]
    if phantom.format == "dicom":
        write_dicom(root / f"images/{name}.dcm", film, bits, *key)
        return f"images/{name}.dcm"
    integers = np.asarray(np.rint(film * (2**bits - 1)), dtype=np.uint8 if bits == 8 else np.uint16)
    _save(integers, root / f"images/{name}.png")
    return f"images/{name}.png"


def _save(pixels: NDArray[Any], path: Path) -> None:
    Image.fromarray(pixels).save(path, compress_level=1)
