"""The masks that Chung et al. (chung2024evaluating) had a physician draw on 50 positive test images of four data sets.

Source: https://github.com/ugent-korea/attention_maps, folder `data/224_mask_annot_from_dr/{cpchild,duke,kvasir,mura}`; its
`reproducibility_tutorial.md` and `src/func_inter.py` say how the images came to the model. The masks are drawn on the
model's input of 224 x 224 pixels: CP-CHILD and DUKE images resized to it; MURA and Kvasir images with their short side
resized to 256, of which the centre was cut out (wide Kvasir images lost their black margin before: how is not said, the
centre is assumed). Each mask bears its image's name. The region rows tell the way of the image to the input, so that a
mask is carried back to the stored image's pixels when it is read (`heatproof.images.regions.read_mask_region`).
"""

from pathlib import Path

import pandas as pd

from heatproof.datasets.adapters.listing import pictures, stem
from heatproof.datasets.adapters.official import region_rows
from heatproof.datasets.adapters.registry import Problem
from heatproof.datasets.cells import some
from heatproof.errors import InputError

REGION = "roi"
RESIZED = "#fit=resize"
CROPPED = "#fit=crop&short_side=256"


def read_rois(
    folder: str | Path, images: pd.DataFrame, names: "pd.Series[str]", way: str
) -> tuple[pd.DataFrame, list[Problem], list[str]]:
    """Region rows for the masks of a folder, the problems and the notes.

    Args:
        folder: with the masks of one data set, such as `.../224_mask_annot_from_dr/mura`.
        images: the samples that masks may belong to, with `sample_id` and `label`; a mask is of the label of its image.
        names: what the mask of each of them is called, without suffix.
        way: of the images to the model's input, `RESIZED` or `CROPPED`.

    Raises:
        InputError: no such folder, or no masks in it.
    """
    place = Path(folder).absolute()
    masks = pd.DataFrame({"file": pictures(place)}, dtype=object)
    if masks.empty:
        raise InputError(f"rois: {folder} holds no masks. Give the folder with those of this one data set.")
    masks["name"] = masks["file"].map(stem)
    named = pd.DataFrame({"name": names, "sample_id": images["sample_id"], "label": images["label"]}, dtype=object)
    pairs = masks.merge(named, on="name", how="left")
    several = pairs["name"].duplicated(keep=False)
    fitting = pairs[~several & pairs["sample_id"].notna()]
    files = [f"{place / file}{way}" for file in fitting["file"]]
    rows = region_rows(fitting["sample_id"], fitting["label"], "mask", files, region=REGION)
    return rows, _without_image(pairs), _with_several(pairs["name"][several])


def _without_image(pairs: pd.DataFrame) -> list[Problem]:
    alone = pairs["name"][pairs["sample_id"].isna()]
    if alone.empty:
        return []
    text = f"{len(alone)} of the ROI masks are named after no image that is here: {some(alone, len(alone))}."
    return [Problem(text, frozenset(alone))]


def _with_several(names: "pd.Series[str]") -> list[str]:
    unclear = sorted(set(names))
    return [f"ROI masks whose name fits several images, left out: {some(unclear, len(unclear))}."] if unclear else []
