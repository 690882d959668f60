"""A stand-in of the SIIM-ACR pneumothorax data, in the layout of its page on Kaggle.

https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation/data; the images of the test, which have no annotation, are not
written.
"""

from pathlib import Path

from scipy import ndimage

from heatproof.datasets.phantom.anatomy import Mask
from heatproof.datasets.standins.chest_pictures import column_runs, draw_chest, enlarged, write_radiograph
from heatproof.datasets.standins.registry import standin

PIXELS = 1024  # a side of every image there
UID = "1.2.826.0.1.3680043.8.498.1024"


@standin("siim_acr_pneumothorax")
def write_siim_acr_pneumothorax(folder: Path, *, patients: int, size: int, seed: int) -> None:
    """An image a patient, every other one with a pneumothorax, and one more image that the table does not name.

    The pictures are drawn with `size` pixels a side and enlarged to 1024, which all images have there: the run lengths
    do not tell their size. Every other mask has a row for each of its separate parts.
    """
    lines = ["ImageId, EncodedPixels"]
    for patient in range(patients + 1):
        picture = draw_chest(patient, 0, ["pneumothorax"] if patient % 2 else [], size, seed)
        name = f"{UID}.{seed}.{patient}"
        path = folder / f"dicom-images-train/{name}.1/{name}.2/{name}.dcm"
        header = {"SOPInstanceUID": name, "StudyInstanceUID": f"{name}.1", "SeriesInstanceUID": f"{name}.2"}
        write_radiograph(path, enlarged(picture.pixels, PIXELS), PatientID=f"{patient}", **header)
        if patient < patients:
            masks = [enlarged(mask, PIXELS) for mask in picture.lesions.values()]
            rows = [_encoded(part) for mask in masks for part in (_parts(mask) if patient % 4 == 3 else [mask])]
            lines += [f"{name}, {row}" for row in rows or ["-1"]]
    (folder / "train-rle.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _parts(mask: Mask) -> list[Mask]:
    parts, count = ndimage.label(mask)
    return [parts == part for part in range(1, count + 1)]


def _encoded(mask: Mask) -> str:
    """Pairs of how many pixels to pass over and how many to take; what lies behind the last pair is outside."""
    runs = column_runs(mask)
    return " ".join(map(str, runs[: len(runs) // 2 * 2]))
