"""A stand-in of VinDr-CXR in the layout of https://physionet.org/content/vindr-cxr/1.0.0/.

The columns are those that its users read; the consensus of the test is written without a reader.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from heatproof.datasets.phantom.anatomy import Mask
from heatproof.datasets.phantom.dicom import write_dicom
from heatproof.datasets.standins.chest_pictures import bounding_box, draw_chest, findings_of
from heatproof.datasets.standins.registry import standin

NAMES = (
    "Aortic enlargement,Atelectasis,Calcification,Cardiomegaly,Clavicle fracture,Consolidation,Edema,Emphysema,Enlarged PA,"
    "ILD,Infiltration,Lung Opacity,Lung cavity,Lung cyst,Mediastinal shift,Nodule/Mass,Pleural effusion,Pleural thickening,"
    "Pneumothorax,Pulmonary fibrosis,Rib fracture,Other lesion,COPD,Lung tumor,Pneumonia,Tuberculosis,Other diseases,"
    "No finding"
).split(",")
BOXED = {  # and what of the phantom stands for it
    "opacity": "Lung Opacity",
    "nodule": "Nodule/Mass",
    "effusion": "Pleural effusion",
    "cardiomegaly": "Cardiomegaly",
    "pneumothorax": "Pneumothorax",
}
WITHOUT_BOX = {"opacity": "Pneumonia", "nodule": "Lung tumor", "effusion": "Other diseases"}
READERS = ("R8", "R9", "R10")


@standin("vindr_cxr")
def write_vindr_cxr(folder: Path, *, patients: int, size: int, seed: int) -> None:
    """An image a patient, the last quarter the test. Of train, the third reader overlooks every other patient's findings.

    The boxes of the second reader stand off by a pixel, those of the third by two.
    """
    (folder / "annotations").mkdir()
    labels = {
        "train": [",".join(["image_id", "rad_id", *NAMES])],
        "test": [",".join(["image_id", *NAMES]).replace("Other diseases", "Other disease")],
    }
    boxes = {
        "train": ["image_id,rad_id,class_name,x_min,y_min,x_max,y_max"],
        "test": ["image_id,class_name,x_min,y_min,x_max,y_max"],
    }
    for patient in range(patients):
        part = "test" if patient >= patients - max(1, patients // 4) else "train"
        name = name_of(patient)
        picture = draw_chest(patient, 0, findings_of(patient), size, seed)
        (folder / part).mkdir(exist_ok=True)
        write_dicom(folder / part / f"{name}.dicom", picture.pixels, 12, seed, patient, 0)
        for place, reader in enumerate(READERS if part == "train" else ("",)):
            seen: Mapping[str, Mask] = {} if place == 2 and patient % 2 else picture.lesions
            who = ",".join(filter(None, (name, reader)))
            labels[part].append(f"{who},{_cells(seen)}")
            boxes[part] += [f"{who},{row}" for row in _rows(seen, place, size, part)]
    for part in ("train", "test"):
        for what, lines in (("image_labels", labels[part]), ("annotations", boxes[part])):
            (folder / f"annotations/{what}_{part}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def name_of(patient: int) -> str:
    """An image_id, 32 hexadecimal digits."""
    return f"{patient:032x}"


def read_box(mask: Mask, reader: int, size: int) -> list[int]:
    """x_min, y_min, x_max, y_max as the reader at this place of `READERS` draws it, within the image."""
    x, y, width, height = bounding_box(mask)
    corners = np.array([x - reader, y - reader, x + width + reader, y + height + reader])
    return [int(corner) for corner in np.clip(corners, 0, size)]


def _cells(seen: Mapping[str, Mask]) -> str:
    present = {of[finding] for finding in seen for of in (BOXED, WITHOUT_BOX) if finding in of} or {"No finding"}
    return ",".join(str(int(name in present)) for name in NAMES)


def _rows(seen: Mapping[str, Mask], reader: int, size: int, part: str) -> list[str]:
    """class_name and the box of what was seen; without coordinates what has none."""
    rows = [f"{BOXED[finding]},{','.join(map(str, read_box(mask, reader, size)))}" for finding, mask in seen.items()]
    others = [WITHOUT_BOX[finding] for finding in seen if finding in WITHOUT_BOX] if seen else ["No finding"]
    spelt = [name.replace("Other diseases", "Other disease") if part == "test" else name for name in others]
    return [*rows, *(f"{name},,,," for name in spelt)]
