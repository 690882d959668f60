"""A stand-in of the NIH ChestX-ray14 in the layout of https://www.kaggle.com/datasets/nih-chest-xrays/data."""

from collections.abc import Mapping
from pathlib import Path

from heatproof.datasets.phantom.anatomy import Mask
from heatproof.datasets.standins.chest_pictures import bounding_box, draw_chest, findings_of, write_picture
from heatproof.datasets.standins.registry import standin

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"
BOXED = ("Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax")


@standin("nih_chestxray14")
def write_nih_chestxray14(folder: Path, *, patients: int, size: int, seed: int) -> None:
    """Two folders of images, one to three a patient; the last quarter of the patients is the test, with boxes."""
    rows, boxes = [HEADER], [BOX_HEADER]
    lists: dict[str, list[str]] = {"train_val_list.txt": [], "test_list.txt": []}
    tested = patients - max(1, patients // 4)
    for patient in range(patients):
        for number in range(patient % 3 + 1):
            name = f"{patient + 1:08d}_{number:03d}.png"
            picture = draw_chest(patient, number, findings_of(patient, number), size, seed)
            masks = _labelled(picture.lesions, patient)
            person = f"{number},{patient + 1},{40 + patient % 40},{'FM'[patient % 2]},{('PA', 'AP')[number % 2]}"
            rows.append(f"{name},{'|'.join(masks) or 'No Finding'},{person},{size},{size},0.143,0.143,")
            write_picture(folder / f"images_{1 + 2 * patient // patients:03d}/images/{name}", picture.pixels)
            lists["test_list.txt" if patient >= tested else "train_val_list.txt"].append(name)
            if patient >= tested:
                boxes += [
                    f"{name},{_in_list(label)},{_box(mask)},,," for label, mask in masks.items() if label in BOXED
                ]
    _write(folder / "Data_Entry_2017.csv", rows)
    _write(folder / "BBox_List_2017.csv", boxes)
    for file, names in lists.items():
        _write(folder / file, names)


def _labelled(lesions: Mapping[str, Mask], patient: int) -> dict[str, Mask]:
    """The labels of an image, each with the finding of the phantom that stands for it."""
    turn = patient // 6
    labels = {
        "opacity": ("Infiltration", ("Consolidation", "Pneumonia", "Edema", "Fibrosis", "Atelectasis")[turn % 5]),
        "nodule": (("Nodule", "Mass")[turn % 2],),
        "effusion": ("Effusion",) if turn % 2 else ("Effusion", "Pleural_Thickening"),
        "cardiomegaly": ("Cardiomegaly", "Hernia") if turn % 2 else ("Cardiomegaly",),
        "pneumothorax": ("Pneumothorax", "Emphysema"),
    }
    return {label: mask for finding, mask in lesions.items() for label in labels[finding]}


def _in_list(label: str) -> str:
    """As the list of boxes spells it."""
    return "Infiltrate" if label == "Infiltration" else label


def _box(mask: Mask) -> str:
    return ",".join(f"{number:.1f}" for number in bounding_box(mask))


def _write(path: Path, lines: list[str]) -> None:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
