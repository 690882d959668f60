"""A model that writes in place has the maps of one that does not, and may write into what is still needed."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.errors import UnsupportedOperationError
from heatproof.relevance import Preset, presets, run
from support.operations import SHAPE, Whole, build, relevance_of

PRESETS = ["lrp_z", "lrp_epsilon", "lrp_zplus", "lrp_alpha_beta"]
Change = Callable[[Tensor, Tensor], Tensor]  # of two tensors; the first may be written into

EVEN = torch.arange(16).view(4, 4) % 2 == 0


def written(change: Callable[[Tensor, Tensor], object]) -> Change:
    """A change whose own value nobody reads."""

    def apply(a: Tensor, b: Tensor) -> Tensor:
        change(a, b)
        return a

    return apply


def set_at(place: object, value: Callable[[Tensor], object]) -> Change:
    def change(a: Tensor, b: Tensor) -> None:
        a[place] = value(b)  # type: ignore[index, assignment]

    return written(change)


def augmented_sum(a: Tensor, b: Tensor) -> Tensor:
    a += b
    return a


def augmented_product(a: Tensor, _: Tensor) -> Tensor:
    a *= 2
    a /= -3
    a -= 0.3
    return a


CHANGES: dict[str, tuple[Change, Change]] = {
    "relu_": (written(lambda a, _: a.relu_()), lambda a, _: a.relu()),
    "relu, inplace=True": (lambda a, _: F.relu(a, inplace=True), lambda a, _: a.relu()),
    "relu6, inplace=True": (lambda a, _: F.relu6(a, inplace=True), lambda a, _: F.relu6(a)),
    "silu, inplace=True": (written(lambda a, _: F.silu(a, inplace=True)), lambda a, _: F.silu(a)),
    "leaky_relu_": (written(lambda a, _: F.leaky_relu_(a, 0.1)), lambda a, _: F.leaky_relu(a, 0.1)),
    "threshold, inplace=True": (lambda a, _: F.threshold(a, 0.1, 0.2, True), lambda a, _: F.threshold(a, 0.1, 0.2)),
    "tanh_": (written(lambda a, _: a.tanh_()), lambda a, _: a.tanh()),
    "x += y": (augmented_sum, lambda a, b: a + b),
    "x *= 2": (augmented_product, lambda a, _: a * 2 / -3 - 0.3),
    "add_": (written(lambda a, b: a.add_(b, alpha=-0.5)), lambda a, b: torch.add(a, b, alpha=-0.5)),
    "sub_": (written(lambda a, b: a.sub_(b)), lambda a, b: a - b),
    "mul_ by a gate": (written(lambda a, b: a.mul_(b.sigmoid())), lambda a, b: a * b.sigmoid()),
    "a gate made in place": (written(lambda a, b: a.mul_((b * 2).sigmoid_())), lambda a, b: a * (b * 2).sigmoid()),
    "pow_": (written(lambda a, _: a.pow_(2)), lambda a, _: a**2),
    "neg_": (written(lambda a, _: a.neg_()), lambda a, _: -a),
    "clamp_": (written(lambda a, _: a.clamp_(-0.3, 0.5)), lambda a, _: a.clamp(-0.3, 0.5)),
    "clamp_min_": (written(lambda a, _: a.clamp_min_(0)), lambda a, _: a.clamp(min=0)),
    "masked_fill_": (written(lambda a, _: a.masked_fill_(EVEN, 0.2)), lambda a, _: a.masked_fill(EVEN, 0.2)),
    "zero_": (lambda a, b: a.zero_().add_(b), lambda a, b: a * 0 + b),
    "zero_ of a part": (written(lambda a, _: a[:, 0].zero_()), lambda a, _: torch.stack([a[:, 0] * 0, a[:, 1]], 1)),
    "fill_": (lambda a, b: a.fill_(0.3) + b, lambda a, b: a * 0 + 0.3 + b),
    "fill_ of a part": (
        written(lambda a, _: a[:, :, 2].fill_(0.3)),
        lambda a, _: a.index_fill(2, torch.tensor([2]), 0.3),
    ),
    "copy_": (written(lambda a, b: a.copy_(b)), lambda _, b: b * 1),
    "copy_ of a part": (written(lambda a, b: a[:, 0].copy_(b[:, 1])), lambda a, b: torch.stack([b[:, 1], a[:, 1]], 1)),
    "uniform_": (lambda a, b: a.uniform_(0.0, 1e-300) + b, lambda a, b: a * 0 + b),
    "fill_diagonal_": (written(lambda a, _: a[0, 0].fill_diagonal_(0.5)), lambda a, _: diagonal_filled(a)),
    "a mask": (set_at(EVEN.expand(2, 2, 4, 4), lambda b: 0.4), lambda a, _: a.masked_fill(EVEN, 0.4)),
    "a slice": (set_at((slice(None), 0), lambda b: b[:, 1]), lambda a, b: torch.stack([b[:, 1], a[:, 1]], 1)),
    "a step": (set_at((..., slice(0, None, 2)), lambda b: b[..., 1::2]), lambda a, b: interleaved(b, a)),
    "an index": (
        set_at((slice(None), torch.tensor([1])), lambda b: b[:, :1]),
        lambda a, b: torch.cat([a[:, :1], b[:, :1]], 1),
    ),
    "index_put_": (written(lambda a, b: a.index_put_((torch.tensor([0, 1]),), b)), lambda _, b: b * 1),
    "index_copy_": (
        written(lambda a, b: a.index_copy_(1, torch.tensor([1]), b[:, :1])),
        lambda a, b: torch.cat([a[:, :1], b[:, :1]], 1),
    ),
    "index_add_": (written(lambda a, b: a.index_add_(1, torch.tensor([1, 0]), b)), lambda a, b: a + b.flip(1)),
    "scatter_": (
        written(lambda a, b: a.scatter_(1, torch.zeros(2, 1, 4, 4).long(), b[:, :1])),
        lambda a, b: torch.cat([b[:, :1], a[:, 1:]], 1),
    ),
    "a view": (
        written(lambda a, b: a.view(2, -1)[:, :16].mul_(0.5)),
        lambda a, b: torch.cat([a[:, :1] * 0.5, a[:, 1:]], 1),
    ),
    "a transposed view": (written(lambda a, b: a.mT.add_(b)), lambda a, b: a + b.mT),
    "addcmul_": (written(lambda a, b: a.addcmul_(b, EVEN.double(), value=2)), lambda a, b: a + b * EVEN.double() * 2),
    "lerp_": (written(lambda a, b: a.lerp_(b, 0.3)), lambda a, b: torch.lerp(a, b, 0.3)),
    "unsqueeze_": (lambda a, _: a.unsqueeze_(1).squeeze_(1).transpose_(2, 3), lambda a, _: a.mT),
    "a torch.ops function": (written(lambda a, b: torch.ops.aten.add_.Tensor(a, b)), lambda a, b: a + b),
}


def diagonal_filled(a: Tensor) -> Tensor:
    keep = torch.ones(2, 2, 4, 4, dtype=torch.bool)
    keep[0, 0] = ~torch.eye(4).bool()
    return torch.where(keep, a, 0.5)


def interleaved(even: Tensor, odd: Tensor) -> Tensor:
    return torch.stack([even[..., 1::2], odd[..., 1::2]], -1).flatten(-2)


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("preset", PRESETS)
def test_writing_into_what_is_still_needed_changes_nothing(name: str, preset: str) -> None:
    """`a` is a convolution's output, and the next convolution's input, before it is written into."""
    first, second = nn.Conv2d(2, 2, 3, padding=1).double(), nn.Conv2d(2, 2, 1).double()
    head, x = torch.randn(1, 64, dtype=torch.float64), torch.randn(SHAPE, dtype=torch.float64)

    def model(change: Change) -> Callable[[Tensor], Tensor]:
        def forward(v: Tensor) -> Tensor:
            a = first(v)
            b = second(a)
            return F.linear(torch.cat([change(a, b), b], 1).flatten(1), head)

        return forward

    sloppy, tidy = (model(change) for change in CHANGES[name])
    torch.testing.assert_close(sloppy(x), tidy(x))
    original = x.clone()
    found = relevance_of(sloppy, x, build(preset))
    torch.testing.assert_close(found, relevance_of(tidy, x, build(preset)))
    assert found.abs().max() > 0
    assert torch.equal(x, original)


OUTS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Change]] = {
    "add": (lambda a, b: torch.add(a, b, out=torch.empty_like(a)), lambda a, b: a + b),
    "add into what is needed": (lambda a, b: torch.add(a, b, out=a), lambda a, b: a + b),
    "add into nothing": (lambda a, b: torch.add(a, b, out=torch.empty(0).double()), lambda a, b: a + b),
    "mul by a gate": (lambda a, b: torch.mul(a, b.sigmoid(), out=torch.empty_like(a)), lambda a, b: a * b.sigmoid()),
    "matmul": (lambda a, b: torch.matmul(a, b, out=torch.empty_like(a)), lambda a, b: a @ b),
    "cat": (lambda a, b: torch.cat([a, b], 1, out=torch.empty(2, 4, 4, 4).double()), lambda a, b: torch.cat([a, b], 1)),
    "addcmul": (lambda a, b: torch.addcmul(a, a, b, out=torch.empty_like(a)), lambda a, b: a + a * b),
    "normalize": (lambda a, b: F.normalize(a + b, out=torch.empty_like(a)), lambda a, b: F.normalize(a + b)),
    "max": (
        lambda a, b: torch.max(a + b, 1, out=(torch.empty(0).double(), torch.empty(0).long()))[0],
        lambda a, b: (a + b).amax(1),
    ),
}


@pytest.mark.parametrize("name", OUTS)
@pytest.mark.parametrize("preset", ["lrp_z", "lrp_zplus"])
def test_out_is_a_write(name: str, preset: str) -> None:
    first, second = nn.Conv2d(2, 2, 3, padding=1).double(), nn.Conv2d(2, 2, 1).double()
    x, maps = torch.randn(SHAPE, dtype=torch.float64), []
    for change in OUTS[name]:

        def forward(v: Tensor, change: Change = change) -> Tensor:
            a = first(v)
            return change(a, second(a)).flatten(1)

        with torch.no_grad():
            plain = forward(x)
        passed = run(Whole(forward).eval(), x, build(preset))
        torch.testing.assert_close(passed.logits, plain)
        maps.append(passed.relevance(passed.logits[:, 3]))
    torch.testing.assert_close(*maps)


@pytest.mark.parametrize("preset", ["lrp_zplus", "lrp_alpha_beta"])
def test_writing_through_a_detached_alias_does_not_reach_what_is_kept(preset: str) -> None:
    conv, x = nn.Conv2d(2, 3, 3).double(), torch.randn(SHAPE, dtype=torch.float64)

    def sloppy(v: Tensor) -> Tensor:
        v = v - 0.3
        z = conv(v)
        v.detach().zero_()
        v.data[:] = 7
        return z.flatten(1)

    found = relevance_of(sloppy, x, build(preset), 2)
    torch.testing.assert_close(found, relevance_of(lambda v: conv(v - 0.3).flatten(1), x, build(preset), 2))


@pytest.mark.parametrize(
    "change", [lambda z: z.mul_(2), lambda z: z.__setitem__((..., 0), z[..., 1]), lambda z: z[:, :1].zero_(),
               lambda z: z.mT.mul_(2), lambda z: z.relu_(), lambda z: z.copy_(z.flip(1)), lambda z: z.transpose_(2, 3)],
    ids=["all", "set", "part", "view", "relu", "copy", "relabelled"],
)  # fmt: skip
def test_a_layer_that_was_written_into_is_no_more_the_one_before_the_norm(change: Callable[[Tensor], object]) -> None:
    conv, norm = nn.Conv2d(2, 3, 3).double(), nn.BatchNorm2d(3).double().eval()
    nn.init.uniform_(norm.running_mean, -1, 1)
    nn.init.normal_(norm.weight)
    x = torch.randn(SHAPE, dtype=torch.float64)

    def model(v: Tensor, *, apart: bool) -> Tensor:
        z = conv(v) * 1.0 if apart else conv(v)
        change(z)
        return norm(z).flatten(1)

    maps = [
        relevance_of(lambda v, a=apart: model(v, apart=a), x, presets.lrp_alpha_beta(), 4) for apart in (True, False)
    ]
    torch.testing.assert_close(*maps)


def test_a_gate_that_was_written_over_is_no_gate() -> None:
    x = torch.randn(1, 2, dtype=torch.float64)

    def overwritten(v: Tensor) -> Tensor:
        gate = v.sigmoid()
        gate.copy_(v * 3)
        return gate * v.flip(1)

    found = relevance_of(overwritten, x, presets.lrp_z())
    half = (x[0, 0] * 3 * x[0, 1] / 2).expand(1, 2)
    torch.testing.assert_close(found, half)


def test_a_gate_that_was_set_in_part_is_no_gate() -> None:
    x = torch.randn(1, 2, dtype=torch.float64)

    def model(v: Tensor) -> Tensor:
        gate = v.sigmoid()
        gate[:, :1] = v[:, 1:]
        return (gate * v)[:, :1]

    found = relevance_of(model, x, presets.lrp_z())
    torch.testing.assert_close(found, (x[0, 0] * x[0, 1] / 2).expand(1, 2))


def test_a_gate_in_a_part_of_a_tensor_does_not_make_the_rest_one() -> None:
    """And what is then used is refused rather than guessed."""
    x = torch.randn(1, 4, dtype=torch.float64)

    def model(v: Tensor) -> Tensor:
        parts = v * 1.0
        parts[:, :2].sigmoid_()
        return parts[:, 2:] * v[:, :2]

    expected = torch.zeros_like(x)
    expected[0, 0] = expected[0, 2] = x[0, 0] * x[0, 2] / 2
    torch.testing.assert_close(relevance_of(model, x, presets.lrp_z()), expected)
    with pytest.raises(UnsupportedOperationError, match="gate"):
        relevance_of(lambda v: model(v) + (v * 1.0)[:, :2].sigmoid_(), x, presets.lrp_z())


@pytest.mark.parametrize("rules", [presets.lrp_z(), presets.NOTHING])
def test_both_ways_back_survive_writes(rules: Preset) -> None:
    conv, x = nn.Conv2d(2, 2, 3, padding=1).double(), torch.randn(SHAPE, dtype=torch.float64)

    def model(v: Tensor) -> Tensor:
        a = conv(v).tanh_()
        b = conv(a)
        a.zero_()
        b[:, 0] = a[:, 1]
        return b.mul_(2).add_(v).flatten(1)

    tidy = lambda v: torch.cat([conv(v.clone())[:, :1] * 0, conv(conv(v).tanh())[:, 1:]], 1).mul(2).add(v).flatten(1)  # noqa: E731
    passed = run(Whole(model).eval(), x, rules, both=True)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(tidy(leaf)[:, 20].sum(), leaf)
    (found,) = passed.per_unit(passed.logits[:, 20], [passed.images], phase="gradient")
    torch.testing.assert_close(found, expected)
