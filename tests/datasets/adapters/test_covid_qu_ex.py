"""COVID-QU-Ex: its stand-in, a listing written by hand, and folders that are not as they should be."""

import numpy as np
import pytest

import heatproof.datasets.adapters.covid_qu_ex  # noqa: F401 - registers the adapter
from heatproof.datasets.adapters.registry import ADAPTERS, load_public
from heatproof.datasets.check import check_dataset
from heatproof.datasets.standins import covid_qu_ex as standin
from heatproof.datasets.standins.registry import write_standin
from heatproof.errors import InputError

LUNG, INFECTION = "Lung Segmentation Data", "Infection Segmentation Data"
NAMES = {"COVID-19": "covid_{}", "Non-COVID": "non_COVID ({})", "Normal": "Normal ({})"}
SIZE, SEED = 64, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    place = tmp_path_factory.mktemp("covid") / "made"
    write_standin("covid_qu_ex", place, patients=30, size=SIZE, seed=SEED)
    return place


@pytest.fixture
def listing(tmp_path):
    """An image a class and split in both sets, as empty files; the infection set has moved its splits on by one."""
    for number, split in enumerate(("Train", "Val", "Test"), start=1):
        for label, name in NAMES.items():
            touch(tmp_path / LUNG / split / label, name.format(number), "images", "lung masks")
        for label, name in NAMES.items():
            place = tmp_path / INFECTION / INFECTION / split / label
            touch(place, name.format(number % 3 + 1), "images", "lung masks", "infection masks")
    return tmp_path


def touch(place, name, *contents):
    for content in contents:
        (place / content).mkdir(parents=True, exist_ok=True)
        (place / content / f"{name}.png").touch()


def test_the_stand_in_has_official_splits_and_regions_at_the_drawn_pixels(made):
    data = load_public("covid_qu_ex", made)
    assert data.classes == ("COVID-19", "Non-COVID", "Normal")
    assert data.samples.groupby(["split", "label"]).size().to_dict() == {
        (split, label): count for split, count in (("train", 6), ("val", 2), ("test", 2)) for label in NAMES
    }
    assert data.regions["region"].value_counts().to_dict() == {"lung": 30, "lesion": 15}
    drawn = standin.draw(0, SIZE, SEED)
    size = (SIZE, SIZE)
    assert check_dataset(data).ok
    np.testing.assert_array_equal(data.region("Train/COVID-19/covid_1", "lung", size), drawn.lungs)
    np.testing.assert_array_equal(data.region("Train/COVID-19/covid_1", "lesion", size), drawn.lesions["opacity"])
    np.testing.assert_array_equal(
        data.region("Test/Normal/Normal (2)", "lung", size), standin.draw(5, SIZE, SEED).lungs
    )
    # an infection without COVID-19 is annotated as having no part of it; the sixteenth image is in no infection set
    assert not data.region("Train/Non-COVID/non_COVID (1)", "lesion", size, label="COVID-19").any()
    assert data.region("Train/COVID-19/covid_1", "lesion", size, label="Normal") is None
    assert not data.has_region("Train/COVID-19/covid_6", "lesion")


def test_the_infection_set_alone_has_splits_of_its_own(made):
    data = load_public("covid_qu_ex", made, part="infection")
    assert data.samples["split"].value_counts().to_dict() == {"train": 9, "val": 3, "test": 3}
    assert data.row("Test/COVID-19/covid_1")["split"] == "test"
    assert data.regions["region"].value_counts().to_dict() == {"lung": 15, "lesion": 15}
    lesion = data.region("Test/COVID-19/covid_1", "lesion", (SIZE, SIZE))
    np.testing.assert_array_equal(lesion, standin.draw(0, SIZE, SEED).lesions["opacity"])


