"""ChestX-ray14 of the NIH Clinical Center (`wang2017chestxray`): 112,120 frontal radiographs, 14 findings, 984 boxes.

Layout: https://nihcc.app.box.com/v/ChestXray-NIHCC hands out `images/*.tar.gz` (each unpacks into `images/`),
`Data_Entry_2017.csv` (since 2020 `Data_Entry_2017_v2020.csv`), `BBox_List_2017.csv`, `train_val_list.txt` and
`test_list.txt`; https://www.kaggle.com/datasets/nih-chest-xrays/data has the same tables and the images in
`images_001/images` to `images_012/images`, and says that a box starts at x, y and extends w pixels to the right and h down.
`README_CHESTXRAY.pdf` beside the data could not be read for this; the headers are those that its users quote:
`Image Index,Finding Label,Bbox [x,y,w,h],,,` in the list of boxes, whose commas in brackets make columns of their own
(https://huggingface.co/datasets/alkzar90/NIH-Chest-X-ray-dataset has a copy), and `Infiltrate` there for `Infiltration`.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from heatproof.datasets.adapters.official import box_texts, numbers, of_unknown_images, read_official, region_rows
from heatproof.datasets.adapters.registry import Found, Problem, adapter, not_there
from heatproof.datasets.cells import some
from heatproof.datasets.labels import LabelForm
from heatproof.errors import InputError

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"),
    *("Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia"),
)
_TABLES = ("Data_Entry_2017.csv", "Data_Entry_2017_v2020.csv")
_LISTS = {"train": "train_val_list.txt", "test": "test_list.txt"}
_BOX = ("Bbox [x", "y", "w", "h]")  # what a reader of CSV makes of the header `Bbox [x,y,w,h]`


@adapter(
    "nih_chestxray14",
    title="NIH ChestX-ray14",
    licence="Unrestricted; the NIH asks for a link to its download site, an acknowledgement and a citation (its FAQ).",
    home="https://nihcc.app.box.com/v/ChestXray-NIHCC",
    paper="wang2017chestxray",
)
def nih_chestxray14(folder: Path, *, classes: Sequence[str] = FINDINGS) -> Found:
    """Frontal chest radiographs with fourteen findings mined from reports, and boxes about eight of them in 880 images.

    Sample ids are the file names without suffix. `train_val_list.txt` is the split `train`, `test_list.txt` is `test`.
    Boxes are regions `lesion` with their finding as label. `Data_Entry_2017_v2020.csv` is read where the older table is
    not there.

    Args:
        folder: the one with the tables.
        classes: the findings in the order of the model's outputs; all fourteen, in any order.

    Raises:
        InputError: a table or a list is missing or otherwise than described, or there is no folder of images.
    """
    path = _table(folder)
    table = read_official(path, ("Image Index", "Finding Labels", "Patient ID"))
    images = _image_paths(folder, table["Image Index"])
    ids = table["Image Index"].str.removesuffix(".png")
    splits, problems = _splits(folder, table["Image Index"], path.name)
    others = [column for column in table if str(column).startswith("Unnamed")]  # the header ends in a comma
    samples = table.drop(columns=["Image Index", *others]).rename(columns={"Finding Labels": "labels"})
    samples = samples.rename(columns={"Patient ID": "patient_id"}).assign(sample_id=ids, image=images, split=splits)
    regions = _boxes(folder / "BBox_List_2017.csv")
    problems += of_unknown_images(regions, ids, "BBox_List_2017.csv", path.name)
    problems += not_there(images, folder, ids.tolist(), "images")
    notes = [
        "The labels were mined from reports by language processing.",
        "No validation split: the official list joins train and val. Split it by patient.",
    ]
    form = LabelForm(classes=classes, label_separator="|", no_finding="No Finding")
    return Found(samples, form, regions, notes, problems)


def _table(folder: Path) -> Path:
    for name in _TABLES:
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"{folder}: expected {' or '.join(_TABLES)}, which is not there. Is the download complete?")


def _image_paths(folder: Path, names: "pd.Series[str]") -> list[str]:
    """Where each image lies: in `images`, or in one of `images_001/images` to `images_012/images`."""
    places = ["images", *sorted(f"{path.parent.name}/images" for path in folder.glob("images_*/images"))]
    places = [place for place in places if (folder / place).is_dir()]
    if not places:
        raise InputError(f"{folder}: expected images/ or images_001/images/ and so on, of which none is there.")
    lies_in = {path.name: place for place in places for path in (folder / place).iterdir()}
    return [f"{lies_in.get(name, places[0])}/{name}" for name in names]


def _splits(folder: Path, names: "pd.Series[str]", table: str) -> "tuple[pd.Series[str], list[Problem]]":
    """The official split of each image, None where neither list names it, and what the lists and the table differ in."""
    listed: dict[str, str] = {}
    for split, file in _LISTS.items():
        if not (folder / file).is_file():
            raise InputError(f"{file} is expected in {folder} and not there: it is the official split.")
        listed |= dict.fromkeys((folder / file).read_text(encoding="utf-8").split(), split)
    problems = []
    for these, text in (
        (sorted(set(listed) - set(names)), f"images of the lists of splits are not in {table}"),
        (sorted(set(names) - set(listed)), f"images of {table} are in neither {' nor '.join(_LISTS.values())}"),
    ):
        if these:
            samples = frozenset(name.removesuffix(".png") for name in these)
            problems.append(Problem(f"{len(these):,} {text}: {some(these, len(these))}.", samples))
    return names.map(listed).astype(object), problems


def _boxes(path: Path) -> pd.DataFrame:
    table = read_official(path, ("Image Index", "Finding Label", *_BOX))
    x, y, width, height = numbers(table, _BOX, path)
    labels = table["Finding Label"].replace("Infiltrate", "Infiltration")
    ids = table["Image Index"].str.removesuffix(".png")
    return region_rows(ids, labels, "box", box_texts(x, y, x + width, y + height))
