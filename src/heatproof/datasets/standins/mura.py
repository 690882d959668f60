"""Stand-in of MURA version 1.1 and of the ROI masks of Chung et al. for its validation set.

Sources: https://stanfordmlgroup.github.io/competitions/mura/ and https://github.com/ugent-korea/attention_maps.
"""

from pathlib import Path

from heatproof.datasets.phantom.randomness import generator
from heatproof.datasets.standins.pictures import Picture, draw_bone, save_picture
from heatproof.datasets.standins.registry import standin
from heatproof.datasets.standins.rois import drawn_on_crop

_LIMBS = "WRIST SHOULDER HAND FINGER ELBOW FOREARM HUMERUS".split()


@standin("mura")
def write(folder: Path, *, patients: int, size: int, seed: int) -> None:
    """One study a patient with one or two images, higher than wide; at least fourteen patients, every third in `valid`."""
    top = folder / "MURA-v1.1"
    images: dict[str, list[str]] = {"train": [], "valid": []}
    studies: dict[str, list[str]] = {"train": [], "valid": []}
    for patient in range(max(patients, 14)):
        split, bad = "valid" if patient % 3 == 2 else "train", abnormal(patient)
        sign = "positive" if bad else "negative"
        study = f"{split}/XR_{_LIMBS[patient % 7]}/patient{patient + 1:05d}/study1_{sign}"
        studies[split].append(f"MURA-v1.1/{study}/,{int(bad)}")
        for number in range(1, 2 + patient % 2):
            images[split].append(f"MURA-v1.1/{study}/image{number}.png")
            picture = draw(patient, number, size, seed)
            save_picture(top / study / f"image{number}.png", picture.pixels)
            if bad and split == "valid":
                name = f"patient{patient + 1:05d}_study1_positive_image{number}.png"
                save_picture(folder / "224_mask_annot_from_dr" / "mura" / name, drawn_on_crop(picture.lesion))
    for split, paths in images.items():
        (top / f"{split}_image_paths.csv").write_text("\n".join(paths) + "\n", encoding="utf-8")
        (top / f"{split}_labeled_studies.csv").write_text("\n".join(studies[split]) + "\n", encoding="utf-8")


def abnormal(patient: int) -> bool:
    """Whether a patient's bone has a gap."""
    return patient // 2 % 2 == 0


def draw(patient: int, number: int, size: int, seed: int) -> Picture:
    """One image of a patient's study, numbered from 1."""
    random = generator("mura picture", seed, patient, number)
    return draw_bone((size * 5 // 4, size), random, abnormal=abnormal(patient))