def test_a_listing_written_by_hand(listing):
    data = load_public("covid_qu_ex", listing)
    columns = ["sample_id", "image", "label", "patient_id", "split"]
    assert data.samples[columns].to_numpy().tolist() == [
        [sample, f"{listing}/{LUNG}/{place}.png", label, sample, split]
        for sample, place, label, split in (
            ("Train/COVID-19/covid_1", "Train/COVID-19/images/covid_1", "COVID-19", "train"),
            ("Train/Non-COVID/non_COVID (1)", "Train/Non-COVID/images/non_COVID (1)", "Non-COVID", "train"),
            ("Train/Normal/Normal (1)", "Train/Normal/images/Normal (1)", "Normal", "train"),
            ("Val/COVID-19/covid_2", "Val/COVID-19/images/covid_2", "COVID-19", "val"),
            ("Val/Non-COVID/non_COVID (2)", "Val/Non-COVID/images/non_COVID (2)", "Non-COVID", "val"),
            ("Val/Normal/Normal (2)", "Val/Normal/images/Normal (2)", "Normal", "val"),
            ("Test/COVID-19/covid_3", "Test/COVID-19/images/covid_3", "COVID-19", "test"),
            ("Test/Non-COVID/non_COVID (3)", "Test/Non-COVID/images/non_COVID (3)", "Non-COVID", "test"),
            ("Test/Normal/Normal (3)", "Test/Normal/images/Normal (3)", "Normal", "test"),
        )
    ]
    regions = data.regions.set_index(["sample_id", "region"])
    assert len(regions) == 18
    lesion = regions.loc[("Test/COVID-19/covid_3", "lesion")]
    assert lesion["data"] == f"{listing}/{INFECTION}/{INFECTION}/Val/COVID-19/infection masks/covid_3.png"
    assert (lesion["kind"], lesion["label"]) == ("mask", "COVID-19")
    lung = regions.loc[("Val/Normal/Normal (2)", "lung")]
    assert lung["data"] == f"{listing}/{LUNG}/Val/Normal/lung masks/Normal (2).png"
    assert any("names no patients" in note for note in data.notes)
    assert any("COVID-19 3 of 11,956" in note for note in data.notes)


def test_an_image_without_its_mask_can_be_left_out(listing):
    touch(listing / LUNG / "Train/COVID-19", "covid_8", "images", "lung masks")
    (listing / LUNG / "Train/COVID-19/lung masks/covid_1.png").unlink()
    with pytest.raises(InputError, match="1 of 10 images have no lung mask: Train/COVID-19/covid_1"):
        load_public("covid_qu_ex", listing)
    data = load_public("covid_qu_ex", listing, skip_faulty=True)
    assert len(data) == 9
    assert "Train/COVID-19/covid_1" not in set(data.regions["sample_id"])
    assert any(note.startswith("Left out: 1 of 10") for note in data.notes)


def test_masks_without_an_image(listing):
    touch(listing / LUNG / "Val/Normal", "Normal (7)", "lung masks")
    with pytest.raises(
        InputError, match=r"1 of the lung masks belong to no image: .*Val/Normal/lung masks/Normal \(7\)"
    ):
        load_public("covid_qu_ex", listing)
    assert len(load_public("covid_qu_ex", listing, skip_faulty=True)) == 9


def test_an_infection_mask_of_an_image_that_the_lung_set_lacks(listing):
    place = listing / INFECTION / INFECTION / "Train/COVID-19"
    touch(place, "covid_99", "images", "lung masks", "infection masks")
    with pytest.raises(InputError, match="1 infection masks are of images that 'Lung Segmentation Data' does not have"):
        load_public("covid_qu_ex", listing)
    data = load_public("covid_qu_ex", listing, skip_faulty=True)
    assert len(data) == 9
    assert (data.regions["region"] == "lesion").sum() == 9


def test_one_name_in_two_splits(listing):
    touch(listing / LUNG / "Val/COVID-19", "covid_1", "images", "lung masks")
    with pytest.raises(InputError, match="one name in several splits.*Train/COVID-19/covid_1, Val/COVID-19/covid_1"):
        load_public("covid_qu_ex", listing)


def test_folders_that_are_missing_or_too_many(listing):
    (listing / LUNG / "Val").rename(listing / "elsewhere")
    with pytest.raises(InputError, match="Lung Segmentation Data/Val/COVID-19/images is missing"):
        load_public("covid_qu_ex", listing)
    (listing / "elsewhere").rename(listing / LUNG / "Val")
    touch(listing / LUNG / "Train/Pneumonia", "a", "images")
    with pytest.raises(InputError, match="Train holds 'Pneumonia', which the data set does not have"):
        load_public("covid_qu_ex", listing)


def test_the_lung_set_can_be_read_alone(listing):
    (listing / INFECTION).rename(listing / "elsewhere")
    with pytest.raises(InputError, match="No folder 'Infection Segmentation Data'"):
        load_public("covid_qu_ex", listing)
    assert set(load_public("covid_qu_ex", listing, part="lung").regions["region"]) == {"lung"}
    with pytest.raises(InputError, match="part must be 'all' or 'lung' or 'infection'"):
        load_public("covid_qu_ex", listing, part="lungs")


def test_what_is_said_of_it():
    entry = ADAPTERS["covid_qu_ex"]
    assert set(entry.meanings) == {"part"}
    assert entry.home.startswith("https://")
