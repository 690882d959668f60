"""Kvasir and Kvasir-SEG: the stand-in, a listing written by hand, and folders that are not as they should be."""

import json

import numpy as np
import pytest

from heatproof.datasets.adapters import kvasir as adapter
from heatproof.datasets.adapters.registry import ADAPTERS, load_public
from heatproof.datasets.check import check_dataset
from heatproof.datasets.standins import kvasir as standin
from heatproof.datasets.standins.pictures import random_name
from heatproof.datasets.standins.registry import write_standin
from heatproof.errors import InputError

SIZE, SEED = 64, 5
HEIGHT, WIDTH = 64, 80
FOLDERS = [
    "dyed-lifted-polyps",
    "dyed-resection-margins",
    "esophagitis",
    "normal-cecum",
    "normal-pylorus",
    "normal-z-line",
    "polyps",
    "ulcerative-colitis",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("kvasir") / "made"
    write_standin("kvasir", place, patients=16, size=SIZE, seed=SEED)
    return place


@pytest.fixture
def listing(tmp_path):
    """One image a class, as empty files, and two polyps of Kvasir-SEG."""
    touch(tmp_path / "v2", *(f"{name}/00-{number}.jpg" for number, name in enumerate(FOLDERS)))
    touch(tmp_path / "seg", *(f"{content}/{name}.jpg" for content in ("images", "masks") for name in ("cju1", "cju2")))
    boxes(
        tmp_path,
        {
            "cju1": {
                "height": 529,
                "width": 622,
                "bbox": [{"label": "polyp", "xmin": 38, "ymin": 5, "xmax": 430, "ymax": 338}],
            },
            "cju2": {
                "height": 529,
                "width": 622,
                "bbox": [
                    {"label": "polyp", "xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4},
                    {"label": "polyp", "xmin": 5, "ymin": 6, "xmax": 7, "ymax": 8},
                ],
            },
        },
    )
    return tmp_path


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def boxes(place, entries):
    (place / "seg" / "kavsir_bboxes.json").write_text(json.dumps(entries))


def test_the_stand_in_has_two_images_a_class(made):
    data = load_public("kvasir", made)
    assert data.classes == tuple(FOLDERS)
    assert data.samples["label"].value_counts().to_dict() == dict.fromkeys(FOLDERS, 2)
    assert data.samples["split"].isna().all()
    assert data.regions.empty


def test_segmentations_stand_for_the_polyps_at_the_drawn_pixels(made):
    data = load_public("kvasir", made, segmentations=str(made / "Kvasir-SEG"))
    assert data.samples["label"].value_counts().to_dict() == dict.fromkeys(FOLDERS, 2)
    for patient in (0, 8):
        sample, drawn = f"polyps/{standin.segmented_name(patient, SEED)}", standin.draw(patient, SIZE, SEED)
        np.testing.assert_array_equal(data.region(sample, "lesion", (HEIGHT, WIDTH), label="polyps"), drawn.lesion)
        np.testing.assert_array_equal(data.region(sample, "lesion_box", (HEIGHT, WIDTH)), box_about(drawn.lesion))
        assert data.row(sample)["image"].startswith(str(made / "Kvasir-SEG" / "images"))


def test_roi_masks_are_carried_back_to_the_stored_image(made):
    data = load_public("kvasir", made, rois=str(made / "224_mask_annot_from_dr" / "kvasir"))
    assert len(data.regions) == 2
    assert check_dataset(data).ok
    for patient in (0, 8):
        # of 64 x 80 pixels, enlarged to 256 x 320, the model sees the middle 224 x 224
        seen = np.zeros((HEIGHT, WIDTH), dtype=bool)
        seen[4:60, 12:68] = True
        expected = box_about(standin.draw(patient, SIZE, SEED).lesion & seen)
        sample = f"polyps/{random_name('kvasir', SEED, patient)}"
        np.testing.assert_array_equal(data.region(sample, "roi", (HEIGHT, WIDTH), label="polyps"), expected)


def box_about(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = np.zeros_like(mask)
    box[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return box


def test_a_listing_written_by_hand(listing):
    data = load_public("kvasir", listing / "v2", segmentations=str(listing / "seg"))
    assert data.samples[["sample_id", "image", "label"]].to_numpy().tolist() == [
        ["dyed-lifted-polyps/00-0", f"{listing}/v2/dyed-lifted-polyps/00-0.jpg", "dyed-lifted-polyps"],
        ["dyed-resection-margins/00-1", f"{listing}/v2/dyed-resection-margins/00-1.jpg", "dyed-resection-margins"],
        ["esophagitis/00-2", f"{listing}/v2/esophagitis/00-2.jpg", "esophagitis"],
        ["normal-cecum/00-3", f"{listing}/v2/normal-cecum/00-3.jpg", "normal-cecum"],
        ["normal-pylorus/00-4", f"{listing}/v2/normal-pylorus/00-4.jpg", "normal-pylorus"],
        ["normal-z-line/00-5", f"{listing}/v2/normal-z-line/00-5.jpg", "normal-z-line"],
        ["ulcerative-colitis/00-7", f"{listing}/v2/ulcerative-colitis/00-7.jpg", "ulcerative-colitis"],
        ["polyps/cju1", f"{listing}/seg/images/cju1.jpg", "polyps"],
        ["polyps/cju2", f"{listing}/seg/images/cju2.jpg", "polyps"],
    ]
    assert data.regions[["sample_id", "region", "kind", "data"]].to_numpy().tolist() == [
        ["polyps/cju1", "lesion", "mask", f"{listing}/seg/masks/cju1.jpg"],
        ["polyps/cju2", "lesion", "mask", f"{listing}/seg/masks/cju2.jpg"],
        ["polyps/cju1", "lesion_box", "box", "38 5 430 338"],
        ["polyps/cju2", "lesion_box", "box", "1 2 3 4;5 6 7 8"],
    ]
    assert any("replaced 13" in note for note in data.notes)
    assert any("polyps 2 of 1,000" in note for note in data.notes)


def test_two_classes_of_some(listing):
    data = load_public("kvasir", listing / "v2", classes=["polyps", "normal-cecum"], positive=["polyps"])
    assert data.classes == ("negative", "positive")
    found = data.samples[["label", "finding"]].to_numpy().tolist()
    assert found == [["negative", "normal-cecum"], ["positive", "polyps"]]


def test_roi_masks_of_other_images(listing):
    touch(listing / "rois", "00-6.png", "00-99.png")
    with pytest.raises(InputError, match="1 of the ROI masks are named after no image that is here: 00-99"):
        load_public("kvasir", listing / "v2", rois=str(listing / "rois"))
    data = load_public("kvasir", listing / "v2", rois=str(listing / "rois"), skip_faulty=True)
    assert data.regions[["sample_id", "region", "label", "data"]].to_numpy().tolist() == [
        ["polyps/00-6", "roi", "polyps", f"{listing}/rois/00-6.png#fit=crop&short_side=256"]
    ]


def test_a_roi_mask_whose_name_fits_several_images_is_left_out(listing):
    touch(listing, "v2/esophagitis/00-6.jpg", "rois/00-6.png", "rois/00-1.png")
    data = load_public("kvasir", listing / "v2", rois=str(listing / "rois"))
    assert data.regions["sample_id"].tolist() == ["dyed-resection-margins/00-1"]
    assert any("fits several images, left out: 00-6" in note for note in data.notes)


def test_classes_that_are_missing_or_too_many(listing):
    touch(listing / "v2", "bleeding/a.jpg")
    with pytest.raises(InputError, match="'bleeding', which the data set does not have"):
        load_public("kvasir", listing / "v2")
    (listing / "v2" / "bleeding").rename(listing / "elsewhere")
    (listing / "v2" / "esophagitis" / "00-2.jpg").unlink()
    with pytest.raises(InputError, match="esophagitis is missing or holds no pictures"):
        load_public("kvasir", listing / "v2")


def test_segmentations_that_lack_a_part(listing):
    (listing / "seg/masks/cju2.jpg").unlink()
    with pytest.raises(InputError, match="1 of 2 images have no segmentation mask: polyps/cju2"):
        load_public("kvasir", listing / "v2", segmentations=str(listing / "seg"))
    data = load_public("kvasir", listing / "v2", segmentations=str(listing / "seg"), skip_faulty=True)
    assert (data.samples["label"] == "polyps").sum() == 1
    with pytest.raises(InputError, match="holds no folder 'images'"):
        load_public("kvasir", listing / "v2", segmentations=str(listing / "v2"))


def test_boxes_of_another_form(listing):
    boxes(listing, {"cju1": {"bbox": [{"x": 1}]}, "cju2": {"bbox": []}, "cju3": {"bbox": []}})
    with pytest.raises(InputError, match="1 entries are not of the form.*cju1.*cju3"):
        load_public("kvasir", listing / "v2", segmentations=str(listing / "seg"))
    data = load_public("kvasir", listing / "v2", segmentations=str(listing / "seg"), skip_faulty=True)
    assert data.regions[data.regions["region"] == "lesion_box"]["data"].tolist() == [""]
    (listing / "seg/kavsir_bboxes.json").write_text("[]")
    with pytest.raises(InputError, match="an object with an entry for each image is expected, got list"):
        load_public("kvasir", listing / "v2", segmentations=str(listing / "seg"))
    (listing / "seg/kavsir_bboxes.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as the boxes"):
        load_public("kvasir", listing / "v2", segmentations=str(listing / "seg"))


def test_options_that_do_not_fit(listing):
    for options, message in (
        ({"classes": ["polyp"]}, "classes: 'polyp' is not one of the classes. Did you mean 'polyps'"),
        ({"classes": ["polyps"], "positive": ["esophagitis"]}, "positive: 'esophagitis' is not one of the classes"),
        ({"segmentations": str(listing / "seg"), "rois": "x"}, "goes neither with rois"),
        ({"segmentations": str(listing / "seg"), "classes": ["esophagitis"]}, "leave out 'polyps'"),
        ({"rois": str(listing / "nowhere")}, "holds no masks"),
    ):
        with pytest.raises(InputError, match=message):
            load_public("kvasir", listing / "v2", **options)


def test_what_is_said_of_it():
    assert adapter.kvasir is ADAPTERS["kvasir"].function
    assert set(ADAPTERS["kvasir"].meanings) == {"classes", "positive", "segmentations", "rois"}
