"""Agreement with the `lime` package: the same segments and the same versions give the same weights."""

import numpy as np
import pytest
import torch
from lime.lime_image import LimeImageExplainer

import heatproof as hp
from heatproof.models import Classifier
from heatproof.probing import SampleRandom
from heatproof.probing.segments import make_segments
from support.cases import Wavy
from support.nets import TinyCNN

SIZE, SAMPLES = 24, 200


class SameVersions:
    """Stands in for lime's random state and hands it the table of on and off segments that Heatproof draws."""

    def __init__(self, key):
        self.generator = SampleRandom(0, [key]).generator(0, "lime")

    def randint(self, low, high, size=None):
        assert (low, high) == (0, 2)
        return torch.randint(2, (size // SAMPLES, SAMPLES), generator=self.generator).T.reshape(-1).numpy()


@pytest.mark.parametrize("build", [lambda: Wavy(channels=3, size=SIZE), TinyCNN], ids=["smooth", "cnn"])
@pytest.mark.parametrize(("baseline", "hide_color"), [("segment_mean", None), (0.25, 0.25)])
@pytest.mark.parametrize("segmentation", ["slic", "grid"])
def test_the_same_weights(build, baseline, hide_color, segmentation):
    images = torch.nn.functional.interpolate(torch.randn(2, 3, 6, 6), (SIZE, SIZE)) + 0.1 * torch.randn(
        2, 3, SIZE, SIZE
    )
    targets, keys = torch.tensor([0, 2]), ["a", "b"]
    model = Classifier(build().eval())
    found = hp.explain(model, images, targets, method="lime", keys=keys, samples=SAMPLES, segments=12,
                       segmentation=segmentation, baseline=baseline)  # fmt: skip
    regions = make_segments(segmentation, images, 12).numpy()

    def classify(batch):
        with torch.no_grad():
            return model.probabilities(model(torch.from_numpy(batch).permute(0, 3, 1, 2).float())).double().numpy()

    for b in range(2):
        peer = LimeImageExplainer(random_state=0)
        peer.random_state = SameVersions(keys[b])
        peer.base.random_state = 0
        target = int(targets[b])
        explained = peer.explain_instance(
            images[b].permute(1, 2, 0).double().numpy(), classify, labels=(target,), top_labels=None, hide_color=hide_color,
            num_samples=SAMPLES, segmentation_fn=lambda image, labels=regions[b]: labels, random_seed=0)  # fmt: skip
        weights = np.zeros(regions[b].max() + 1)
        for segment, weight in explained.local_exp[target]:
            weights[segment] = weight
        expected = weights[regions[b]]
        assert np.abs(expected).max() > 1e-3
        assert np.abs(found[b].numpy() - expected).max() < 1e-5 * max(1, np.abs(expected).max())
