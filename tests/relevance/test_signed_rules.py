"""LRP-αβ and z⁺ against their formula with clamped copies, contribution by contribution, in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.errors import UnsupportedOperationError
from heatproof.relevance import Preset, layers, presets, rules, run
from heatproof.relevance.layers import Layer
from support.nets import TinyCNN

Function = Callable[[Tensor], Tensor]
RULES = [(2.0, 1.0), (1.0, 0.0), (1.5, 0.5)]


def relevance_of(function: Function, x: Tensor, preset: Preset, index: int) -> Tensor:
    class Whole(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return function(images)

    passed = run(Whole().eval(), x, preset)
    return passed.relevance(passed.logits[:, index])


def as_matrix(function: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """Weights `[J, I]` and biases `[J]` of an affine function of one sample."""
    zero = torch.zeros_like(x[:1])
    bias = function(zero).flatten()
    columns = []
    for i in range(zero.numel()):
        unit = zero.clone()
        unit.view(-1)[i] = 1
        columns.append(function(unit).flatten() - bias)
    return torch.stack(columns, 1).detach(), bias.detach()


def alpha_beta(x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor, alpha: float, beta: float) -> Tensor:
    """`Σ_j [α (x_i w_ji)⁺ / P_j − β (x_i w_ji)⁻ / N_j] R_j` for x `[N, I]` and R `[N, J]`; an empty part gives nothing."""
    result = torch.zeros_like(x)
    for n in range(len(x)):
        for j in range(len(weight)):
            contributions = x[n] * weight[j]
            for part, end, share in (("min", 0.0, alpha), ("max", 0.0, -beta)):
                signed = contributions.clamp(**{part: end})
                total = signed.sum() + bias[j].clamp(**{part: end})
                if total.abs() > 1e-12:
                    result[n] += share * signed / total * relevance[n, j]
    return result


def one_at(index: int, z: Tensor) -> Tensor:
    top = torch.zeros_like(z)
    top[:, index] = 1
    return top


def product_with(shape: tuple[int, ...], function: Callable[[Tensor, Tensor], Tensor]) -> Function:
    constant = torch.randn(shape, dtype=torch.float64)
    return lambda v: function(v, constant)


def one_dimensional(conv: nn.Conv1d) -> Function:
    conv.double()
    return lambda v: conv(v.flatten(2))


LAYERS: dict[str, Callable[[], Function]] = {
    "dense": lambda: nn.Linear(50, 4).double(),
    "dense without bias": lambda: nn.Linear(50, 4, bias=False).double(),
    "matrix product": lambda: product_with((50, 4), lambda v, w: v.flatten(1) @ w),
    "addmm": lambda: product_with((51, 4), lambda v, w: torch.addmm(w[0], v.flatten(1), w[1:])),
    "einsum": lambda: product_with((4, 50), lambda v, w: torch.einsum("ni,ji->nj", v.flatten(1), w)),
    "einsum of two constants": lambda: product_with(
        (4, 51), lambda v, w: torch.einsum("ni,ji,j->nj", v.flatten(1), w[:, :50], w[:, 50])
    ),
    "convolution": lambda: nn.Conv2d(2, 4, 3, padding=1).double(),
    "strided": lambda: nn.Conv2d(2, 4, 3, stride=2, padding=2, dilation=2).double(),
    "grouped": lambda: nn.Conv2d(2, 4, (3, 2), groups=2).double(),
    "same": lambda: nn.Conv2d(2, 4, 3, padding="same").double(),
    "transposed": lambda: nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1).double(),
    "one-dimensional": lambda: one_dimensional(nn.Conv1d(2, 3, 5, stride=3)),
    "average pool": lambda: lambda v: F.avg_pool2d(v, 2, stride=1, padding=1),
    "adaptive pool": lambda: lambda v: F.adaptive_avg_pool2d(v, (2, 3)),
    "mean": lambda: lambda v: v.mean((2, 3)),
    "sum": lambda: lambda v: v.sum(3).flatten(1),
    "sum of branches": lambda: lambda v: v[:, 0] + v[:, 1].flip(1).transpose(1, 2),
    "sum with alpha": lambda: lambda v: torch.add(v[:, :1], v[:, 1:], alpha=-3),
    "difference": lambda: lambda v: v[:, :1] - v[:, 1:],
    "broadcast sum": lambda: lambda v: v[:, :1] + v[:, 1:, 2:3],
    "added constant": lambda: product_with((5, 5), lambda v, c: v + c),
    "subtracted constant": lambda: product_with((5, 5), lambda v, c: v - c),
    "subtracted from a number": lambda: lambda v: 0.7 - v,
    "number added": lambda: lambda v: 0.4 + v,
}


@pytest.mark.parametrize(("alpha", "beta"), RULES)
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("least", [-math.inf, 0])
def test_a_linear_operation_is_its_matrix(least: float, name: str, alpha: float, beta: float) -> None:
    """Weights and biases of both signs, inputs of both or none below 0; the top layer has both signs too, so that R does."""
    function = LAYERS[name]()
    flatten = (lambda v: v.flatten(1)) if name.startswith("dense") else (lambda v: v)
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64).clamp(min=least)
    layer = lambda v: function(flatten(v)).flatten(1)  # noqa: E731
    weight, bias = as_matrix(layer, x)
    z = layer(x).detach()
    head = torch.randn(3, z.shape[1], dtype=torch.float64)
    top = alpha_beta(z, head, torch.zeros(3).double(), one_at(1, torch.zeros(3, 3).double()), alpha, beta)
    expected = alpha_beta(x.flatten(1), weight, bias, top, alpha, beta)
    found = relevance_of(lambda v: F.linear(layer(v), head), x, presets.lrp_alpha_beta(alpha, beta), 1)
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_is_what_it_says(name: str) -> None:
    """`z = L x + b`, `|L|` has the size of every weight, and both are transposed rightly."""
    function, x, seen = LAYERS[name](), torch.randn(2, 2, 5, 5, dtype=torch.float64), []
    flatten = (lambda v: v.flatten(1)) if name.startswith("dense") else (lambda v: v)

    def look(layer: Layer, c: Tensor, z: Tensor) -> list[Tensor]:
        seen.append((layer, z))
        return layer.transposed(c)

    rule = {**dict.fromkeys(presets._WEIGHTED, rules.weighted(look)),
            **dict.fromkeys(presets._SUMMING, rules.in_full(layers.summing, look)),
            **dict.fromkeys(("add", "sub"), rules.in_full(layers.additive, look))}  # fmt: skip
    relevance_of(lambda v: function(flatten(v)).flatten(1), x, Preset("looking", rule), 1)
    ((layer, z),) = seen
    bias = torch.zeros(()) if layer.bias is None else layer.bias
    torch.testing.assert_close(layer.product(layer.values, lambda w: w) + bias, z)
    inputs = [torch.rand_like(value) for value in layer.values]
    s = torch.randn_like(z)
    absolute, pull = layer.weighing(torch.abs, inputs)
    for product, pulled in ((absolute, pull(s)), (layer.product(inputs, lambda w: w), layer.transposed(s))):
        torch.testing.assert_close((product * s).sum(), sum((p * x).sum() for p, x in zip(pulled, inputs, strict=True)))
    assert (absolute >= layer.product(inputs, lambda w: w).abs() - 1e-12).all()


def test_zplus_is_alpha_one_beta_zero_and_the_start_scales() -> None:
    net, x = TinyCNN().eval(), torch.randn(2, 3, 16, 16)
    one = relevance_of(net, x, presets.lrp_zplus(), 1)
    torch.testing.assert_close(one, relevance_of(net, x, presets.lrp_alpha_beta(1, 0), 1))
    logit = net(x)[:, 1].detach().view(-1, 1, 1, 1)
    torch.testing.assert_close(relevance_of(net, x, presets.lrp_zplus(start="logit"), 1), one * logit)


def trained(norm: nn.Module) -> nn.Module:
    for tensor, low, high in (
        (norm.running_mean, -1, 1),
        (norm.running_var, 0.5, 2),
        (norm.weight, -2, 2),
        (norm.bias, -1, 1),
    ):
        nn.init.uniform_(tensor, low, high)
    return norm.double().eval()


class ProductOfWeights(nn.Module):
    """A layer whose weights stand in two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ni,ji,j->nj", x, self.weight, self.scale)


