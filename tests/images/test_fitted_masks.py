"""Masks that were drawn on the model's input, carried back to the stored image."""

import numpy as np
import pytest
from PIL import Image

from heatproof.errors import ImageError, InputError
from heatproof.images.geometry import fit_geometry
from heatproof.images.regions import check_region, read_region


@pytest.fixture
def drawn(tmp_path):
    """A mask of 4 x 4 pixels with its upper left quarter set."""
    pixels = np.zeros((4, 4), dtype=np.uint8)
    pixels[:2, :2] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    return str(tmp_path / "mask.png")


def test_a_mask_on_a_resized_image(drawn):
    region = read_region("mask", f"{drawn}#fit=resize", (8, 12))
    assert region.shape == (8, 12)
    assert np.flatnonzero(region.any(axis=0)).tolist() == [0, 1, 2, 3, 4, 5]
    assert np.flatnonzero(region.any(axis=1)).tolist() == [0, 1, 2, 3]
    assert region.sum() == 24


def test_a_mask_on_the_centre_of_an_image(drawn):
    # 8 x 16 pixels come to a short side of 8, of which the middle 4 x 4 are seen: rows 2 to 5, columns 6 to 9
    region = read_region("mask", f"{drawn}#fit=crop&short_side=8", (8, 16))
    assert np.argwhere(region).tolist() == [[2, 6], [2, 7], [3, 6], [3, 7]]


@pytest.mark.parametrize("fit", ["resize", "crop", "letterbox"])
def test_there_and_back_is_where_it_was(fit):
    geometry = fit_geometry(fit, (60, 90), (20, 30))  # every pixel of the input is nine of the source
    mask = np.zeros((20, 30), dtype=bool)
    mask[3:9, 10:25] = True
    np.testing.assert_array_equal(geometry.mask(geometry.inverse_mask(mask)), mask)


def test_what_the_crop_cut_off_is_outside():
    geometry = fit_geometry("crop", (4, 8), (4, 4))
    np.testing.assert_array_equal(geometry.inverse_mask(np.ones((4, 4), dtype=bool)), geometry.seen)
    with pytest.raises(InputError, match=r"The mask has shape \(4, 8\)"):
        geometry.inverse_mask(np.ones((4, 8), dtype=bool))


def test_faults(drawn):
    check_region("mask", f"{drawn}#fit=resize")
    with pytest.raises(ImageError, match="the mask has 4 x 4 pixels"):
        read_region("mask", drawn, (8, 12))
    with pytest.raises(ImageError, match="cannot be carried back to its image. short_side=2 does not fill the input"):
        read_region("mask", f"{drawn}#fit=crop&short_side=2", (8, 16))
    with pytest.raises(ImageError, match="cannot be carried back.*short_side belongs to fit='crop'"):
        read_region("mask", f"{drawn}#fit=resize&short_side=8", (8, 16))
    with pytest.raises(ImageError, match="#fit=stretch"):
        read_region("mask", f"{drawn}#fit=stretch", (8, 12))
