"""What Quantus makes of images with several channels, where Heatproof changes whole pixels."""

import numpy as np
import pytest
import quantus
import torch
from torch import nn

import heatproof as hp

SIZE, COUNT, CHANNELS = 8, 3, 3
PLAIN = {"abs": False, "normalise": False, "disable_warnings": True, "display_progressbar": False}


class Watched(nn.Module):
    """A linear model that keeps the images it has seen."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(CHANNELS * SIZE**2, 2)
        self.seen = []

    def forward(self, images):
        self.seen.extend(images.detach().clone())
        return self.layer(images.flatten(1))


@pytest.fixture
def case():
    return torch.rand(COUNT, CHANNELS, SIZE, SIZE) + 0.1, torch.rand(COUNT, SIZE, SIZE), torch.tensor([0, 1, 0])


def theirs(metric, net, images, maps, targets):
    arrays = {"x_batch": images.numpy().copy(), "y_batch": targets.numpy(), "a_batch": maps[:, None].numpy().copy()}
    return metric(model=net, **arrays, channel_first=True, device="cpu", softmax=True)


def torn(net, images):
    """Whether the model has seen a pixel of which some channels were replaced and others not."""
    changed = [(seen != image).sum(0) for seen in net.seen for image in images if (seen == image).float().mean() > 0.1]
    return any(((counts > 0) & (counts < CHANNELS)).any() for counts in changed)


def test_pixel_flipping_replaces_single_channel_values(case):
    images, maps, targets = case
    peer, ours = Watched().eval(), Watched().eval()
    theirs(quantus.PixelFlipping(features_in_step=16, perturb_baseline=-1.0, **PLAIN), peer, images, maps, targets)
    hp.score(ours, images, maps, metric="pixel_flipping", targets=targets, step=16, baseline=-1.0)
    assert torn(peer, images)
    assert not torn(ours, images)


@pytest.mark.parametrize(("peer", "name"), [(quantus.IROF, "irof"), (quantus.ROAD, "road")])
@pytest.mark.filterwarnings("ignore")
def test_irof_and_road_fail(case, peer, name, monkeypatch):
    images, maps, targets = case
    monkeypatch.setattr(np, "trapz", np.trapezoid, raising=False)  # a name that numpy has given up
    with pytest.raises((AssertionError, IndexError)):
        theirs(peer(**PLAIN), Watched().eval(), images, maps, targets)
    options = {"segmentation": "grid", "segments": 16} if name == "irof" else {}
    assert hp.score(Watched().eval(), images, maps, metric=name, targets=targets, **options).isfinite().all()
