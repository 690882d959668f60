import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from heatproof.errors import InputError
from heatproof.models import Classifier
from heatproof.probing import SampleRandom, make_baseline
from heatproof.probing.baselines import BASELINES


def make(baseline, images, black=None, seed=0):
    random = SampleRandom(seed, [str(row) for row in range(len(images))])
    return make_baseline(baseline, images, black=black or (lambda: torch.zeros(images.shape[1], 1, 1)), random=random)


@pytest.fixture
def images():
    return torch.randn(3, 2, 12, 10)


def test_black_is_intensity_zero_through_the_normalisation(images):
    clf = Classifier(torch.nn.Flatten(), channels=3, mean=[0.5, 0.4, 0.2], std=[0.25, 0.2, 0.1])
    found = make("black", torch.rand(2, 3, 4, 4), black=lambda: clf.intensity_range[0])
    assert torch.allclose(found, torch.tensor([-2.0, -2.0, -2.0]).view(3, 1, 1).expand(2, 3, 4, 4))


def test_black_under_an_unknown_normalisation_says_what_to_do(images):
    clf = Classifier(torch.nn.Flatten())
    with pytest.raises(InputError, match=r"normalisation of this model is unknown.*mean=.*baseline=0.0"):
        make("black", images, black=lambda: clf.intensity_range[0])


def test_statistics_of_the_image(images):
    mean, low = make("mean", images), make("min", images)
    for b in range(3):
        assert low[b].unique().item() == images[b].min()
        for c in range(2):
            assert torch.allclose(mean[b, c], images[b, c].mean().expand(12, 10))


def test_noise_fills_the_range_of_each_channel_and_belongs_to_the_sample(images):
    big = torch.rand(2, 2, 60, 60) * torch.tensor([1.0, 10.0]).view(2, 1, 1)
    noise = make("noise", big)
    for c, scale in enumerate([1.0, 10.0]):
        low, high = big[0, c].min(), big[0, c].max()
        assert noise[0, c].min() >= low
        assert noise[0, c].max() <= high
        assert abs(noise[0, c].mean() / scale - 0.5) < 5 / (12 * 3600) ** 0.5
    assert torch.equal(make("noise", big[:1])[0], noise[0])
    assert not torch.equal(make("noise", big, seed=1), noise)


def test_blur_agrees_with_scipy():
    images = torch.randn(2, 3, 40, 60, dtype=torch.float64)
    expected = [
        [gaussian_filter(plane, 2.0, mode="nearest", truncate=3.0) for plane in image] for image in images.numpy()
    ]
    assert torch.allclose(make("blur", images), torch.from_numpy(np.array(expected)), atol=1e-12)


@pytest.mark.parametrize("size", [1, 2, 7])
def test_blur_of_a_small_constant_image_is_itself(size):
    images = torch.full((1, 1, size, size), 3.0)
    assert torch.allclose(make("blur", images), images)


def test_numbers_and_tensors(images):
    assert torch.equal(make(-1.5, images), torch.full_like(images, -1.5))
    assert torch.equal(make(2, images), torch.full_like(images, 2.0))
    channel = torch.tensor([1.0, 2.0]).view(2, 1, 1)
    assert torch.equal(make(channel, images), channel.expand_as(images))
    assert torch.equal(make(images.double(), images), images)


def test_what_cannot_be_a_baseline_is_refused(images):
    with pytest.raises(InputError, match=r"Unknown baseline 'blakc'.*Did you mean 'black'"):
        make("blakc", images)
    with pytest.raises(InputError, match=r"must broadcast to the images \[3, 2, 12, 10\], got \[4, 1, 1\]"):
        make(torch.zeros(4, 1, 1), images)
    with pytest.raises(InputError, match="baseline must be a number"):
        make(None, images)


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_leaves_the_image_alone_and_fits_it(name, images):
    before = images.clone()
    assert make(name, images).shape == images.shape
    assert torch.equal(images, before)