@pytest.mark.parametrize(("alpha", "beta"), RULES)
@pytest.mark.parametrize("kind", ["conv", "transposed", "dense", "product of weights"])
@pytest.mark.parametrize("least", [-math.inf, 0])
def test_batch_norm_after_a_layer_is_part_of_it(least: float, kind: str, alpha: float, beta: float) -> None:
    layer, norm, x = {
        "conv": lambda: (nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), torch.randn(3, 2, 5, 5)),
        "transposed": lambda: (nn.ConvTranspose2d(2, 4, 3), nn.BatchNorm2d(4), torch.randn(3, 2, 5, 5)),
        "dense": lambda: (nn.Linear(6, 4), nn.BatchNorm1d(4), torch.randn(3, 6)),
        "product of weights": lambda: (ProductOfWeights(), nn.BatchNorm1d(4), torch.randn(3, 6)),
    }[kind]()
    layer, norm, x = layer.double(), trained(norm), x.double().clamp(min=least)
    both = lambda v: norm(layer(v)).flatten(1)  # noqa: E731
    expected = alpha_beta(x.flatten(1), *as_matrix(both, x), one_at(2, both(x).detach()), alpha, beta)
    found = relevance_of(both, x, presets.lrp_alpha_beta(alpha, beta), 2)
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize(("alpha", "beta"), RULES)
@pytest.mark.parametrize("where", ["alone", "after a pool", "after a read layer"])
def test_any_other_batch_norm_is_a_layer_of_its_own(where: str, alpha: float, beta: float) -> None:
    """After a concatenation, a pool, or a convolution that something else reads too."""
    norm, x = trained(nn.BatchNorm2d(4)), torch.randn(3, 4, 4, 4, dtype=torch.float64)
    conv = nn.Conv2d(4, 4, 1).double()
    first: Function = {"alone": lambda v: torch.cat([v[:, :2], v[:, 2:]], 1), "after a pool": lambda v: F.avg_pool2d(v, 2),
                       "after a read layer": conv}[where]  # fmt: skip

    def model(v: Tensor) -> Tensor:
        z = first(v)
        normed = norm(z).flatten(1)
        return torch.cat([normed, z.flatten(1)], 1) if where == "after a read layer" else normed

    z = first(x).detach()
    by_norm = alpha_beta(z.flatten(1), *as_matrix(norm, z), one_at(5, norm(z).detach().flatten(1)), alpha, beta)
    matrix = (
        (torch.eye(x[0].numel()).double(), torch.zeros(x[0].numel()).double())
        if where == "alone"
        else as_matrix(first, x)
    )
    expected = by_norm if where == "alone" else alpha_beta(x.flatten(1), *matrix, by_norm, alpha, beta)
    found = relevance_of(model, x, presets.lrp_alpha_beta(alpha, beta), 5)
    torch.testing.assert_close(found.flatten(1), expected, atol=1e-10, rtol=1e-9)


