"""The z-box rule against its formula, number by number, and what counts as a first layer."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.errors import UnsupportedModelError
from heatproof.relevance import presets, run

Function = Callable[[Tensor], Tensor]
LOW, HIGH = (torch.tensor(ends).double().view(2, 1, 1) for ends in ((-1.5, -0.5), (1.0, 2.0)))


def relevance_of(function: Function, x: Tensor, index: int = 1) -> Tensor:
    class Whole(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return function(images)

    passed = run(Whole().eval(), x, presets.deep_taylor(LOW.to(x), HIGH.to(x)))
    return passed.relevance(passed.logits[:, index])


def within_box(*shape: int) -> Tensor:
    return LOW + (HIGH - LOW) * torch.rand(shape, dtype=torch.float64)


def z_box(x: Tensor, layer: Function, index: int) -> Tensor:
    """`(x_i w_i − l_i w_i⁺ − h_i w_i⁻)` over their sum, for one neuron of an affine `layer` without padding of its own."""
    zero = torch.zeros_like(x[:1])
    bias = layer(zero.clone()).flatten()[index]
    weight = torch.zeros_like(x[0])
    for i in range(weight.numel()):
        unit = zero.clone()
        unit.view(-1)[i] = 1
        weight.view(-1)[i] = (layer(unit).flatten()[index] - bias).detach()
    parts = x * weight - LOW * weight.clamp(min=0) - HIGH * weight.clamp(max=0)
    return parts / parts.flatten(1).sum(1).view(-1, 1, 1, 1)


def shuffled_patches(v: Tensor) -> Tensor:
    return v.reshape(-1, 2, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).flatten(1).flip(1)


@pytest.fixture
def dense() -> nn.Module:
    return nn.Linear(32, 3).double()


MOVED: dict[str, Function] = {
    "flat": lambda v: v.flatten(1),
    "patches": shuffled_patches,
    "sliced and joined again": lambda v: torch.cat([v[:, 1:], v[:, :1]], 1).view(-1, 32),
    "padded and cut": lambda v: F.pad(v, (1, 2, 3, 0), value=0.3)[:, :, 3:, 1:5].reshape(-1, 32),
    "unfolded": lambda v: F.unfold(v, 2, stride=2).flatten(1),
}


@pytest.mark.parametrize("moved", MOVED)
def test_dense_layers_on_the_moved_image(moved: str, dense: nn.Module) -> None:
    x = within_box(3, 2, 4, 4)
    layer = lambda v: dense(MOVED[moved](v))  # noqa: E731
    torch.testing.assert_close(relevance_of(layer, x), z_box(x, layer, 1).detach())


RESCALED: dict[str, Function] = {
    "normalised": lambda v: (v - torch.tensor([0.3, -0.2]).double().view(2, 1, 1)) / 0.7,
    "turned round": lambda v: 0.2 - v * torch.tensor([2.0, -0.5]).double().view(2, 1, 1),
    "in place": lambda v: v.sub_(0.4).div_(-3),
    "batch norm": lambda v: F.batch_norm(v, torch.tensor([0.1, 0.2]).double(), torch.tensor([0.5, 2.0]).double()),
}


@pytest.mark.parametrize("rescaled", RESCALED)
def test_a_channel_wise_affine_operation_before_changes_nothing(rescaled: str, dense: nn.Module) -> None:
    """The box goes with the image: contributions relative to it stay the same."""
    x = within_box(3, 2, 4, 4)
    layer = lambda v: dense(RESCALED[rescaled](v).flatten(1))  # noqa: E731
    torch.testing.assert_close(relevance_of(layer, x), z_box(x, layer, 1).detach())


def test_a_grey_image_repeated_adds_up_over_its_copies() -> None:
    conv, x = nn.Conv2d(4, 3, 4).double(), within_box(2, 2, 4, 4)
    layer = lambda v: conv(torch.cat([v, v], 1)).flatten(1)  # noqa: E731
    both = torch.cat([x, x], 1)
    low, high = LOW.repeat(2, 1, 1), HIGH.repeat(2, 1, 1)
    weight = conv.weight[1].detach()
    parts = both * weight - low * weight.clamp(min=0) - high * weight.clamp(max=0)
    shares = parts / parts.flatten(1).sum(1).view(-1, 1, 1, 1)
    torch.testing.assert_close(relevance_of(layer, x), shares[:, :2] + shares[:, 2:])


@pytest.mark.parametrize("norm", [False, True])
def test_a_convolution_with_padding_strides_and_groups(norm: bool) -> None:
    """What the convolution itself pads has no part; a batch norm after it belongs to it."""
    conv, x = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2).double(), within_box(2, 2, 5, 5)
    after = nn.BatchNorm2d(4).double().eval()
    nn.init.uniform_(after.weight, -2, 2)
    nn.init.uniform_(after.bias, -1, 1)
    layer = lambda v: (after(conv(v)) if norm else conv(v)).flatten(1)  # noqa: E731
    index = 13
    torch.testing.assert_close(relevance_of(layer, x, index), z_box(x, layer, index).detach())


def test_relevance_is_complete_and_not_negative_within_the_box() -> None:
    conv, head = nn.Conv2d(2, 6, 3, padding=1, bias=False).double(), nn.Linear(6, 3, bias=False).double()
    x = within_box(4, 2, 6, 6)
    found = relevance_of(lambda v: head(conv(v).relu().mean((2, 3))), x)
    assert (found >= 0).all()
    torch.testing.assert_close(found.flatten(1).sum(1), torch.ones(4).double())


def written_into(v: Tensor) -> Tensor:
    v[:, 0] = v[:, 0].relu()
    return v


def test_what_is_more_than_a_view_is_no_first_layer() -> None:
    """The second convolution, and one after a pool: z⁺ there, and no z-box where there is no first layer at all."""
    conv, x = nn.Conv2d(2, 3, 3).double(), within_box(2, 2, 6, 6)
    for function in (F.relu, written_into, lambda v: F.max_pool2d(v, 2), lambda v: v * v, lambda v: v + v.mean()):
        with pytest.raises(UnsupportedModelError, match=r"deep_taylor.*first layers, and none was found.*lrp_zplus"):
            relevance_of(lambda v, f=function: conv(f(v)).mean((2, 3)), x)


def test_a_shortcut_around_the_first_layer_follows_the_other_rules() -> None:
    """Relevance that does not pass a first layer reaches the image by z⁺; both parts add up."""
    conv, x = nn.Conv2d(2, 2, 1, bias=False).double(), within_box(2, 2, 3, 3)
    found = relevance_of(lambda v: (conv(v).relu() + v.relu()).flatten(1), x, index=4)
    branch = conv(x).relu().detach()[:, 0, 1, 1]
    straight = x.relu()[:, 0, 1, 1]
    share = branch / (branch + straight)
    expected = z_box(x, lambda v: conv(v).flatten(1), 4).detach() * share.view(-1, 1, 1, 1)
    expected[:, 0, 1, 1] += straight / (branch + straight)
    torch.testing.assert_close(found[branch + straight > 0], expected[branch + straight > 0])
    assert (branch + straight > 0).any()
