"""SIIM-ACR pneumothorax: the stand-in, listings as they are documented, and folders that are something else."""

import numpy as np
import pytest

from heatproof.datasets.adapters.registry import load_public
from heatproof.datasets.adapters.siim_acr_pneumothorax import siim_acr_pneumothorax
from heatproof.datasets.check import check_dataset
from heatproof.datasets.standins.chest_pictures import draw_chest, enlarged
from heatproof.datasets.standins.siim_acr_pneumothorax import UID, write_siim_acr_pneumothorax
from heatproof.errors import InputError

SEED, SIZE = 1, (1024, 1024)

# the rows are those that the challenge's page shows; names and values have blanks before them
PUBLISHED = "387620 23 996 33 986 43 977 51 968 58 962 65 956 70 952 74 949 76 946 79"
TABLE = f"""\
ImageId, EncodedPixels
1.2.276.14508, {PUBLISHED}
1.2.276.1034, -1
1.2.276.77, 1025 2
1.2.276.77, 0 3 1048573 0
"""
PATHS = {
    "1.2.276.14508": "1.2.276.31/1.2.276.32/1.2.276.14508.dcm",
    "1.2.276.1034": "1.2.276.41/1.2.276.42/1.2.276.1034.dcm",
    "1.2.276.77": "1.2.276.51/1.2.276.52/1.2.276.77.dcm",
}


@pytest.fixture
def folder(tmp_path):
    """The data set by hand; its images are empty files, as indexing opens none."""
    (tmp_path / "train-rle.csv").write_text(TABLE)
    for path in PATHS.values():
        place = tmp_path / "dicom-images-train" / path
        place.parent.mkdir(parents=True)
        place.touch()
    return tmp_path


def test_the_stand_in(tmp_path):
    write_siim_acr_pneumothorax(tmp_path, patients=4, size=64, seed=SEED)
    data = load_public("siim_acr_pneumothorax", tmp_path)
    assert len(data) == 4
    assert data.classes == ("no pneumothorax", "pneumothorax")
    assert data.samples["split"].isna().all()
    assert check_dataset(data).failures.empty
    left_out = f"1 images without a row in train-rle.csv are left out: {UID}.{SEED}.4."
    assert left_out in data.notes
    for patient in range(4):
        shown = ["pneumothorax"] if patient % 2 else []
        lesions = draw_chest(patient, 0, shown, 64, SEED).lesions
        mask = lesions.get("pneumothorax", np.zeros((64, 64), dtype=bool))
        name = f"{UID}.{SEED}.{patient}"
        assert data.row(name)["label"] == ("pneumothorax" if mask.any() else "no pneumothorax")
        np.testing.assert_array_equal(data.region(name, "lesion", SIZE), enlarged(mask, 1024))


def test_the_table_by_hand(folder):
    data = load_public("siim_acr_pneumothorax", folder)
    assert list(data.samples[["sample_id", "image", "label"]].itertuples(index=False, name=None)) == [
        ("1.2.276.14508", str(folder / "dicom-images-train" / PATHS["1.2.276.14508"]), "pneumothorax"),
        ("1.2.276.1034", str(folder / "dicom-images-train" / PATHS["1.2.276.1034"]), "no pneumothorax"),
        ("1.2.276.77", str(folder / "dicom-images-train" / PATHS["1.2.276.77"]), "pneumothorax"),
    ]
    published = data.region("1.2.276.14508", "lesion", SIZE)
    lengths = [int(number) for number in PUBLISHED.split()[1::2]]
    # the first run begins at pixel 387620 down the columns; each further one in the next column
    column, row = divmod(387620, 1024)
    assert published.sum() == sum(lengths)
    assert published.sum(axis=0)[column : column + len(lengths)].tolist() == lengths
    assert published[row : row + lengths[0], column].all()
    assert not published[:row, column].any()
    assert not data.region("1.2.276.1034", "lesion", SIZE).any()
    two = data.region("1.2.276.77", "lesion", SIZE)
    assert np.argwhere(two).tolist() == [[0, 0], [1, 0], [1, 1], [2, 0], [2, 1]]


def test_a_parent_folder(folder, tmp_path_factory):
    parent = tmp_path_factory.mktemp("download")
    folder.rename(parent / "siim")
    data = load_public("siim_acr_pneumothorax", parent)
    assert data.row("1.2.276.1034")["image"] == str(parent / "siim/dicom-images-train" / PATHS["1.2.276.1034"])


def test_half_a_download(folder):
    (folder / "dicom-images-train" / PATHS["1.2.276.1034"]).unlink()
    expected = r"train-rle.csv annotates 1 images that dicom-images-train/\*/\*/\*.dcm does not name: 1.2.276.1034"
    with pytest.raises(InputError, match=expected):
        load_public("siim_acr_pneumothorax", folder)
    data = load_public("siim_acr_pneumothorax", folder, skip_faulty=True)
    assert data.samples["sample_id"].tolist() == ["1.2.276.14508", "1.2.276.77"]
    (folder / "dicom-images-train").rename(folder / "dicom-images-test")
    with pytest.raises(InputError, match="dicom-images-train is expected in"):
        load_public("siim_acr_pneumothorax", folder)
    (folder / "train-rle.csv").unlink()
    with pytest.raises(InputError, match="expected train-rle.csv or siim/train-rle.csv"):
        load_public("siim_acr_pneumothorax", folder)


def test_an_image_without_annotation_is_left_out_and_noted(folder):
    (folder / "dicom-images-train/9/9").mkdir(parents=True)
    (folder / "dicom-images-train/9/9/1.2.9.dcm").touch()
    data = load_public("siim_acr_pneumothorax", folder)
    assert len(data) == 3
    assert "1 images without a row in train-rle.csv are left out: 1.2.9." in data.notes


@pytest.mark.parametrize("text", ["1 2 3", "1 two", "1 1048576", "", "-1 3"])
def test_run_lengths_that_fit_no_image(folder, text):
    (folder / "train-rle.csv").write_text(TABLE.replace(PUBLISHED, text))
    with pytest.raises(InputError, match="1 images of .* have no run lengths of 1024 x 1024 pixels: 1.2.276.14508"):
        load_public("siim_acr_pneumothorax", folder)
    assert len(load_public("siim_acr_pneumothorax", folder, skip_faulty=True)) == 2


def test_rows_that_contradict_one_another(folder):
    (folder / "train-rle.csv").write_text(TABLE + "1.2.276.77, -1\n")
    with pytest.raises(InputError, match="1 images of train-rle.csv have a mask and also -1: 1.2.276.77"):
        load_public("siim_acr_pneumothorax", folder)


def test_a_renamed_column(folder):
    (folder / "train-rle.csv").write_text(TABLE.replace("EncodedPixels", "rle"))
    with pytest.raises(InputError, match=r"the columns \['EncodedPixels'\] are missing, it has \['ImageId', 'rle'\]"):
        load_public("siim_acr_pneumothorax", folder)


def test_a_longer_run_than_the_image_is_told_from_one_that_fits(folder):
    """The whole image, to the last pixel."""
    (folder / "train-rle.csv").write_text(TABLE.replace(PUBLISHED, "0 1048576"))
    found = siim_acr_pneumothorax(folder)
    assert not found.problems
    assert load_public("siim_acr_pneumothorax", folder).region("1.2.276.14508", "lesion", SIZE).all()
