"""Stand-in of CP-CHILD, A and B, and of the ROI masks of Chung et al. for the polyps in the test set of A.

Sources: https://figshare.com/articles/dataset/CP-CHILD_zip/12554042 and https://github.com/ugent-korea/attention_maps.
"""

from pathlib import Path

from heatproof.datasets.phantom.randomness import generator
from heatproof.datasets.standins.pictures import Picture, draw_bowel, save_picture
from heatproof.datasets.standins.registry import standin
from heatproof.datasets.standins.rois import drawn_on_resized


@standin("cp_child")
def write(folder: Path, *, patients: int, size: int, seed: int) -> None:
    """One image a patient, at least twelve: two thirds in part A, half of each part for training."""
    for patient in range(max(patients, 12)):
        polyp, turn = patient % 2 == 0, patient // 2
        part = "CP-CHILD-B" if turn % 3 == 2 else "CP-CHILD-A"
        split = "Test" if turn // 3 % 2 else "Train"
        picture, name = draw(patient, size, seed), f"1 ({turn + 1})"
        save_picture(folder / part / split / ("Polyp" if polyp else "Non-Polyp") / f"{name}.jpg", picture.pixels)
        if polyp and (part, split) == ("CP-CHILD-A", "Test"):
            roi = folder / "224_mask_annot_from_dr" / "cpchild" / f"{name}.png"
            save_picture(roi, drawn_on_resized(picture.lesion))


def draw(patient: int, size: int, seed: int) -> Picture:
    """What one patient's bowel looks like: every second one has a polyp."""
    return draw_bowel((size, size), generator("cp_child picture", seed, patient), polyp=patient % 2 == 0)
