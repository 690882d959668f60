"""Pictures of bowel, bone and breast: the same from the same numbers, with the lesion where its outline says."""

import numpy as np
import pytest
from PIL import Image

from heatproof.datasets.standins.pictures import draw_bone, draw_bowel, draw_breasts, random_name, save_picture
from heatproof.datasets.standins.rois import drawn_on_crop, drawn_on_resized, edges


@pytest.mark.parametrize("seed", range(5))
def test_a_lesion_is_within_the_picture_and_a_sound_one_has_none(seed):
    for draw, option in ((draw_bowel, "polyp"), (draw_bone, "abnormal")):
        ill = draw((48, 64), np.random.default_rng(seed), **{option: True})
        assert ill.pixels.shape[:2] == ill.lesion.shape == (48, 64)
        assert 0 < ill.lesion.mean() < 0.5
        sound = draw((48, 64), np.random.default_rng(seed), **{option: False})
        assert not sound.lesion.any()
        again = draw((48, 64), np.random.default_rng(seed), **{option: True})
        np.testing.assert_array_equal(ill.pixels, again.pixels)


@pytest.mark.parametrize("size", [32, 64, 96])
def test_the_lesion_of_a_breast_is_brighter_than_about_it(size):
    volume = draw_breasts(24, size, np.random.default_rng(size))
    inside = tuple(slice(*span) for span in volume.lesion)
    wider = tuple(slice(low - 1, high + 1) for low, high in volume.lesion)
    assert volume.slices.shape == (24, size, size)
    about = (volume.slices[wider].sum(dtype=float) - volume.slices[inside].sum(dtype=float)) / (
        volume.slices[wider].size - volume.slices[inside].size
    )
    assert volume.slices[inside].mean() > about + 0.2 * 4095


def test_roi_masks_are_rectangles_on_the_input():
    lesion = np.zeros((8, 8), dtype=bool)
    lesion[2, 3] = lesion[4, 5] = True
    assert edges(lesion) == (3, 2, 6, 5)
    assert edges(drawn_on_resized(lesion)) == (84, 56, 168, 140)
    assert drawn_on_resized(lesion).sum() == 84 * 84
    # 8 pixels become 256, of which 16 on each side are cut off
    assert edges(drawn_on_crop(lesion)) == (80, 48, 176, 144)
    lesion[:] = False
    lesion[0, 0] = True
    assert edges(drawn_on_crop(lesion)) == (0, 0, 16, 16)


def test_pictures_are_stored_as_they_are(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    save_picture(tmp_path / "deep" / "colour.png", pixels)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep" / "colour.png")), pixels)
    save_picture(tmp_path / "mask.png", pixels[..., 0] > 20)
    assert set(np.unique(np.asarray(Image.open(tmp_path / "mask.png")))) == {0, 255}


def test_names_are_always_the_same():
    assert random_name("a", 1, 2) == random_name("a", 1, 2) != random_name("a", 1, 3)
    assert [len(part) for part in random_name("a", 1, 2).split("-")] == [8, 4, 4, 4, 12]
