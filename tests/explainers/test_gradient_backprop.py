"""Guided backpropagation, deconvnet and their kin against replicas with autograd functions of their own, in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from heatproof.errors import UnsupportedModelError
from support.nets import TinyViT

Activation = Callable[[Tensor], Tensor]


class GuidedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.where((x > 0) & (g > 0), g, 0.0)


class DeconvolvedReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return torch.where(g > 0, g, 0.0)


class Net(nn.Module):
    """A residual network whose activation is a function; a gate by sigmoid keeps its ordinary gradient."""

    def __init__(self, activation: Activation) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.dense, self.head = nn.BatchNorm2d(6), nn.Linear(96, 10), nn.Linear(10, 3)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.activation(self.norm(self.conv1(x))), 2)
        y = self.conv2(x)
        x = self.activation(y * y.mean((2, 3), keepdim=True).sigmoid() + x)
        return self.head(self.activation(self.dense(x.flatten(1))))


SPELLINGS: dict[str, Activation] = {
    "module": nn.ReLU(),
    "module in place": nn.ReLU(inplace=True),
    "functional in place": lambda x: F.relu(x, inplace=True),
    "torch": torch.relu,
    "method in place": lambda x: x.relu_(),
}
REPLICAS: dict[str, Activation] = {"guided_backprop": GuidedReLU.apply, "deconvnet": DeconvolvedReLU.apply}


def replica(method: str, net: Net, images: Tensor, targets: list[int]) -> Tensor:
    """The gradient `[B, C, H, W]` of the net with the activation that has the method's own way back."""
    other = Net(REPLICAS[method]).double().eval()
    other.load_state_dict(net.state_dict())
    leaf = images.clone().requires_grad_()
    logits = other(leaf)
    return torch.autograd.grad(sum(logits[i, target] for i, target in enumerate(targets)), leaf)[0]


@pytest.mark.parametrize("method", REPLICAS)
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_way_back_is_that_of_an_autograd_function_however_relu_is_written(method: str, spelling: str) -> None:
    net, images, targets = Net(SPELLINGS[spelling]).double().eval(), torch.randn(3, 2, 8, 8).double(), [2, 0, 1]
    found = hp.explain(net, images, targets, method=method)
    expected = replica(method, net, images, targets).sum(1)
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    assert not torch.allclose(found, hp.explain(net, images, targets, method="gradient"), rtol=0.1)


def test_both_in_numbers() -> None:
    """`2 relu(a) − relu(b) + relu(−c)`: on for (a, b), off for c."""

    class Three(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, b, c = x.flatten(1).unbind(1)
            return torch.stack([2 * a.relu() - b.relu() + (-c).relu(), a], 1)

    images = torch.tensor([1.0, 1.0, 1.0]).view(1, 1, 1, 3)
    expected = {"gradient": [2.0, -1.0, 0.0], "guided_backprop": [2.0, 0.0, 0.0], "deconvnet": [2.0, 0.0, -1.0]}
    for method, values in expected.items():
        assert hp.explain(Three().eval(), images, [0], method=method).flatten().tolist() == values


def test_deconvnet_knows_nothing_of_the_image_but_the_winners_of_max_pooling() -> None:
    plain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    maps = hp.explain(plain, torch.randn(2, 1, 8, 8), [1, 1], method="deconvnet")
    torch.testing.assert_close(maps[0], maps[1])
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)).eval()
    maps = hp.explain(pooled, torch.randn(2, 1, 8, 8), [1, 1], method="deconvnet")
    assert not torch.allclose(maps[0], maps[1], rtol=0.1)


@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet", "guided_gradcam"])
def test_a_model_without_relu_is_refused(method: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"rule for ReLU, and this model runs none.*input_x_gradient"):
        hp.explain(TinyViT(depth=1).eval(), torch.rand(1, 3, 32, 32), method=method)


@pytest.mark.parametrize("layer", [None, "conv2"])
def test_guided_gradcam_is_guided_backprop_where_gradcam_is(layer: str | None) -> None:
    net, images, targets = Net(F.relu).double().eval(), torch.randn(3, 2, 8, 8).double(), [[2, 1], [0, 1], [1, 1]]
    found = hp.explain(net, images, targets, method="guided_gradcam", layer=layer)
    cam = hp.explain(net, images, targets, method="gradcam", layer=layer)
    guided = [replica("guided_backprop", net, images, list(column)).sum(1) for column in zip(*targets, strict=True)]
    expected = cam * torch.stack(guided, 1).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max()))
    assert (expected != 0).any((-2, -1)).any()
