"""Stand-in of Kvasir version 2, of Kvasir-SEG and of the ROI masks of Chung et al. for it, beside each other.

Sources: https://datasets.simula.no/kvasir, https://datasets.simula.no/kvasir-seg and
https://github.com/ugent-korea/attention_maps. Kvasir-SEG shows the polyps again, under other names.
"""

import json
from pathlib import Path

import numpy as np

from heatproof.datasets.phantom.randomness import generator
from heatproof.datasets.standins.pictures import Picture, draw_bowel, random_name, save_picture
from heatproof.datasets.standins.registry import standin
from heatproof.datasets.standins.rois import drawn_on_crop, edges

_FINDINGS = (
    "polyps normal-cecum normal-pylorus normal-z-line esophagitis ulcerative-colitis dyed-lifted-polyps "
    "dyed-resection-margins"
).split()


@standin("kvasir")
def write(folder: Path, *, patients: int, size: int, seed: int) -> None:
    """One image a patient, at least sixteen: two a class. They are a quarter wider than high."""
    boxes = {}
    for patient in range(max(patients, 16)):
        finding, name = _FINDINGS[patient % 8], random_name("kvasir", seed, patient)
        picture = draw(patient, size, seed)
        save_picture(folder / "kvasir-dataset-v2" / finding / f"{name}.jpg", picture.pixels)
        if finding != "polyps":
            continue
        save_picture(folder / "224_mask_annot_from_dr" / "kvasir" / f"{name}.png", drawn_on_crop(picture.lesion))
        other = segmented_name(patient, seed)
        save_picture(folder / "Kvasir-SEG" / "images" / f"{other}.jpg", picture.pixels)
        white = np.repeat(np.asarray(picture.lesion, dtype=np.uint8)[..., None] * 255, 3, axis=2)
        save_picture(folder / "Kvasir-SEG" / "masks" / f"{other}.jpg", white)
        left, top, right, bottom = edges(picture.lesion)
        box = {"label": "polyp", "xmin": left, "ymin": top, "xmax": right, "ymax": bottom}
        boxes[other] = {"height": white.shape[0], "width": white.shape[1], "bbox": [box]}
    (folder / "Kvasir-SEG" / "kavsir_bboxes.json").write_text(json.dumps(boxes), encoding="utf-8")


def draw(patient: int, size: int, seed: int) -> Picture:
    """What one patient's bowel looks like."""
    random = generator("kvasir picture", seed, patient)
    return draw_bowel((size, size * 5 // 4), random, polyp=_FINDINGS[patient % 8] == "polyps")


def segmented_name(patient: int, seed: int) -> str:
    """The name of a patient's polyp in Kvasir-SEG, without suffix."""
    return "cju" + random_name("kvasir-seg", seed, patient).replace("-", "")[:22]
