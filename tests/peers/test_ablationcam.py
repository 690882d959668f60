"""Ablation-CAM as pytorch-grad-cam has it, which divides by the score with its sign.

The peer scales each map to 0..1, adding 1e-7 to what it divides by; the comparison is of what is left. On features without
negative values, as elsewhere it does not set channels to 0.
"""

import numpy as np
import pytorch_grad_cam as peers
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

import heatproof as hp


class Net(nn.Module):
    """Features of the images' size, which nothing resizes, under two dense layers; each of them 0 somewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 64, 12), nn.Tanh(), nn.Linear(12, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def peer_maps(net: Net, images: Tensor, target: int) -> Tensor:
    with peers.AblationCAM(model=net, target_layers=[net.features], batch_size=4) as cam:
        return torch.from_numpy(np.asarray(cam(images, [ClassifierOutputTarget(target)] * len(images))))


def to_unit_range(maps: Tensor) -> Tensor:
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low + 1e-7)


def test_ablationcam() -> None:
    """Where the score is negative, the peer's map is that of the turned class."""
    net, images = Net().eval(), torch.randn(3, 3, 8, 8)
    head = net.head[-1]
    head.bias.data = torch.tensor([2.0, -2.0, 3.0, -3.0])
    assert torch.equal(net(images).sign(), torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(3, -1))
    seen = 0
    for target in range(4):
        peer = peer_maps(net, images, target)
        sign = 1 if target % 2 == 0 else -1
        head.weight.data[target] *= sign
        head.bias.data[target] *= sign
        found = hp.explain(net, images, [target] * 3, method="ablationcam", layer="features", resolution="native")
        seen += int((found > 0).flatten(1).any(1).sum())
        torch.testing.assert_close(to_unit_range(found), peer, atol=2e-4, rtol=0)
    assert seen > 4
