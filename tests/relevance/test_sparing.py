"""What a pass need not keep, and the maps that must not change for it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.errors import InputError
from heatproof.relevance import AlphaBeta, Epsilon, Gamma, Preset, Zero, composite, presets, run, z_plus
from heatproof.relevance.keeping import Keeper
from heatproof.relevance.layers import Layer
from heatproof.relevance.linear import LinearRule

RULES: list[LinearRule] = [Zero(), Epsilon(0.1), Epsilon(0.1, relative=True), AlphaBeta(), z_plus(), Gamma()]


@dataclass
class Spy:
    """A rule that says nothing of itself, so that nothing may be spared for it; it notes what it is given."""

    rule: LinearRule
    values: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)

    def __call__(self, layer: Layer, c: Tensor, z: Tensor) -> Any:
        self.values += layer.values
        self.outputs.append(z.clone())
        return self.rule(layer, c, z)


class Block(nn.Module):
    """Convolution, batch norm and ReLU with a residual; `end` says how they are put together."""

    def __init__(self, end: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.conv, self.norm = (
            nn.Conv2d(2, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
        )
        self.head, self.end = nn.Linear(4, 3), end
        self.norm.running_mean, self.norm.running_var = torch.randn(4), torch.rand(4) + 0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.end(self, self.first(x).relu()).mean((2, 3)))


def chain(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.conv(x)).relu()


def chain_in_place(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.conv(x)).relu_()


def residual(net: Any, x: Tensor) -> Tensor:
    return (net.norm(net.conv(x)) + x).relu()


def residual_in_place(net: Any, x: Tensor) -> Tensor:
    y = net.norm(net.conv(x))
    y += x
    return F.relu(y, inplace=True)


def difference_in_place(net: Any, x: Tensor) -> Tensor:
    y = net.norm(net.conv(x))
    y -= x
    return y.relu_()


def difference(net: Any, x: Tensor) -> Tensor:
    return (net.norm(net.conv(x)) - x).relu()


def read_before_the_relu(net: Any, x: Tensor) -> Tensor:
    y = net.norm(net.conv(x))
    z = y * 2
    return z + y.relu_()


def read_before_the_relu_tidily(net: Any, x: Tensor) -> Tensor:
    y = net.norm(net.conv(x))
    return y * 2 + y.relu()


def viewed_before_the_relu(net: Any, x: Tensor) -> Tensor:
    y = net.norm(net.conv(x))
    view = y.flatten(1)
    z = view * 2
    y.relu_()
    return y + z.view_as(y)


def read_after_the_norm(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    z = net.norm(y)
    z = z + y.tanh()
    y.zero_().add_(1.0)  # nobody reads it any more
    return z.relu_()


def read_after_the_norm_tidily(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    return (net.norm(y) + y.tanh()).relu()


def relu_after_the_norm(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    z = net.norm(y)
    return z + y.relu_()


def relu_after_the_norm_tidily(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.norm(y) + y.relu()


def written_after_the_relu(net: Any, x: Tensor) -> Tensor:
    y = net.norm(net.conv(x)).relu_()
    y *= -2
    return y


def written_after_the_relu_tidily(net: Any, x: Tensor) -> Tensor:
    return net.norm(net.conv(x)).relu() * -2


ENDS = {
    "ReLU": (chain_in_place, chain),
    "residual": (residual_in_place, residual),
    "difference": (difference_in_place, difference),
    "read before the ReLU": (read_before_the_relu, read_before_the_relu_tidily),
    "viewed before the ReLU": (viewed_before_the_relu, read_before_the_relu_tidily),
    "read after the norm": (read_after_the_norm, read_after_the_norm_tidily),
    "ReLU after the norm": (relu_after_the_norm, relu_after_the_norm_tidily),
    "written after the ReLU": (written_after_the_relu, written_after_the_relu_tidily),
}


def everywhere(rule: LinearRule) -> Preset:
    return composite(dense=rule, conv=rule, sums=rule, norm=rule)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("name", ENDS)
def test_what_is_spared_changes_no_map(name: str, rule: LinearRule) -> None:
    sloppy, tidy = (Block(end).double().eval() for end in ENDS[name])
    sloppy.load_state_dict(tidy.state_dict())
    x = torch.randn(2, 2, 5, 5, dtype=torch.float64)
    found, careful, expected = (
        run(net, x, preset)
        for net, preset in ((sloppy, everywhere(rule)), (sloppy, everywhere(Spy(rule))), (tidy, everywhere(Spy(rule))))
    )
    maps = [passed.relevance(passed.logits[:, 1]) for passed in (found, careful, expected)]
    torch.testing.assert_close(maps[0], maps[2])
    torch.testing.assert_close(maps[1], maps[2])


def test_a_rule_that_says_nothing_of_itself_gets_the_whole_output() -> None:
    """Also where a ReLU has written over it."""
    net, spy = Block(chain_in_place).eval(), Spy(z_plus())
    passed = run(net, torch.randn(2, 2, 5, 5), composite(conv=spy))
    passed.relevance(passed.logits[:, 1])
    assert (spy.outputs[0] < 0).any()


def test_what_is_written_into_another_tensor_is_kept_there() -> None:
    """Not twice; and it is safe from the next write."""
    keeper, value, target = Keeper(), torch.ones(3), torch.zeros(3)
    kept = keeper.keep(value)
    keeper.move(value, target.copy_(value))
    assert kept.data_ptr() == target.data_ptr()
    keeper.before_write(target)
    target.zero_()
    assert torch.equal(kept, torch.ones(3))


def test_after_the_last_way_back_nothing_can_be_asked() -> None:
    net, x = Block(residual_in_place).eval(), torch.randn(2, 2, 5, 5)
    for preset in (presets.lrp_z(), presets.lrp_zplus()):
        first, second = run(net, x, preset), run(net, x, preset)
        expected = first.relevance(first.logits[:, 1])
        assert torch.equal(first.relevance(first.logits[:, 1]), expected)
        assert torch.equal(second.relevance(second.logits[:, 1], last=True), expected)
        with pytest.raises(InputError, match="freed with its last way back"):
            second.relevance(second.logits[:, 1])


class Head(nn.Module):
    """Tokens through two dense layers; the head reads the first one, as it does a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.mix = nn.Linear(4, 6), nn.Linear(9, 9)
        self.one, self.two, self.head = nn.Linear(6, 8), nn.Linear(8, 6, bias=False), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x.flatten(1).unflatten(1, (9, 4)))
        x = self.mix(x.mT).mT
        return self.head(self.two(F.gelu(self.one(x)))[:, 0])


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_only_the_tokens_that_relevance_comes_to_are_computed(rule: LinearRule) -> None:
    net, x = Head().double().eval(), torch.randn(2, 1, 6, 6, dtype=torch.float64)

    class Pointwise(Spy):
        pointwise = True

    few, whole = Pointwise(rule), Spy(rule)
    maps = []
    for spy in (few, whole):
        passed = run(net, x, composite(dense=spy))
        maps.append(passed.relevance(passed.logits[:, 2]))
    if getattr(rule, "pointwise", False):
        torch.testing.assert_close(*maps)
    shapes = [[tuple(value.shape) for value in spy.values] for spy in (few, whole)]
    assert shapes[1] == [(2, 6), (2, 9, 8), (2, 9, 6), (2, 6, 9), (2, 9, 4)]
    assert shapes[0] == [(2, 6), (2, 8), (2, 6), (2, 6, 9), (2, 9, 4)]