def test_relative_epsilon_is_a_share_of_the_merged_layer() -> None:
    conv, norm = nn.Conv2d(2, 4, 3).double(), trained(nn.BatchNorm2d(4))
    x = torch.randn(3, 2, 5, 5, dtype=torch.float64)
    both = lambda v: norm(conv(v)).flatten(1)  # noqa: E731
    weight, _ = as_matrix(both, x)
    z = both(x).detach()
    found = relevance_of(both, x, presets.lrp_epsilon(0.25, relative=True), 7)
    for n in range(3):
        stabilized = z[n, 7] + 0.25 * z[n].abs().mean() * (1 if z[n, 7] >= 0 else -1)
        torch.testing.assert_close(found[n].flatten(), x[n].flatten() * weight[7] * z[n, 7] / stabilized)


def test_a_sample_without_activity_receives_nothing() -> None:
    """All its denominators are 0; the sample beside it is explained as ever."""
    layer = nn.Linear(6, 3, bias=False).double()
    x = torch.stack([torch.zeros(6), torch.rand(6)]).double()
    for preset in (presets.lrp_epsilon(0.25, relative=True), presets.lrp_gamma(), presets.lrp_zplus(start="logit")):
        found = relevance_of(layer, x, preset, 1)
        assert (found[0] == 0).all()
        torch.testing.assert_close(found[1:], relevance_of(layer, x[1:], preset, 1))


def test_a_constant_factor_passes_relevance_as_it_is() -> None:
    """So an attention that scales its queries and one that scales its scores give the same maps."""
    layer, x = nn.Linear(6, 3).double(), torch.randn(3, 6, dtype=torch.float64)
    plain = relevance_of(layer, x, presets.lrp_alpha_beta(), 1)
    torch.testing.assert_close(relevance_of(lambda v: layer(v) * -0.3 / 7, x, presets.lrp_alpha_beta(), 1), plain)


@pytest.mark.parametrize("rules", [presets.lrp_alpha_beta(), presets.lrp_zplus(), presets.lrp_epsilon(0.1)])
def test_writing_in_place_changes_nothing(rules: Preset) -> None:
    conv, second, norm = nn.Conv2d(2, 4, 3, padding=1).double(), nn.Conv2d(4, 4, 1).double(), trained(nn.BatchNorm2d(4))

    def tidy(v: Tensor) -> Tensor:
        a = F.relu(norm(conv(v - 0.3)))
        return F.relu(second(a) + a).mean((2, 3))

    def sloppy(v: Tensor) -> Tensor:
        v -= 0.3
        a = F.relu(norm(conv(v)), inplace=True)
        v *= 0  # nobody reads it any more
        b = second(a)
        b += a
        a *= 5
        return b.relu_().mean((2, 3))

    x = torch.randn(2, 2, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(relevance_of(sloppy, x, rules, 1), relevance_of(tidy, x, rules, 1))


def test_what_has_no_rule_is_refused() -> None:
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    batch = nn.BatchNorm2d(3, track_running_stats=False).double().eval()
    for preset in (presets.lrp_zplus(), presets.lrp_z(), presets.lrp_epsilon()):
        with pytest.raises(UnsupportedOperationError, match="statistics from the batch"):
            relevance_of(lambda v: batch(v).mean((2, 3)), x, preset, 0)
    with pytest.raises(UnsupportedOperationError, match="'linear' .* bias that depends on the image"):
        relevance_of(lambda v: F.linear(v[0, 0], v[0, 1], v[0, 2, 0]), x, presets.lrp_zplus(), 0)
    with pytest.raises(UnsupportedOperationError, match="'exp'"):
        relevance_of(lambda v: v.exp().mean((2, 3)), x, presets.lrp_zplus(), 0)
