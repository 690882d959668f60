"""FullGrad as pytorch-grad-cam has it: of convolutions and batch norms that are modules, each channel scaled by itself."""

import numpy as np
import pytorch_grad_cam as peers
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

import heatproof as hp


class OneChannel(nn.Module):
    """One channel a layer, on which both scale alike, and grids of the images' size, which nothing resizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(1, 1, 3, padding=1), nn.BatchNorm2d(1)
        self.conv2, self.head = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(64, 3)
        nn.init.normal_(self.bn.running_mean)
        nn.init.normal_(self.bn.bias)
        nn.init.uniform_(self.bn.running_var, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn(self.conv1(x)) + 0.5 * x)
        return self.head(torch.relu(self.conv2(x)).flatten(1))


def test_fullgrad() -> None:
    net, images = OneChannel().eval(), torch.randn(4, 1, 8, 8)
    with torch.no_grad():  # gradients beside which the peer's 1e-7 is nothing
        net.head.weight *= 1e3
        for conv in (net.conv1, net.conv2):
            conv.bias.fill_(0.7)
    for target in range(3):
        with peers.FullGrad(model=net, target_layers=[]) as cam:
            peer = torch.from_numpy(np.asarray(cam(images, [ClassifierOutputTarget(target)] * 4)))
        found = hp.explain(net, images, [target] * 4, method="fullgrad")
        low, high = found.amin((1, 2), keepdim=True), found.amax((1, 2), keepdim=True)
        assert (high > low).all()
        torch.testing.assert_close((found - low) / (high - low), peer, atol=2e-4, rtol=0)
