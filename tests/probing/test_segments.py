import pytest
import torch

from heatproof.errors import InputError
from heatproof.probing.segments import grid, make_segments, patches, slic


def test_grid_cells_are_as_equal_as_pixels_allow():
    found = grid(torch.zeros(2, 1, 5, 7), 2, 3)
    assert found[0].tolist() == [[0, 0, 0, 1, 1, 2, 2]] * 3 + [[3, 3, 3, 4, 4, 5, 5]] * 2
    assert torch.equal(found[0], found[1])


def test_patches_are_those_of_a_vision_transformer():
    found = patches(torch.zeros(1, 3, 8, 12), 4)[0]
    expected = torch.arange(6).view(2, 3).repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(found, expected)
    with pytest.raises(InputError, match="Patches of 5 pixels do not tile an image of 8 × 12"):
        patches(torch.zeros(1, 3, 8, 12), 5)


@pytest.mark.parametrize("channels", [1, 3])
def test_slic_finds_the_edges_of_a_step_image(channels):
    images = torch.zeros(2, channels, 32, 32)
    images[0, :, :, 13:] = 5.0
    images[1, :, 21:] = -2.0
    found = slic(images, 8)
    for labels, image in zip(found, images, strict=True):
        assert sorted(labels.unique().tolist()) == list(range(int(labels.max()) + 1))
        for label in labels.unique():
            assert image[0][labels == label].unique().numel() == 1, "a segment crosses the step"


def test_slic_does_not_depend_on_the_normalisation_or_the_batch():
    images = torch.rand(3, 3, 32, 32)
    found = slic(images, 12)
    shift, scale = torch.randn(3, 1, 1), torch.rand(3, 1, 1) + 0.5
    assert torch.equal(slic(images.double() * scale + shift, 12), slic(images.double(), 12))
    assert torch.equal(slic(images[1:2], 12)[0], found[1])


def test_slic_of_a_grey_image_is_that_of_its_copy_in_three_channels():
    images = torch.rand(2, 1, 24, 24)
    assert torch.equal(slic(images, 9), slic(images.expand(-1, 3, -1, -1), 9))


def test_slic_of_a_constant_image_is_finite_work():
    assert slic(torch.ones(1, 1, 16, 16), 4).max() < 16


def test_make_segments_dispatches():
    images = torch.rand(1, 1, 16, 16)
    assert torch.equal(make_segments("grid", images, 17), grid(images, 4, 4))
    assert torch.equal(make_segments("slic", images, 6), slic(images, 6))
    with pytest.raises(InputError, match="segmentation must be 'slic' or 'grid', got 'quickshift'"):
        make_segments("quickshift", images, 6)
    with pytest.raises(InputError, match="segments must be a whole number, from 1 to 256"):
        make_segments("slic", images, 0)
