"""LRP-ε as zennit has it, on a network that zennit can serve."""

import pytest
import torch
from torch import nn
from zennit.composites import LayerMapComposite
from zennit.rules import Epsilon, Pass
from zennit.types import Activation, Convolution, Linear

import heatproof as hp


@pytest.mark.parametrize("epsilon", [1e-6, 0.1, 1.0])
def test_lrp_epsilon(epsilon: float) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 5)
    ).eval()  # fmt: skip
    images = torch.randn(2, 3, 16, 16)
    rules = [(Activation, Pass()), (Convolution, Epsilon(epsilon)), (Linear, Epsilon(epsilon))]
    leaf = images.clone().requires_grad_()
    with LayerMapComposite(rules).context(model) as changed:
        logits = changed(leaf)
        (peer,) = torch.autograd.grad(logits, leaf, logits.detach() * torch.eye(5)[[1, 4]])
    maps = hp.explain(model, images, [1, 4], method="lrp_epsilon", epsilon=epsilon)
    torch.testing.assert_close(maps, peer.sum(1), atol=1e-4 * float(peer.abs().max()), rtol=1e-4)
