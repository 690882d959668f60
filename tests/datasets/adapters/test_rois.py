"""The 200 masks of Chung et al. as regions of the images that they are named after, which are empty files here."""

import numpy as np
import pytest

from heatproof.datasets.adapters import cp_child, duke_breast_mri, kvasir, mura
from heatproof.datasets.adapters.registry import load_public
from heatproof.images.geometry import fit_geometry

SIZE = (256, 256)
ADAPTERS = {"cpchild": cp_child, "duke": duke_breast_mri, "kvasir": kvasir, "mura": mura}
FINDINGS = (
    "dyed-lifted-polyps dyed-resection-margins esophagitis normal-cecum normal-pylorus normal-z-line polyps".split()
)


def as_cpchild(place, names):
    touch(place, *(f"CP-CHILD-A/{folder}/other.jpg" for folder in ("Train/Polyp", "Train/Non-Polyp", "Test/Non-Polyp")))
    touch(place, *(f"CP-CHILD-A/Test/Polyp/{name}.jpg" for name in names))
    return {"part": "A"}


def as_duke(place, names):
    touch(place, "neg/1-001-1.png", *(f"pos/{name}.png" for name in names))
    return {}


def as_kvasir(place, names):
    touch(place, *(f"{finding}/other.jpg" for finding in (*FINDINGS, "ulcerative-colitis")))
    touch(place, *(f"polyps/{name}.jpg" for name in names))
    return {}


def as_mura(place, names):
    images = ["MURA-v1.1/train/XR_HAND/patient00001/study1_negative/image1.png"]
    for name in names:
        patient, study, sign, image = name.split("_")
        images.append(f"MURA-v1.1/valid/XR_WRIST/{patient}/{study}_{sign}/{image}.png")
    touch(place, *images)
    for split in ("train", "valid"):
        mine = [image for image in images if image.startswith(f"MURA-v1.1/{split}/")]
        studies = sorted({f"{image.rpartition('/')[0]}/,{int('positive' in image)}" for image in mine})
        for table, rows in (("image_paths", mine), ("labeled_studies", studies)):
            (place / "MURA-v1.1" / f"{split}_{table}.csv").write_text("\n".join(rows) + "\n")
    return {}


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


@pytest.mark.parametrize(
    ("masks", "write", "empty", "whole"),
    [("cpchild", as_cpchild, 0, 0), ("duke", as_duke, 0, 0), ("kvasir", as_kvasir, 0, 1), ("mura", as_mura, 2, 0)],
)
def test_each_mask_is_a_rectangle_in_its_image(shared, tmp_path, masks, write, empty, whole):
    folder = shared / "attention_maps_rois" / masks
    options = write(tmp_path, [path.stem for path in sorted(folder.glob("*.png"))])
    name = ADAPTERS[masks].__name__.rpartition(".")[2]
    data = load_public(name, tmp_path, rois=str(folder), **options)
    assert len(data.regions) == data.regions["sample_id"].nunique() == 50
    assert set(data.regions["label"]) <= {"polyp", "positive", "polyps"}
    # an image of this size is what the model's input of 224 x 224 was made of: resized, or cut from its middle
    resized = masks in ("cpchild", "duke")
    seen = fit_geometry("resize" if resized else "crop", SIZE, (224, 224), short_side=None if resized else 256).seen
    regions = [data.region(sample, "roi", SIZE) for sample in data.regions["sample_id"]]
    assert sum(not region.any() for region in regions) == empty
    assert sum(np.array_equal(region, seen) for region in regions) == whole
    for region in regions:
        assert region.sum() == region.any(axis=0).sum() * region.any(axis=1).sum()
