import math

import pytest
import torch
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


@pytest.mark.parametrize("name", ["control_random", "control_center"])
def test_controls_know_no_target_and_are_positive(images, name):
    found = hp.explain(Anything().eval(), images, torch.tensor([[0, 2]] * 4), method=name)
    assert found.shape == (4, 2, 64, 48)
    assert torch.equal(found[:, 0], found[:, 1])
    assert (found >= 0).all()
    assert not EXPLAINERS[name].signed
    assert EXPLAINERS[name].family == "control"
