import math

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch.nn import functional as F

import heatproof as hp
from heatproof.explainers import EXPLAINERS


@pytest.fixture
def images():
    return torch.randn(4, 1, 64, 48)


class Anything(torch.nn.Module):
    def forward(self, images):
        return images.flatten(1)[:, :3]


def explain(images, **options):
    return hp.explain(Anything().eval(), images, [0] * len(images), **options)


def test_the_centre_blob_in_closed_form(images):
    found = explain(images, method="control_center")
    for y, x in [(0, 0), (31, 23), (32, 24), (40, 5), (63, 47)]:
        expected = math.exp(-0.5 * (((y - 31.5) / 16) ** 2 + ((x - 23.5) / 12) ** 2))
        assert found[:, y, x].tolist() == pytest.approx([expected] * 4, rel=1e-5)
    assert torch.equal(found, found.flip(1).flip(2))


def test_random_noise_on_a_coarse_grid_upsampled(images):
    native = explain(images, method="control_random", resolution="native")
    assert native.shape == (4, 4, 3)
    full = explain(images, method="control_random")
    expected = F.interpolate(native[:, None], (64, 48), mode="bilinear", align_corners=False)[:, 0]
    assert torch.equal(full, expected)
    large = explain(torch.randn(1, 1, 224, 224), method="control_random", resolution="native")
    assert large.shape == (1, 14, 14)
    small = explain(torch.randn(1, 1, 8, 8), method="control_random", resolution="native")
    assert small.shape == (1, 2, 2)


def test_random_noise_is_uniform_and_belongs_to_the_sample():
    images = torch.randn(50, 1, 224, 224)
    keys = [str(i) for i in range(50)]
    native = explain(images, method="control_random", resolution="native", keys=keys)
    assert abs(native.mean() - 0.5) < 5 / (12 * native.numel()) ** 0.5
    assert abs(native.var() - 1 / 12) < 0.005
    assert native.min() >= 0
    assert native.max() < 1
    assert torch.equal(explain(images[7:8], method="control_random", resolution="native", keys=["7"])[0], native[7])
    assert not torch.equal(native[0], native[1])
    assert not torch.equal(explain(images, method="control_random", resolution="native", keys=keys, seed=1), native)


def test_edges_in_closed_form():
    """The size of a plane's slope within it, and of a step beside it."""
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(10.0), indexing="ij")
    plane = 0.3 * x - 0.4 * y
    found = explain(torch.stack([plane, plane + 2])[None], method="control_edges")
    torch.testing.assert_close(found[0, 1:-1, 1:-1], torch.full((6, 8), 0.5))
    step = (x >= 5).float()
    found = explain(step[None, None], method="control_edges")[0]
    expected = torch.zeros(8, 10)
    expected[:, 4:6] = 0.5
    torch.testing.assert_close(found, expected)


def test_edges_are_those_of_sobels_filter(images):
    several = images.repeat(1, 3, 1, 1) * torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
    found = explain(several, method="control_edges")
    for image, edges in zip(images[:, 0].double().numpy() * 2, found, strict=True):
        across, down = (ndimage.sobel(image, axis=axis, mode="nearest") / 8 for axis in (1, 0))
        torch.testing.assert_close(edges.double().numpy(), np.hypot(across, down), atol=1e-5, rtol=1e-5)


def test_the_input_is_each_pixels_distance_from_its_channels_mean():
    image = torch.tensor([[[0.0, 2.0], [4.0, 6.0]], [[1.0, 1.0], [1.0, 5.0]]])
    found = explain(image[None], method="control_input")[0]
    assert found.tolist() == [[(3 + 1) / 2, (1 + 1) / 2], [(1 + 1) / 2, (3 + 3) / 2]]


@pytest.mark.parametrize("name", ["control_random", "control_center", "control_edges", "control_input"])
def test_controls_know_no_target_and_are_positive(images, name):
    found = hp.explain(Anything().eval(), images, torch.tensor([[0, 2]] * 4), method=name)
    assert found.shape == (4, 2, 64, 48)
    assert torch.equal(found[:, 0], found[:, 1])
    assert (found >= 0).all()
    assert not EXPLAINERS[name].signed
    assert EXPLAINERS[name].family == "control"
