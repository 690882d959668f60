"""A stand-in of the RSNA Pneumonia Detection Challenge, in the layout of its page on Kaggle.

https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/data; only what is labelled is written.
"""

from pathlib import Path

from scipy import ndimage

from heatproof.datasets.phantom.anatomy import Mask
from heatproof.datasets.standins.chest_pictures import bounding_box, draw_chest, write_radiograph
from heatproof.datasets.standins.registry import standin

SHOWN = (  # in turn: the class, and the findings of the phantom that stand for it
    ("Lung Opacity", ("opacity",)),
    ("Normal", ()),
    ("Lung Opacity", ("nodule",)),
    ("No Lung Opacity / Not Normal", ("cardiomegaly",)),
)


@standin("rsna_pneumonia")
def write_rsna_pneumonia(folder: Path, *, patients: int, size: int, seed: int) -> None:
    """An image a patient, a row of the tables for each separate part of an opacity."""
    labels, details = ["patientId,x,y,width,height,Target"], ["patientId,class"]
    for patient in range(patients):
        name = name_of(patient)
        kind, findings = SHOWN[patient % len(SHOWN)]
        picture = draw_chest(patient, 0, findings, size, seed)
        parts = [box for mask in picture.lesions.values() for box in _boxes(mask)] if kind == "Lung Opacity" else []
        rows = [f"{name},{box},1" for box in parts] or [f"{name},,,,,0"]
        labels += rows
        details += [f"{name},{kind}"] * len(rows)
        header = {"PatientID": name, "PatientSex": "FM"[patient % 2], "PatientAge": f"{30 + patient % 50:03d}Y"}
        write_radiograph(folder / f"stage_2_train_images/{name}.dcm", picture.pixels, **header)
    for file, lines in (("stage_2_train_labels.csv", labels), ("stage_2_detailed_class_info.csv", details)):
        (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")


def name_of(patient: int) -> str:
    """A patientId, which is a UUID there."""
    return f"{patient:08x}-0000-4000-8000-000000000000"


def _boxes(mask: Mask) -> list[str]:
    parts, count = ndimage.label(mask)
    found = [bounding_box(parts == part) for part in range(1, count + 1)]
    return [",".join(f"{number:.1f}" for number in box) for box in found]
