"""Each rule against a slow replica in float64, written from its formula."""

import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.errors import UnsupportedModelError, UnsupportedOperationError
from heatproof.relevance import Preset, presets, run
from heatproof.relevance.backward import _undefined_at
from support.nets import TinyCNN, TinyViT


class Whole(nn.Module):
    """A function as a model: images -> logits."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def relevance_of(
    function: Callable[[Tensor], Tensor], x: Tensor, preset: Preset, index: int = 0, **options: bool
) -> Tensor:
    passed = run(Whole(function), x, preset, **options)
    return passed.relevance(passed.logits[:, index])


def lrp_linear(x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor, epsilon: float) -> Tensor:
    """R_i = x_i Σ_j w_ji R_j / (z_j + ε sign z_j), number by number."""
    result = torch.zeros_like(x)
    for n in range(len(x)):
        for j in range(len(weight)):
            z = float(((x[n] * weight[j]).sum() + bias[j]).detach())
            for i in range(x.shape[1]):
                result[n, i] += x[n, i] * weight[j, i] * relevance[n, j] / (z + epsilon * (1 if z >= 0 else -1))
    return result


@pytest.mark.parametrize("epsilon", [0.0, 0.3])
def test_z_and_epsilon_in_a_relu_network(epsilon: float) -> None:
    first, second = nn.Linear(6, 5).double(), nn.Linear(5, 3).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    hidden = first(x).relu().detach()
    logits = second(hidden).detach()
    top = torch.zeros_like(logits)
    top[:, 1] = logits[:, 1]
    middle = lrp_linear(hidden, second.weight, second.bias, top, epsilon)
    expected = lrp_linear(x, first.weight, first.bias, middle, epsilon)
    preset = presets.lrp_epsilon(epsilon) if epsilon else presets.lrp_z()
    found = relevance_of(lambda v: second(F.relu(first(v))), x, preset, index=1)
    torch.testing.assert_close(found, expected.detach())


def test_relative_epsilon_is_a_share_of_each_samples_mean_size() -> None:
    layer = nn.Linear(6, 3).double()
    x = torch.randn(4, 6, dtype=torch.float64)
    found = relevance_of(layer, x, presets.lrp_epsilon(0.25, relative=True))
    logits = layer(x).detach()
    for n in range(4):
        top = torch.zeros(1, 3, dtype=torch.float64)
        top[0, 0] = logits[n, 0]
        expected = lrp_linear(x[n : n + 1], layer.weight, layer.bias, top, 0.25 * float(logits[n].abs().mean()))
        torch.testing.assert_close(found[n : n + 1], expected.detach())


def test_epsilon_in_a_convolution_is_that_of_its_matrix() -> None:
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1).double()
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    units = torch.eye(32, dtype=torch.float64).view(32, 2, 4, 4)
    matrix = F.conv2d(units, conv.weight, stride=2, padding=1).flatten(1).T.detach()
    bias = conv.bias.detach().repeat_interleave(4)
    logits = conv(x).flatten(1).detach()
    top = torch.zeros_like(logits)
    top[:, 5] = logits[:, 5]
    expected = lrp_linear(x.flatten(1), matrix, bias, top, 0.2)
    found = relevance_of(lambda v: conv(v).flatten(1), x, presets.lrp_epsilon(0.2), index=5)
    torch.testing.assert_close(found.flatten(1), expected)


def test_lrp_z_on_a_relu_network_is_input_times_gradient_and_sums_to_the_logit_with_what_biases_absorb() -> None:
    net = TinyCNN().double().eval()
    x = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    found = relevance_of(net, x, presets.lrp_z(), index=2)

    leaf = x.clone().requires_grad_()
    shifts = [net.conv1.bias, net.conv2.bias, net.head.bias, net.bn1.bias, net.bn2.bias]
    for n in range(3):
        logit = net(leaf[n : n + 1])[0, 2]
        gradient, *by_shift = torch.autograd.grad(logit, [leaf, *shifts])
        torch.testing.assert_close(found[n], (leaf * gradient)[n].detach())
        absorbed = sum((s * g).sum() for s, g in zip(shifts, by_shift, strict=True))
        for norm, g in (
            (net.bn1, by_shift[3]),
            (net.bn2, by_shift[4]),
        ):  # the running mean is subtracted: a constant too
            absorbed -= (g * norm.weight * norm.running_mean / (norm.running_var + norm.eps).sqrt()).sum()
        torch.testing.assert_close(found[n].sum() + absorbed, logit)


@pytest.mark.parametrize(
    "activation",
    [F.gelu, F.silu, F.mish, F.hardswish, torch.tanh, F.elu, F.selu, F.celu, F.relu6, F.leaky_relu, F.softsign],
)
def test_activations_keep_their_relevance(activation: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(2, 5, dtype=torch.float64) * 3
    weight = torch.randn(3, 5, dtype=torch.float64)
    found = relevance_of(lambda v: F.linear(activation(v), weight), x, presets.lrp_z())
    torch.testing.assert_close(found, activation(x) * weight[0])


@pytest.mark.parametrize("activation", [F.gelu, F.silu, F.mish, F.hardswish, torch.tanh, F.elu, F.selu, F.softsign])
def test_an_activation_of_zero_passes_its_slope(activation: Callable[[Tensor], Tensor]) -> None:
    zero = torch.zeros(1, 1, dtype=torch.float64)
    passed = run(Whole(lambda v: activation(v).sum(1, keepdim=True)), zero, presets.lrp_z())
    near = torch.tensor(1e-7, dtype=torch.float64)
    torch.testing.assert_close(passed.per_unit(passed.logits[:, 0], [passed.images])[0][0, 0], activation(near) / near,
                               atol=1e-6, rtol=0)  # fmt: skip


def test_layer_norm_holds_its_deviation_constant() -> None:
    norm = nn.LayerNorm(6).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    head = torch.randn(2, 6, dtype=torch.float64)
    x = torch.randn(3, 6, dtype=torch.float64)
    found = relevance_of(lambda v: F.linear(norm(v), head), x, presets.lrp_z())
    expected = torch.zeros_like(x)
    for n in range(3):
        sigma = (x[n].var(correction=0) + norm.eps).sqrt()
        for i in range(6):
            for j in range(6):
                expected[n, i] += x[n, i] * ((i == j) - 1 / 6) * norm.weight[j] / sigma * head[0, j]
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(found.sum(1) + head[0] @ norm.bias, F.linear(norm(x), head)[:, 0])  # the shift absorbs


def test_a_norm_written_out_by_hand_is_the_same() -> None:
    norm = nn.LayerNorm(6).double()
    x = torch.randn(3, 6, dtype=torch.float64)

    def by_hand(v: Tensor) -> Tensor:
        centred = v - v.mean(-1, keepdim=True)
        return centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + norm.eps)

    def by_division(v: Tensor) -> Tensor:
        centred = v - v.mean(-1, keepdim=True)
        return centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + norm.eps)

    expected = relevance_of(norm, x, presets.lrp_z())
    torch.testing.assert_close(relevance_of(by_hand, x, presets.lrp_z()), expected)
    torch.testing.assert_close(relevance_of(by_division, x, presets.lrp_z()), expected)


def test_a_gate_is_a_constant() -> None:
    x = torch.randn(3, 6, dtype=torch.float64)
    by_hand = relevance_of(lambda v: v * v.sigmoid(), x, presets.lrp_z())
    torch.testing.assert_close(by_hand, relevance_of(F.silu, x, presets.lrp_z()))
    torch.testing.assert_close(relevance_of(lambda v: v.sigmoid() * v, x, presets.lrp_z()), by_hand)
    squeeze = relevance_of(lambda v: (v[:, :, None] * torch.sigmoid(v).unsqueeze(2)).flatten(1), x, presets.lrp_z())
    torch.testing.assert_close(squeeze, by_hand)


@pytest.mark.parametrize("preset", [presets.lrp_z(), presets.lrp_epsilon(1e-12), presets.lrp_zplus(start="logit")])
@pytest.mark.parametrize("how", ["linear", "addmm", "conv"])
def test_weights_that_depend_on_the_image_take_their_half(how: str, preset: Preset) -> None:
    layers = {
        "linear": lambda a, b: F.linear(a, b),
        "addmm": lambda a, b: torch.addmm(torch.zeros(3, dtype=torch.float64), a, b.T),
        "conv": lambda a, b: F.conv2d(a[:, :, None, None], b[:, :, None, None]).flatten(1),
    }
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    found = relevance_of(lambda v: layers[how](v[0, 0], v[0, 1])[:1], x, preset)
    expected = torch.zeros_like(x)
    expected[0, 0, 0] = expected[0, 1, 0] = x[0, 0, 0] * x[0, 1, 0] / 2
    torch.testing.assert_close(found, expected)


def test_the_numerator_of_a_quotient_takes_all() -> None:
    x = torch.rand(3, 2, dtype=torch.float64) + 1
    found = relevance_of(lambda v: v[:, :1] / v[:, 1:], x, presets.lrp_z())
    torch.testing.assert_close(found, torch.stack([x[:, 0] / x[:, 1], torch.zeros(3, dtype=torch.float64)], 1))


@pytest.mark.parametrize("how", ["matmul", "einsum", "mul"])
def test_a_product_of_two_activations_is_halved(how: str) -> None:
    x = torch.randn(1, 2, 3, 3, dtype=torch.float64)
    left, right = x[:, 0], x[:, 1]
    if how == "mul":
        found = relevance_of(lambda v: (v[:, 0] * v[:, 1]).flatten(1), x, presets.lrp_z())
        expected = torch.zeros_like(x)
        expected[0, :, 0, 0] = left[0, 0, 0] * right[0, 0, 0] / 2
    else:
        product = {"matmul": lambda a, b: a @ b, "einsum": lambda a, b: torch.einsum("nij,njk->nik", a, b)}[how]
        found = relevance_of(lambda v: product(v[:, 0], v[:, 1]).flatten(1), x, presets.lrp_z())
        expected = torch.zeros_like(x)
        expected[0, 0, 0] = left[0, 0] * right[0, :, 0] / 2
        expected[0, 1, :, 0] = left[0, 0] * right[0, :, 0] / 2
    torch.testing.assert_close(found, expected)


def zplus(x: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """R_i = Σ_j (x_i w_ji)⁺ / Σ_k (x_k w_jk)⁺ R_j, number by number."""
    result = torch.zeros_like(x)
    for n in range(len(x)):
        for j in range(len(weight)):
            positive = (x[n] * weight[j]).clamp(min=0)
            if positive.sum() > 0:
                result[n] += positive / positive.sum() * relevance[n, j]
    return result


def test_zplus_ignores_biases_and_negative_parts() -> None:
    layer, x = nn.Linear(5, 4).double(), torch.randn(3, 5, dtype=torch.float64)
    with torch.no_grad():
        layer.weight[2] = -x[0].sign() * layer.weight[2].abs()  # all contributions of sample 0 are negative here
    for j in range(4):
        passed = run(Whole(layer), x, presets.transformer_attention())
        found = passed.relevance(passed.logits[:, j])
        top = torch.zeros(3, 4, dtype=torch.float64)
        top[:, j] = 1
        torch.testing.assert_close(found, zplus(x, layer.weight.detach(), top))
    passed = run(Whole(layer), x, presets.transformer_attention())
    assert torch.equal(passed.relevance(passed.logits[:, 2])[0], torch.zeros(5, dtype=torch.float64))


def test_a_vanishing_denominator_in_single_precision_counts_as_zero() -> None:
    """Half of the neurons see negative contributions only: their positive part is 0, and rounding noise in practice."""
    first, second = nn.Linear(333, 50), nn.Linear(50, 1)
    x = torch.rand(4, 333) + 0.5
    with torch.no_grad():
        first.weight[:25] = -torch.rand(25, 333)
        noise = (first(x) - first.bias + F.linear(x.abs(), first.weight.abs()))[:, :25]
    assert (noise != 0).any(), "the example must hold rounding noise"
    passed = run(nn.Sequential(first, second), x, presets.transformer_attention())
    hidden = first(x).detach().double()
    top = zplus(hidden, second.weight.detach().double(), torch.ones(4, 1, dtype=torch.float64))
    expected = zplus(x.double(), first.weight.detach().double(), top)
    found = passed.relevance(passed.logits[:, 0]).double()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_a_residual_gives_each_branch_its_share_of_one_samples_relevance() -> None:
    weight = torch.randn(1, 4, dtype=torch.float64).abs()
    x = torch.randn(3, 4, dtype=torch.float64)

    def model(v: Tensor) -> Tensor:
        return F.linear(v + v * 2.5, weight)

    found = relevance_of(model, x, presets.transformer_attention())
    for n in range(3):
        top = zplus(3.5 * x[n : n + 1], weight, torch.ones(1, 1, dtype=torch.float64))[0]
        c = torch.where(x[n] == 0, 0.0, top / (3.5 * x[n]))
        a, b = x[n] * c, 2.5 * x[n] * c
        ratio = top.sum() / (a.sum().abs() + b.sum().abs())
        expected = a * a.sum().sign() * ratio + b * b.sum().sign() * ratio
        torch.testing.assert_close(found[n], expected)


def test_a_weighted_sum_is_not_taken_for_a_residual() -> None:
    weight, x = torch.rand(1, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)
    with pytest.raises(UnsupportedOperationError, match=r"'add' .* weighs its second term \(alpha=2.5\)"):
        relevance_of(lambda v: F.linear(torch.add(v, v, alpha=2.5), weight), x, presets.transformer_attention())


@pytest.mark.parametrize("preset", [presets.lrp_z(), presets.lrp_epsilon(), presets.lrp_epsilon(0.25, relative=True)])
def test_writing_in_place_changes_nothing(preset: Preset) -> None:
    class Tidy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.second, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.norm(self.conv(x - 0.5)))
            y = x + F.silu(self.second(x)) * 2
            y = torch.cat([y[:, :1] * 3, y[:, 1:]], 1)
            return self.head(F.gelu(y).mean((2, 3)))

    class Sloppy(Tidy):
        def forward(self, x: Tensor) -> Tensor:
            x -= 0.5
            x = F.relu(self.norm(self.conv(x)), inplace=True)
            y = self.second(x)
            F.silu(y, inplace=True)
            y *= 2
            y += x
            y[:, :1] = y[:, :1] * 3
            return self.head(F.gelu(y).mean((2, 3)))

    tidy = Tidy().double().eval()
    sloppy = Sloppy().double().eval()
    sloppy.load_state_dict(tidy.state_dict())
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    original = x.clone()
    a, b = (run(net, x, preset) for net in (tidy, sloppy))
    torch.testing.assert_close(a.logits, b.logits)
    torch.testing.assert_close(a.relevance(a.logits[:, 1]), b.relevance(b.logits[:, 1]))
    assert torch.equal(x, original)


def test_an_operation_without_a_rule_is_an_error_with_its_name_and_place() -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x)

    model = nn.Sequential(nn.Linear(4, 4), Odd(), nn.Linear(4, 2)).eval()
    passed = run(model, torch.rand(1, 4), presets.lrp_z())
    with pytest.raises(UnsupportedOperationError, match=r"'exp' in module 1 .*ExpBackward"):
        passed.relevance(passed.logits[:, 0])
    lenient = run(model, torch.rand(1, 4), presets.lrp_z(), strict=False)
    assert torch.isfinite(lenient.relevance(lenient.logits[:, 0])).all()
    assert len(lenient.mode.gaps) == 1


def test_a_sigmoid_that_is_no_gate_is_an_error() -> None:
    with pytest.raises(UnsupportedOperationError, match="gate"):
        relevance_of(lambda v: v.sigmoid(), torch.rand(1, 2), presets.lrp_z())


def test_a_hidden_nonlinearity_inside_a_function_is_found() -> None:
    with pytest.raises(UnsupportedOperationError, match="pairwise_distance"):
        relevance_of(lambda v: F.pairwise_distance(v, v.flip(1))[:, None], torch.rand(1, 2), presets.lrp_z())


def test_a_target_without_influence_is_an_error() -> None:
    passed = run(Whole(lambda v: v.sum(1, keepdim=True) * 0 + v.detach()), torch.rand(1, 2), presets.lrp_z())
    with pytest.raises(UnsupportedModelError, match="detached"):
        passed.per_unit(passed.logits[:, 0], [torch.rand(1, requires_grad=True)])


@pytest.mark.parametrize("build", [lambda: TinyViT(depth=2), TinyCNN], ids=["vit", "cnn"])
@pytest.mark.parametrize(
    "preset",
    [presets.lrp_z(), presets.lrp_epsilon(), presets.lrp_alpha_beta(), presets.transformer_attention(), presets.NOTHING,
     presets.deep_taylor(torch.tensor(-1.0), torch.tensor(2.0))],
)  # fmt: skip
def test_values_are_the_models_own_and_both_ways_back_are_true(build: Callable[[], nn.Module], preset: Preset) -> None:
    """One pass with both ways back: its gradient phase is the plain gradient, whatever the rules."""
    model = build().double().eval()
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64)
    passed = run(model, x, preset, both=True)
    torch.testing.assert_close(passed.logits, model(x))
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    (found,) = passed.per_unit(passed.logits[:, 0], [passed.images], phase="gradient")
    torch.testing.assert_close(found, expected)


def test_a_logit_of_exactly_zero_is_undefined_where_relevance_starts_at_one() -> None:
    passed = run(Whole(lambda v: v - v.detach()), torch.rand(1, 1), presets.lrp_z(start="one"))
    assert passed.relevance(passed.logits[:, 0]).isnan().all()


def test_an_undefined_sample_is_so_in_each_of_its_heads() -> None:
    """Some models fold heads into the batch, sample by sample."""
    folded = _undefined_at(torch.tensor([False, True]), torch.zeros(6, 2, 2))
    assert folded.isnan().flatten(1).all(1).tolist() == [False, False, False, True, True, True]


def pool_between_convolutions() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4 * 169, 2))


@pytest.mark.parametrize(
    "build", [lambda: TinyViT(depth=1), TinyCNN, pool_between_convolutions], ids=["vit", "cnn", "pool"]
)
@pytest.mark.parametrize("name", ["lrp_z", "lrp_epsilon", "lrp_zplus", "deep_taylor"])
def test_a_pass_is_freed_with_its_last_reference(build: Callable[[], nn.Module], name: str) -> None:
    """The graph and the mode do not hold each other: the collector cannot see through the graph."""
    options = (torch.tensor(-1.0), torch.tensor(1.0)) if name == "deep_taylor" else ()
    gc.disable()
    try:
        passed = run(build().eval(), torch.rand(1, 3, 32, 32), getattr(presets, name)(*options))
        mode = weakref.ref(passed.mode)
        del passed
        assert mode() is None
    finally:
        gc.enable()
