"""VinDr-CXR 1.0.0 (`nguyen2022vindrcxr`): 18,000 radiographs, 28 labels, boxes of three readers or of a consensus.

Layout: https://physionet.org/content/vindr-cxr/1.0.0/ hands out `train/<image_id>.dicom`, `test/<image_id>.dicom` and
`annotations/` with `image_labels_train.csv` (`image_id, rad_id` and a column of 0 and 1 for each label: a row for each of an
image's three readers), `image_labels_test.csv` (the same without `rad_id`: a row an image, the consensus of five readers),
`annotations_train.csv` (`image_id, rad_id, class_name, x_min, y_min, x_max, y_max`: a row a box, empty coordinates where a
label has none) and `annotations_test.csv`. The page asks for an account with training, and the authors' repository
https://github.com/vinbigdata-medical/vindr-cxr does not describe the tables: the columns, and that the test's table spells
`Other disease`, are those that published programs of its users read.
Whether `annotations_test.csv` has a `rad_id` could not be verified: it is read with and without.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from heatproof.checks import check_choice
from heatproof.datasets.adapters.official import (
    box_texts,
    folder_with,
    numbers,
    of_unknown_images,
    read_official,
    region_rows,
)
from heatproof.datasets.adapters.registry import Found, Problem, adapter, not_there
from heatproof.datasets.cells import rows_of, some
from heatproof.datasets.labels import LabelForm
from heatproof.datasets.region_table import READERS
from heatproof.errors import InputError

LABELS = (
    *("Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation"),
    *("Edema", "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst"),
    *("Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax"),
    *("Pulmonary fibrosis", "Rib fracture", "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis"),
    *("Other diseases", "No finding"),
)
_SPELT = {"Other disease": "Other diseases"}  # by the table of the test
_BOX = ("x_min", "y_min", "x_max", "y_max")


@adapter(
    "vindr_cxr",
    title="VinDr-CXR 1.0.0 (PhysioNet)",
    licence="PhysioNet credentialed access: after training and a data use agreement.",
    home="https://physionet.org/content/vindr-cxr/1.0.0/",
    paper="nguyen2022vindrcxr",
)
def vindr_cxr(folder: Path, *, readers: str = "majority", classes: Sequence[str] | None = None) -> Found:
    """Frontal chest radiographs with 28 labels, 22 of them with boxes, each image of train read by three radiologists.

    Sample ids are the `image_id`s. The splits are `train` and `test`. Boxes are regions `lesion` with their label and, in
    train, their reader; a reader who drew no box about something that another one boxed has annotated it as empty.

    Args:
        folder: the one with `annotations/`, or its parent.
        readers: what an image of train counts as where its readers differ: a label applies that any (`union`), more than
            half (`majority`) or all of them (`intersection`) gave.
        classes: some of the 28 labels, in the order of the model's outputs; by default all, `No finding` included.

    Raises:
        InputError: a table is missing or otherwise than described, an option out of range.
    """
    check_choice("readers", readers, READERS)
    place = folder_with(folder, "annotations/image_labels_train.csv", ("1.0.0",))
    tables = folder / place / "annotations"
    read = _read_labels(tables / "image_labels_train.csv", ("image_id", "rad_id"))
    consensus = _read_labels(tables / "image_labels_test.csv", ("image_id",))
    samples = pd.concat(
        [
            _samples(_agreed(read, readers), f"{place}train", "train"),
            _samples(consensus, f"{place}test", "test"),
        ],
        ignore_index=True,
    )
    regions: list[pd.DataFrame] = []
    problems: list[Problem] = []
    for split, required in (("train", ("rad_id",)), ("test", ())):
        path = tables / f"annotations_{split}.csv"
        boxes = _boxes(path, required)
        regions.append(_with_empty(boxes, read) if split == "train" else boxes)
        ids = samples["sample_id"][samples["split"] == split]
        problems += of_unknown_images(boxes, ids, path.name, f"image_labels_{split}.csv")
    problems += not_there(samples["image"].tolist(), folder, samples["sample_id"].tolist(), "images")
    notes = [
        f"Labels of train: the {readers} of three readers; of test: the consensus of five.",
        "No validation split.",
    ]
    form = LabelForm(classes=classes, label_columns=list(LABELS))
    return Found(samples, form, pd.concat(regions, ignore_index=True), notes, problems)


def _read_labels(path: Path, keys: tuple[str, ...]) -> pd.DataFrame:
    """The keys as text, the labels as 0 and 1, NaN where a cell is empty."""
    table = read_official(path, ("image_id",)).rename(columns=_SPELT)
    missing = [name for name in (*keys, *LABELS) if name not in table]
    if missing:
        raise InputError(f"{path}: the columns {missing} are missing, it has {list(table.columns)}. Expected is 1.0.0.")
    values = pd.concat(numbers(table, LABELS, path), axis=1, keys=LABELS)
    wrong = ~(values.isin([0, 1]) | values.isna()).all(axis=1)
    if wrong.any():
        raise InputError(f"{path}: row {rows_of(wrong)} (from 1, without the header) holds other labels than 0 and 1.")
    return pd.concat([table[list(keys)], values], axis=1)


def _agreed(read: pd.DataFrame, readers: str) -> pd.DataFrame:
    """One row an image: the labels that any, more than half, or all of its readers gave."""
    share = read.groupby("image_id", sort=False)[list(LABELS)].mean()
    agreed = {"union": share > 0, "majority": share > 0.5, "intersection": share == 1}[readers]
    return agreed.astype(float).where(share.notna()).reset_index()


def _samples(labels: pd.DataFrame, place: str, split: str) -> pd.DataFrame:
    images = place + "/" + labels["image_id"] + ".dicom"
    return labels.rename(columns={"image_id": "sample_id"}).assign(image=images, split=split)


def _boxes(path: Path, required: tuple[str, ...]) -> pd.DataFrame:
    table = read_official(path, ("image_id", *required, "class_name", *_BOX))
    corners = numbers(table, _BOX, path)
    empty = pd.concat(corners, axis=1).isna()
    partly = empty.any(axis=1) & ~empty.all(axis=1)
    if partly.any():
        raise InputError(f"{path}: row {rows_of(partly)} (from 1, without the header) holds a part of a box.")
    unknown = sorted(map(repr, set(table["class_name"]) - {*LABELS, *_SPELT}))
    if unknown:
        names = some(unknown, len(unknown))
        raise InputError(f"{path}: unknown class_name {names}. Known: {', '.join(LABELS)}.")
    drawn = ~empty.any(axis=1)
    boxed = table[drawn]
    texts = box_texts(*(corner[drawn] for corner in corners))
    readers = boxed.get("rad_id")
    return region_rows(boxed["image_id"], boxed["class_name"].replace(_SPELT), "box", texts, readers=readers)


def _with_empty(boxes: pd.DataFrame, read: pd.DataFrame) -> pd.DataFrame:
    """The boxes, and an empty annotation of each reader who drew none about a label that another reader boxed."""
    pairs = boxes[["sample_id", "label"]].drop_duplicates()
    asked = pairs.merge(read[["image_id", "rad_id"]].astype(object), left_on="sample_id", right_on="image_id")
    drew = set(zip(boxes["sample_id"], boxes["label"], boxes["reader"], strict=True))
    named = asked[["sample_id", "label", "rad_id"]].itertuples(index=False, name=None)
    without = [row for row in named if row not in drew]
    ids, labels, readers = ([row[place] for row in without] for place in range(3))
    return pd.concat([boxes, region_rows(ids, labels, "box", [""] * len(ids), readers=readers)], ignore_index=True)
