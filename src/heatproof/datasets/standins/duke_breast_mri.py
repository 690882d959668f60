"""Stand-in of Duke-Breast-Cancer-MRI, of the PNG slices of its tutorial, and of the ROI masks of Chung et al. for them.

Sources: https://www.cancerimagingarchive.net/collection/duke-breast-cancer-mri/,
https://sites.duke.edu/mazurowski/2022/07/13/breast-mri-cancer-detect-tutorial-part1/ and
https://github.com/ugent-korea/attention_maps. The series lie in the folder itself, the PNG slices in `png_out`; the tables
are CSV files.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from heatproof.datasets.phantom.randomness import generator
from heatproof.datasets.standins.pictures import Volume, draw_breasts, save_mr_slice, save_picture
from heatproof.datasets.standins.registry import standin
from heatproof.datasets.standins.rois import drawn_on_resized

_DEPTH = 24
_SEQUENCES = ("pre", "post_1")


@standin("duke_breast_mri")
def write(folder: Path, *, patients: int, size: int, seed: int) -> None:
    """Two series a patient, at least three patients; slices are square. Every second one counts files with two digits."""
    from pydicom.uid import generate_uid

    mapping = ["original_path_and_filename,sop_instance_UID,descriptive_path,classic_path"]
    boxes = ["Patient ID,Start Row,End Row,Start Column,End Column,Start Slice,End Slice"]
    for number in range(1, max(patients, 3) + 1):
        patient, volume = f"Breast_MRI_{number:03d}", draw(number, size, seed)
        (first, end), rows, columns = volume.lesion
        # slices count from 1 and the last one of a box is no longer called positive: it is one past the last drawn
        boxes.append(f"{patient},{rows[0]},{rows[1]},{columns[0]},{columns[1]},{first + 1},{end + 1}")
        study = str(generate_uid(entropy_srcs=["heatproof duke study", str(seed), patient]))
        for sequence in _SEQUENCES:
            series = str(generate_uid(entropy_srcs=["heatproof duke series", str(seed), patient, sequence]))
            place = f"Duke-Breast-Cancer-MRI/{patient}/{study}/{series}"
            for index, pixels in enumerate(volume.slices, start=1):
                original = f"DICOM_Images/{patient}/{sequence}/{patient}_{sequence}_{index:03d}.dcm"
                descriptive = f"Duke-Breast-Cancer-MRI/{patient}/{sequence}/1-{index:03d}.dcm"
                mapping.append(f"{original},{series}.{index},{descriptive},{place}/1-{index:03d}.dcm")
                stored = f"1-{index:02d}.dcm" if number % 2 == 0 else f"1-{index:03d}.dcm"
                save_mr_slice(folder / place / stored, pixels, patient, study, series, index)
        _write_pictures(folder, volume, number)
    name = "Breast-Cancer-MRI-filepath_filename-mapping.csv"
    (folder / name).write_text("\n".join(mapping) + "\n", encoding="utf-8")
    (folder / "Annotation_Boxes.csv").write_text("\n".join(boxes) + "\n", encoding="utf-8")


def draw(number: int, size: int, seed: int) -> Volume:
    """The slices of one patient, numbered from 1; both series show the same."""
    return draw_breasts(_DEPTH, size, generator("duke volume", seed, number))


def lesion(volume: Volume) -> NDArray[np.bool_]:
    """Where the lesion lies in the slices that show it, bool `[H, W]`."""
    _, rows, columns = volume.lesion
    mask = np.zeros(volume.slices.shape[1:], dtype=bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def _write_pictures(folder: Path, volume: Volume, number: int) -> None:
    """The slices with the lesion and those five or more away from it; one ROI mask in the middle of the lesion."""
    first, end = volume.lesion[0]
    for index, pixels in enumerate(volume.slices):
        inside = first <= index < end
        if inside or index + 5 <= first or index - 5 > end:
            name = f"1-{index + 1:03d}-{number}.png"
            scaled = np.asarray(pixels * (255 / pixels.max()), dtype=np.uint8)
            save_picture(folder / "png_out" / ("pos" if inside else "neg") / name, scaled)
    name = f"1-{(first + end) // 2 + 1:03d}-{number}.png"
    save_picture(folder / "224_mask_annot_from_dr" / "duke" / name, drawn_on_resized(lesion(volume)))
