"""The guards of the rules, one by one: vanishing denominators, zeros, signs, gates, constants, norms on layers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.errors import UnsupportedOperationError
from heatproof.relevance import Preset, presets, run
from support.operations import SHAPE, Function, Whole, build, jacobian, relevance_of, with_head, z_plus


def row(*numbers: float) -> Tensor:
    return torch.tensor([numbers], dtype=torch.float64)


# contributions of one sign, and denominators that vanish


@pytest.mark.parametrize(
    ("preset", "weights", "expected"),
    [
        # x = (1, 2, 3); R = 1 at the target
        (presets.lrp_alpha_beta(), (1, 1, 1), (2 / 6, 4 / 6, 6 / 6)),  # N = 0: 2 R passes
        (presets.lrp_alpha_beta(), (-1, -1, -1), (-1 / 6, -2 / 6, -3 / 6)),  # P = 0: −R passes
        (presets.lrp_alpha_beta(), (1, -1, 1), (2 / 4, -2 / 2, 6 / 4)),
        (presets.lrp_zplus(), (-1, -1, -1), (0, 0, 0)),
        (presets.lrp_zplus(), (1, -1, 1), (1 / 4, 0, 3 / 4)),
        (presets.lrp_alpha_beta(), (0, 0, 1), (0, 0, 2)),
    ],
)
def test_contributions_of_one_sign(preset: Preset, weights: tuple[float, ...], expected: tuple[float, ...]) -> None:
    found = relevance_of(lambda v: F.linear(v, row(*weights)), row(1, 2, 3), preset)
    torch.testing.assert_close(found, row(*expected))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("preset", [presets.lrp_alpha_beta(), presets.lrp_zplus()])
def test_a_part_of_rounding_noise_passes_nothing(preset: Preset, dtype: torch.dtype) -> None:
    """A neuron with hundreds of negative contributions has P = 0 and noise in its place; another neuron outweighs it."""
    x = torch.rand(3, 501, dtype=dtype) + 0.1
    down, up = -torch.rand(1, 501, dtype=dtype) - 0.1, torch.rand(1, 501, dtype=dtype) + 0.1
    first = torch.cat([down, up])

    def model(v: Tensor) -> Tensor:
        return F.linear(F.linear(v, first), torch.ones(1, 2, dtype=dtype) * torch.tensor([1, 3], dtype=dtype))

    hidden = x.double() @ first.double().T
    top = torch.stack([hidden[:, 0], 3 * hidden[:, 1]], 1)
    r_up = torch.ones(3, 1).double()
    r_down = torch.zeros(3, 1).double()
    if preset.name == "lrp_alpha_beta":
        r_up, r_down = 2 * r_up, r_up * -1  # of the head; then N = 0 or P = 0 below
        expected = 2 * r_up * (x * up).double() / hidden[:, 1:] - r_down * (x * down).double() / hidden[:, :1]
    else:
        expected = r_up * (x * up).double() / hidden[:, 1:]
    assert (top[:, 0] < 0).all()
    torch.testing.assert_close(relevance_of(model, x, preset).double(), expected, atol=1e-6, rtol=1e-3)


SMALL_SHARES = [1e-6, 1e-4]  # of the other part's size: rounding noise, and something that was computed
NEARLY_ONE_SIGN: dict[str, tuple[Function, Tensor, tuple[float, float]]] = {
    # a layer, its input, and the signs of its two contributions: a small one of 1 and a large one of 1
    "a layer of positive inputs": (lambda w: lambda v: F.linear(v, w * row(1, -1)), row(1, 1), (1, -1)),
    "a layer of both signs": (lambda w: lambda v: F.linear(v, w * row(1, 1)), row(1, -1), (1, -1)),
    "a layer with a bias": (lambda w: lambda v: F.linear(v, w * row(1, -1), row(0)[0]), row(1, 1), (1, -1)),
    "a convolution": (lambda w: lambda v: F.conv1d(v[:, None], (w * row(1, -1))[None])[:, 0], row(1, 1), (1, -1)),
    "a product": (lambda w: lambda v: v @ (w * row(1, -1)).T, row(1, 1), (1, -1)),
    "a layer that is mostly positive": (lambda w: lambda v: F.linear(v, w * row(-1, 1)), row(1, 1), (-1, 1)),
    "a layer of both signs, mostly positive": (lambda w: lambda v: F.linear(v, w * row(1, 1)), row(-1, 1), (-1, 1)),
    "a sum": (lambda w: lambda v: w[:, :1] * v[:, :1] + v[:, 1:], row(1, -1), (1, -1)),
    "a difference": (lambda w: lambda v: w[:, :1] * v[:, :1] - v[:, 1:], row(1, 1), (1, -1)),
    "a sum that is mostly positive": (lambda w: lambda v: w[:, :1] * v[:, :1] + v[:, 1:], row(-1, 1), (-1, 1)),
    "a sum over an axis": (lambda w: lambda v: (w * v).sum(1, keepdim=True), row(1, -1), (1, -1)),
    "average pooling": (lambda w: lambda v: F.avg_pool1d((w * v)[:, None], 2)[:, 0], row(1, -1), (1, -1)),
}


@pytest.mark.parametrize("share", SMALL_SHARES)
@pytest.mark.parametrize("name", NEARLY_ONE_SIGN)
@pytest.mark.parametrize("preset", [presets.lrp_alpha_beta(), presets.lrp_zplus(), presets.excitation_backprop()],
                         ids=lambda preset: preset.name)  # fmt: skip
def test_a_part_far_below_the_other_passes_nothing_and_a_small_one_passes_all(
    preset: Preset, name: str, share: float
) -> None:
    """R = 1 at the target: α goes to the positive part, −β to the negative one, whatever its size, but for noise."""
    build, x, signs = NEARLY_ONE_SIGN[name]
    found = relevance_of(build(row(share, 1)), x, preset)
    of_sign = {1: 2.0, -1: -1.0} if preset.name == "lrp_alpha_beta" else {1: 1.0, -1: 0.0}
    expected = row(*(of_sign[sign] for sign in signs))
    if share == SMALL_SHARES[0]:
        expected[0, 0] = 0
        assert found[0, 0].abs() < 1e-12
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_a_part_far_below_the_other_beside_a_neuron_that_outweighs_it() -> None:
    """Whatever the sign of what arrives: the small part of a neuron that speaks against the target."""
    first = torch.cat([row(1e-6, -1), row(1, 2)])
    x, head = row(1, 1), row(-1, 1)
    # the head's contributions are 1 and 3, so z⁺ hands down 1/4 and 3/4
    found = relevance_of(lambda v: F.linear(F.linear(v, first), head), x, presets.lrp_zplus())
    torch.testing.assert_close(found, row(3 / 4 * 1 / 3, 3 / 4 * 2 / 3), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", [0.5, -0.5])
def test_a_bias_takes_its_share_in_the_part_of_its_sign(bias: float) -> None:
    x, weight = row(1, 2, 3), row(1, -2, 1)
    positive, negative = 4 + max(bias, 0), -4 + min(bias, 0)
    found = relevance_of(lambda v: F.linear(v, weight, row(bias)[0]), x, presets.lrp_alpha_beta())
    torch.testing.assert_close(found, row(2 * 1 / positive, -1 * -4 / negative, 2 * 3 / positive))
    ignored = relevance_of(lambda v: F.linear(v, weight, row(bias)[0]), x, presets.excitation_backprop())
    torch.testing.assert_close(ignored, row(1 / 4, 0, 3 / 4))


# the start


@pytest.mark.parametrize("name", ["lrp_z", "lrp_epsilon", "lrp_alpha_beta", "lrp_zplus", "attn_lrp"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_map_that_starts_at_one_is_that_of_the_logit_over_the_logit(name: str, sign: float) -> None:
    layer, x = nn.Linear(6, 1).double(), torch.rand(2, 6, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(1, 6))
        layer.bias.fill_(0.1)
    model = lambda v: sign * layer(v)  # noqa: E731
    by_logit, by_one = (relevance_of(model, x, getattr(presets, name)(start=start)) for start in ("logit", "one"))
    torch.testing.assert_close(by_logit, by_one * model(x).detach())
    assert by_one.max() > 0.01  # whatever the logit's sign, what speaks for the decision is positive


def test_a_logit_of_zero_is_undefined_where_relevance_starts_at_one_and_fine_where_it_starts_there() -> None:
    x, weight = torch.cat([row(1, 1), row(1, 2)]), row(1, -1)
    model = lambda v: F.linear(v, weight)  # noqa: E731
    undefined = relevance_of(model, x, presets.lrp_z(start="one"))
    assert undefined.isnan().all(1).tolist() == [True, False]
    torch.testing.assert_close(undefined[1], row(-1, 2)[0])
    torch.testing.assert_close(relevance_of(model, x, presets.lrp_z()), torch.cat([row(1, -1), row(1, -2)]))


# inputs and sums that are exactly 0


ZERO_SLOPES: dict[str, tuple[Function, float]] = {
    "relu": (F.relu, 0.0),
    "leaky_relu": (lambda v: F.leaky_relu(v, 0.1), 0.1),
    "gelu": (F.gelu, 0.5),
    "gelu by hand": (lambda v: v * 0.5 * (1 + torch.erf(v / 2**0.5)), 0.5),
    "silu": (F.silu, 0.5),
    "silu by hand": (lambda v: v * v.sigmoid(), 0.5),
    "mish": (F.mish, 0.6),
    "hardswish": (F.hardswish, 0.5),
    "tanh": (torch.tanh, 1.0),
    "hardtanh": (F.hardtanh, 1.0),
    "relu6": (F.relu6, 0.0),
    "clamp": (lambda v: v.clamp(-1, 2), 1.0),
    "clamp from 0": (lambda v: v.clamp(min=0), 0.0),
    "softsign": (F.softsign, 1.0),
    "erf": (torch.erf, 2 / torch.pi**0.5),
    "sine": (torch.sin, 1.0),
    "log1p": (torch.log1p, 1.0),
    "square": (torch.square, 0.0),
    "first power": (lambda v: v**1, 1.0),
    "root": (lambda v: v.pow(0.5), 0.0),
}


@pytest.mark.parametrize("name", ZERO_SLOPES)
def test_an_activation_of_exactly_zero_has_a_finite_slope(name: str) -> None:
    function, slope = ZERO_SLOPES[name]
    passed = run(Whole(lambda v: function(v).sum(1, keepdim=True)), row(0, 0), presets.lrp_z())
    (c,) = passed.per_unit(passed.logits[:, 0], [passed.images])
    torch.testing.assert_close(c, row(slope, slope))


@pytest.mark.parametrize("name", ["gelu", "softmax", "layer_norm", "relu", "rms_norm", "group_norm"])
def test_unchanged_relevance_of_exactly_zero_is_zero(name: str) -> None:
    functions: dict[str, Function] = {
        "gelu": F.gelu,
        "softmax": lambda v: v.softmax(-1),
        "layer_norm": lambda v: F.layer_norm(v, (4,)),
        "relu": F.relu,
        "rms_norm": lambda v: F.rms_norm(v, (4,)),
        "group_norm": lambda v: F.group_norm(v, 2),
    }
    x, weight = row(0, 1.5, -0.5, 0), row(1, 2, 3, 4)
    found = relevance_of(lambda v: F.linear(functions[name](v), weight), x, presets.transformer_attention())
    z = functions[name](x)
    positive = (z * weight).clamp(min=0)
    expected = torch.where(x == 0, 0.0, positive / positive.sum())
    torch.testing.assert_close(found, expected)


def test_epsilon_at_a_sum_of_exactly_zero_passes_nothing() -> None:
    x, weight = row(1, 1, 2), torch.cat([row(1, -1, 0), row(0, 0, 1)])
    model = lambda v: F.linear(F.linear(v, weight), row(1, 1))  # noqa: E731
    for preset in (presets.lrp_epsilon(0.5), presets.lrp_epsilon(0.5, relative=True), presets.lrp_epsilon(0.0)):
        found = relevance_of(model, x, preset)
        assert found.isfinite().all()
        assert (found[0, 2] > 1).item()
        if preset != presets.lrp_epsilon(0.0):
            torch.testing.assert_close(found[0, :2], row(0, 0)[0])


def test_a_sample_of_zeros_has_a_map_of_zeros() -> None:
    conv = nn.Conv2d(2, 3, 3, bias=False).double()
    for name in ("lrp_z", "lrp_epsilon", "lrp_zplus", "lrp_alpha_beta"):
        model = lambda v: F.relu(conv(v)).flatten(1) + 1.0  # noqa: E731
        found = relevance_of(model, torch.zeros(SHAPE).double(), build(name))
        assert torch.equal(found, torch.zeros(SHAPE).double())


# sums and pooling of both signs


def test_a_sum_under_z_plus_by_hand() -> None:
    """3 + 2 − 4 with a constant 1: the positive terms share in 6."""
    model = lambda v: v[:, :1] + v[:, 1:2] + v[:, 2:] + 1.0  # noqa: E731
    # ((3 + 2) − 4) + 1: the last sum gives 1 to the constant and 1 to the rest, of which −4 gets nothing
    torch.testing.assert_close(relevance_of(model, row(3, 2, -4), presets.lrp_zplus()), row(0.3, 0.2, 0))
    # its negative part: −β of what the last sum handed down with α
    found = relevance_of(model, row(3, 2, -4), presets.lrp_alpha_beta())
    at_sum = 2 * 1 / 2
    torch.testing.assert_close(found, row(2 * 2 * at_sum * 3 / 5, 2 * 2 * at_sum * 2 / 5, -at_sum))


def test_average_pooling_under_z_plus_by_hand() -> None:
    x = row(3, 1, -2, 0).view(1, 1, 2, 2)
    found = relevance_of(lambda v: F.avg_pool2d(v, 2).flatten(1), x, presets.lrp_zplus())
    torch.testing.assert_close(found.flatten(1), row(0.75, 0.25, 0, 0))
    under_z = relevance_of(lambda v: F.avg_pool2d(v, 2).flatten(1), x, presets.lrp_z())
    torch.testing.assert_close(under_z.flatten(1), row(0.75, 0.25, -0.5, 0))


# gates


GATES: dict[str, tuple[Function, Function]] = {
    # what is computed, and the same with the gate as a constant
    "squeeze and excitation": (
        lambda v: v * F.linear(v.mean((2, 3)), torch.eye(2).double() * 3).sigmoid()[:, :, None, None],
        lambda v: v * F.linear(v.mean((2, 3)), torch.eye(2).double() * 3).sigmoid()[:, :, None, None].detach(),
    ),
    "hard sigmoid": (
        lambda v: v * F.hardsigmoid(v.mean((2, 3), keepdim=True)),
        lambda v: v * F.hardsigmoid(v.mean((2, 3), keepdim=True)).detach(),
    ),
    "used twice": (
        lambda v: twice(v, v.mean(1, keepdim=True).sigmoid()),
        lambda v: twice(v, v.mean(1, keepdim=True).sigmoid().detach()),
    ),
    "a gate of a gate": (
        lambda v: v * (v.flip(1) * v.sigmoid()).sigmoid(),
        lambda v: v * (v.flip(1) * v.sigmoid()).sigmoid().detach(),
    ),
    "a sigmoid of a sigmoid": (lambda v: v * v.sigmoid().sigmoid(), lambda v: v * v.sigmoid().sigmoid().detach()),
    "two gates, first together": (
        lambda v: v * (v.sigmoid() * v.flip(1).sigmoid()),
        lambda v: v * (v.sigmoid() * v.flip(1).sigmoid()).detach(),
    ),
    "two gates, one by one": (
        lambda v: v * v.sigmoid() * v.flip(1).sigmoid(),
        lambda v: v * (v.sigmoid() * v.flip(1).sigmoid()).detach(),
    ),
    "one minus a gate": (lambda v: v * (1 - v.sigmoid()), lambda v: v * (1 - v.sigmoid()).detach()),
    "one plus a gate": (lambda v: v * (1 + v.sigmoid()), lambda v: v * (1 + v.sigmoid()).detach()),
    "a gate scaled": (
        lambda v: v * (2 * v.sigmoid() / 3).clamp(0.1, 0.6),
        lambda v: v * (2 * v.sigmoid() / 3).clamp(0.1, 0.6).detach(),
    ),
    "a gate spread": (
        lambda v: v * F.interpolate(v[:, :, :2, :2].sigmoid(), size=4),
        lambda v: v * F.interpolate(v[:, :, :2, :2].sigmoid(), size=4).detach(),
    ),
    "gates joined": (
        lambda v: v * torch.cat([v[:, :1].sigmoid(), v[:, 1:].sigmoid()], 1),
        lambda v: v * v.sigmoid().detach(),
    ),
    "one plus a tanh": (lambda v: v * (1 + v.flip(1).tanh()), lambda v: v * (1 + v.flip(1).tanh()).detach()),
    "a mixture": (
        lambda v: v * v.sigmoid() + v.flip(1) * (1 - v.sigmoid()),
        lambda v: v * v.sigmoid().detach() + v.flip(1) * (1 - v.sigmoid()).detach(),
    ),
}


def twice(v: Tensor, gate: Tensor) -> Tensor:
    return torch.cat([v * gate, v.flip(2) * gate], 1)


@pytest.mark.parametrize("name", GATES)
@pytest.mark.parametrize("preset", ["lrp_z", "lrp_zplus", "attn_lrp"])
def test_a_gate_is_a_constant(name: str, preset: str) -> None:
    gated, constant = GATES[name]
    x = torch.randn(SHAPE, dtype=torch.float64)
    model, head = with_head(gated, x)
    expected = relevance_of(lambda v: F.linear(constant(v).flatten(1), head), x, build(preset))
    assert expected.abs().max() > 0
    torch.testing.assert_close(relevance_of(model, x, build(preset)), expected)


@pytest.mark.parametrize(
    "function",
    [torch.sigmoid, F.hardsigmoid, lambda v: 1 - v.sigmoid(), lambda v: v.sigmoid() + v, lambda v: v.sigmoid() * v.sigmoid(),
     lambda v: F.conv2d(v.sigmoid(), torch.ones(2, 2, 1, 1).double()) * v, lambda v: v.sigmoid().exp() * v],
    ids=["sigmoid", "hardsigmoid", "1 - sigmoid", "sum", "product of gates alone", "weighted", "exponential"],
)  # fmt: skip
def test_a_gate_that_is_used_as_more_is_refused(function: Function) -> None:
    with pytest.raises(UnsupportedOperationError, match="in module"):
        relevance_of(lambda v: function(v).flatten(1), torch.randn(SHAPE, dtype=torch.float64), presets.lrp_z())


def test_what_a_convolution_makes_of_a_gate_is_no_gate() -> None:
    """A product of it and something else is split evenly, so relevance meets the sigmoid."""
    x, weight = torch.randn(SHAPE, dtype=torch.float64), torch.randn(2, 2, 1, 1).double()
    passed = run(Whole(lambda v: (F.conv2d(v.sigmoid(), weight) * v).flatten(1)), x, presets.lrp_z(), strict=False)
    assert passed.mode.gaps


@pytest.mark.parametrize("shift", [2.0, -1.0])
def test_a_tanh_that_is_shifted_otherwise_is_an_activation(shift: float) -> None:
    """Its product is halved, the constant takes its share, and tanh keeps the rest."""
    x = row(1.5, 0.7)
    found = relevance_of(lambda v: v[:, :1] * (shift + v[:, 1:].tanh()), x, presets.lrp_z())
    saturation = torch.tanh(x[0, 1])
    torch.testing.assert_close(found, torch.stack([x[0, 0] * (shift + saturation), x[0, 0] * saturation])[None] / 2)


# divisors and constants


CONSTANTS: dict[str, tuple[Function, Function]] = {
    "divisor": (lambda v: v[:, :1] / v[:, 1:], lambda v: v[:, :1] / v[:, 1:].detach()),
    "reflected": (lambda v: v[:, :1] + 1 / v[:, 1:], lambda v: v[:, :1] + 1 / v[:, 1:].detach()),
    "reciprocal": (lambda v: v[:, :1] * v[:, 1:].reciprocal(), lambda v: v[:, :1] / v[:, 1:].detach()),
    "root": (lambda v: v[:, :1] * v[:, 1:].abs().sqrt(), lambda v: v[:, :1] * v[:, 1:].abs().sqrt().detach()),
    "deviation": (lambda v: v * v.std(2, keepdim=True), lambda v: v * v.std(2, keepdim=True).detach()),
    "sign": (lambda v: v[:, :1] * v[:, 1:].sign(), lambda v: v[:, :1] * v[:, 1:].sign().detach()),
    "step": (lambda v: v[:, :1] * (v[:, 1:] > 0), lambda v: v[:, :1] * (v[:, 1:].detach() > 0)),
    "rounded": (lambda v: v + (v * 3).round(), lambda v: v + (v * 3).round().detach()),
    "in place": (lambda v: (v * 1.0).div_(v.norm()), lambda v: v / v.norm().detach()),
}


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize("preset", ["lrp_z", "lrp_zplus"])
def test_a_constant_factor_takes_nothing(name: str, preset: str) -> None:
    function, constant = CONSTANTS[name]
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    model, head = with_head(function, x)
    expected = relevance_of(lambda v: F.linear(constant(v).flatten(1), head), x, build(preset))
    torch.testing.assert_close(relevance_of(model, x, build(preset)), expected)


# batch norm on a layer


def trained(norm: nn.Module) -> nn.Module:
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    return norm.double().eval()


def merged_is_one_layer(both: Function, x: Tensor) -> None:
    """Under z⁺ both are the linear layer that they make together."""
    model, head = with_head(both, x)
    weight, z = jacobian(both, x), both(x).flatten(1).detach()
    bias = z - torch.einsum("nji,ni->nj", weight, x.flatten(1))
    ones = torch.ones(len(x), 1, dtype=torch.float64)
    top = z_plus(z, head.expand(len(x), 1, -1), ones * 0, ones)
    found = relevance_of(model, x, presets.lrp_zplus()).flatten(1)
    torch.testing.assert_close(found, z_plus(x.flatten(1), weight, bias, top))


def test_a_norm_is_part_of_the_layer_before_it() -> None:
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    conv, dense, line = nn.Conv2d(2, 3, 3).double(), nn.Linear(32, 5).double(), nn.Conv1d(2, 3, 3).double()
    norms = [trained(norm) for norm in (nn.BatchNorm2d(3), nn.BatchNorm1d(5), nn.BatchNorm1d(3))]
    merged_is_one_layer(lambda v: norms[0](conv(v)), x)
    merged_is_one_layer(lambda v: norms[1](dense(v.flatten(1))), x)
    merged_is_one_layer(lambda v: norms[2](line(v.flatten(2))), x)
    merged_is_one_layer(lambda v: norms[0](F.dropout(conv(v), 0.5, training=False)), x)
    merged_is_one_layer(lambda v: norms[0](conv(v).contiguous().to(v.dtype)), x)


def test_a_layer_that_runs_twice_is_merged_each_time() -> None:
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    conv, norm = nn.Conv2d(2, 2, 3, padding=1).double(), trained(nn.BatchNorm2d(2))
    once = lambda v: norm(conv(v))  # noqa: E731
    merged_is_one_layer(once, x)
    _, head = with_head(once, x)
    hidden = once(x).detach()
    passed = run(Whole(lambda v: F.linear(once(once(v)).flatten(1), head)), x, presets.lrp_zplus())
    upper = relevance_of(lambda v: F.linear(once(v).flatten(1), head), hidden, presets.lrp_zplus()).flatten(1)
    weight = jacobian(once, x)
    bias = hidden.flatten(1) - torch.einsum("nji,ni->nj", weight, x.flatten(1))
    torch.testing.assert_close(
        passed.relevance(passed.logits[:, 0]).flatten(1), z_plus(x.flatten(1), weight, bias, upper)
    )


@pytest.mark.parametrize(
    "read",
    [lambda z: z, lambda z: z.mT, lambda z: z[:, :1], lambda z: z.detach() * 0 + z.sum()],
    ids=["as it is", "transposed attribute", "slice", "sum"],
)
def test_a_layer_that_something_else_reads_stays_apart(read: Callable[[Tensor], Tensor]) -> None:
    """The norm then has one weight a channel: a number of one sign passes whole under z⁺, and of the other not at all."""
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    conv, norm = nn.Conv2d(2, 3, 3).double(), trained(nn.BatchNorm2d(3))

    def model(v: Tensor, *, hide: bool) -> Tensor:
        z = conv(v)
        again = z * 1.0 if hide else z  # what a scaling gives is made by no layer
        return torch.cat([norm(again).flatten(1), read(z).flatten(1)], 1)

    _, head = with_head(lambda v: model(v, hide=False), x)
    maps = [
        relevance_of(lambda v, h=hide: F.linear(model(v, hide=h).flatten(1), head), x, presets.lrp_zplus())
        for hide in (True, False)
    ]
    torch.testing.assert_close(*maps)


def test_a_norm_after_a_concatenation_is_a_layer_of_its_own() -> None:
    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    norm, conv = trained(nn.BatchNorm2d(4)), nn.Conv2d(2, 2, 1).double()
    model, head = with_head(lambda v: norm(torch.cat([conv(v), v], 1)), x)
    hidden = torch.cat([conv(x), x], 1).detach()
    weight, z = jacobian(norm, hidden), norm(hidden).flatten(1).detach()
    ones = torch.ones(2, 1, dtype=torch.float64)
    top = z_plus(z, head.expand(2, 1, -1), ones * 0, ones)
    below = z_plus(hidden.flatten(1), weight, z - torch.einsum("nji,ni->nj", weight, hidden.flatten(1)), top)
    of_conv, direct = below.view(2, 4, 4, 4).chunk(2, 1)
    weight = jacobian(conv, x)
    bias = conv(x).flatten(1).detach() - torch.einsum("nji,ni->nj", weight, x.flatten(1))
    expected = z_plus(x.flatten(1), weight, bias, of_conv.flatten(1)) + direct.flatten(1)
    torch.testing.assert_close(relevance_of(model, x, presets.lrp_zplus()).flatten(1), expected)
