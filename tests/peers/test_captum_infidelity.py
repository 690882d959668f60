"""Agreement with captum's infidelity under the same perturbations."""

import pytest
import torch
from captum.metrics import infidelity as captum_infidelity

import heatproof as hp
from heatproof.probing import SampleRandom
from support.cases import Wavy
from support.nets import TinyCNN

SIZE, COUNT, SAMPLES = 12, 4, 9
KEYS = [str(i) for i in range(COUNT)]


def noises():
    random = SampleRandom(0, KEYS)
    return torch.stack([0.2 * random.normal(1, SIZE, SIZE, purpose=f"infidelity noise {k}") for k in range(SAMPLES)], 1)


def squares(images, side):
    """What replacing a square by 0 takes from each image, `[B, SAMPLES, 1, H, W]`."""
    random, changes = SampleRandom(0, KEYS), torch.zeros(COUNT, SAMPLES, 1, SIZE, SIZE)
    for k in range(SAMPLES):
        for row, place in enumerate((random.uniform(2, purpose=f"square {k}") * (SIZE - side + 1)).long().tolist()):
            part = (slice(None), slice(place[0], place[0] + side), slice(place[1], place[1] + side))
            changes[row, k][part] = images[row][part]
    return changes


@pytest.mark.parametrize("kind", ["noise", "squares"])
@pytest.mark.parametrize("scale", [False, True])
@pytest.mark.parametrize("build", [lambda: Wavy(size=SIZE), lambda: TinyCNN(channels=1)], ids=["smooth", "cnn"])
def test_infidelity(build, scale, kind):
    net, images, maps = build().eval(), torch.randn(COUNT, 1, SIZE, SIZE), 0.1 * torch.randn(COUNT, SIZE, SIZE)
    targets = torch.tensor([0, 1, 2, 0])
    changes = noises() if kind == "noise" else squares(images, 4)

    def same(inputs):  # captum hands over each image SAMPLES times in a row
        return changes.flatten(0, 1), inputs - changes.flatten(0, 1)

    expected = captum_infidelity(net, same, images, maps[:, None], target=targets, n_perturb_samples=SAMPLES,
                                 normalize=scale)  # fmt: skip
    options = {"noise": 0.2} if kind == "noise" else {"window": 4, "baseline": 0.0}
    found = hp.score(net, images, maps, metric="infidelity", targets=targets, keys=KEYS, samples=SAMPLES, scale=scale,
                     output="logit", **options)  # fmt: skip
    assert (found - expected).abs().max() < 1e-5 * max(1, expected.abs().max().item())
