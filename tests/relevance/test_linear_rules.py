"""Every rule of linear layers against its formula, one contribution at a time, in Python's own floats."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from heatproof.errors import InputError
from heatproof.relevance import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, Zero, composite, presets, run, z_plus
from heatproof.relevance.linear import AnyRule, FirstRule

LOW, HIGH = -2.5, 3.0

# One neuron sees inputs x with weights w, has the bias b and the value z: the share of R that each input gets.
Shares = Callable[[list[float], list[float], float, float], list[float]]


def positive(value: float) -> float:
    return max(value, 0.0)


def negative(value: float) -> float:
    return min(value, 0.0)


def epsilon(size: float) -> Shares:
    def shares(x: list[float], w: list[float], b: float, z: float) -> list[float]:
        return [xi * wi / (z + (size if z >= 0 else -size)) for xi, wi in zip(x, w, strict=True)]

    return shares


def alpha_beta(alpha: float, beta: float, with_bias: bool = True) -> Shares:
    def shares(x: list[float], w: list[float], b: float, z: float) -> list[float]:
        parts = [xi * wi for xi, wi in zip(x, w, strict=True)]
        b = b if with_bias else 0.0
        up = sum(map(positive, parts)) + positive(b)
        down = sum(map(negative, parts)) + negative(b)
        return [
            (alpha * positive(part) / up if up else 0.0) - (beta * negative(part) / down if down else 0.0)
            for part in parts
        ]

    return shares


def gamma(weight: float) -> Shares:
    def shares(x: list[float], w: list[float], b: float, z: float) -> list[float]:
        with_z = positive if z > 0 else negative
        stressed = [xi * wi + weight * with_z(xi * wi) for xi, wi in zip(x, w, strict=True)]
        return [one / (sum(stressed) + b + weight * with_z(b)) for one in stressed]

    return shares


def z_box(x: list[float], w: list[float], b: float, z: float) -> list[float]:
    parts = [xi * wi - LOW * positive(wi) - HIGH * negative(wi) for xi, wi in zip(x, w, strict=True)]
    return [part / sum(parts) for part in parts]


def w_square(x: list[float], w: list[float], b: float, z: float) -> list[float]:
    return [wi**2 / sum(wj**2 for wj in w) for wi in w]


def flat(x: list[float], w: list[float], b: float, z: float) -> list[float]:
    return [1 / len(w) for _ in w]


RULES: dict[str, tuple[AnyRule, Shares]] = {
    "z": (Zero(), epsilon(0.0)),
    "epsilon": (Epsilon(0.3), epsilon(0.3)),
    "alpha 2 beta 1": (AlphaBeta(), alpha_beta(2, 1)),
    "alpha 3 beta 2": (AlphaBeta(3, 2), alpha_beta(3, 2)),
    "alpha 2 beta 1 without bias": (AlphaBeta(bias=False), alpha_beta(2, 1, with_bias=False)),
    "z plus": (z_plus(), alpha_beta(1, 0)),
    "z plus without bias": (z_plus(bias=False), alpha_beta(1, 0, with_bias=False)),
    "gamma": (Gamma(), gamma(0.25)),
    "gamma 2": (Gamma(2.0), gamma(2.0)),
    "gamma 0": (Gamma(0.0), gamma(0.0)),
    "z box": (ZBox(torch.tensor(LOW), torch.tensor(HIGH)), z_box),
    "w square": (WSquare(), w_square),
    "flat": (Flat(), flat),
}


def neurons(layer: nn.Module, size: tuple[int, int, int]) -> Iterator[tuple[list[int], list[float], float]]:
    """Of each neuron of a dense layer or convolution on images of `size`: the inputs it sees, their weights, its bias."""
    channels, height, width = size
    weight = layer.weight.tolist()
    biases = [0.0] * len(weight) if layer.bias is None else layer.bias.tolist()
    if isinstance(layer, nn.Linear):
        yield from ((list(range(len(row))), row, b) for row, b in zip(weight, biases, strict=True))
        return
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = layer.kernel_size, layer.stride, layer.padding, layer.dilation
    inputs, outputs = channels // layer.groups, len(weight) // layer.groups
    for o, b in enumerate(biases):
        first = o // outputs * inputs
        for y in range(-ph, height + ph - dh * (kh - 1), sh):
            for x in range(-pw, width + pw - dw * (kw - 1), sw):
                seen, weights = [], []
                for c in range(inputs):
                    for i in range(kh):
                        for j in range(kw):
                            row, column = y + i * dh, x + j * dw
                            if 0 <= row < height and 0 <= column < width:
                                seen.append(((first + c) * height + row) * width + column)
                                weights.append(weight[o][c][i][j])
                yield seen, weights, b


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: nn.Linear(40, 7),
    "dense without bias": lambda: nn.Linear(40, 7, bias=False),
    "convolution": lambda: nn.Conv2d(2, 3, 3),
    "padded and strided": lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 1)),
    "grouped and dilated": lambda: nn.Conv2d(2, 4, 2, groups=2, dilation=(1, 2), padding=(0, 2), bias=False),
}


@pytest.mark.parametrize("inputs", ["of both signs", "not negative"])
@pytest.mark.parametrize("layer_name", LAYERS)
@pytest.mark.parametrize("rule_name", RULES)
def test_a_rule_is_its_formula(rule_name: str, layer_name: str, inputs: str) -> None:
    """The layer's outputs and what they receive have both signs; the layer above only hands out `R = z · weight`."""
    rule, shares = RULES[rule_name]
    layer, x = LAYERS[layer_name]().double(), torch.empty(2, 2, 4, 5, dtype=torch.float64).uniform_(LOW, HIGH)
    x = x.relu() if inputs == "not negative" else x
    flatten = [nn.Flatten()] if layer_name.startswith("dense") else []
    below = nn.Sequential(*flatten, layer, nn.Flatten())
    z = below(x).detach()
    above = nn.Linear(z.shape[1], 1, bias=False).double()
    relevance = z * above.weight.detach()[0]
    assert {True, False} == set((z > 0).flatten().tolist()) == set((relevance > 0).flatten().tolist())

    expected = torch.zeros(2, 40, dtype=torch.float64)
    for n in range(2):
        values = x[n].flatten().tolist()
        for j, (seen, weights, bias) in enumerate(neurons(layer, (2, 4, 5))):
            if z[n, j] == 0:  # all that it sees is 0, and so is its relevance
                continue
            for i, share in zip(seen, shares([values[i] for i in seen], weights, bias, float(z[n, j])), strict=True):
                expected[n, i] += share * float(relevance[n, j])
    preset = composite(first=rule, last=Zero())
    passed = run(nn.Sequential(below, above).eval(), x, preset)
    torch.testing.assert_close(passed.relevance(passed.logits[:, 0]).flatten(1), expected, atol=1e-9, rtol=1e-9)
    if isinstance(rule, FirstRule):
        return
    by_kind = run(nn.Sequential(below, above).eval(), x, composite(dense=rule, conv=rule, last=Zero()))
    torch.testing.assert_close(by_kind.relevance(by_kind.logits[:, 0]).flatten(1), expected, atol=1e-9, rtol=1e-9)


PRESETS: dict[str, tuple[Any, Shares, str]] = {
    "lrp_z": (presets.lrp_z, epsilon(0.0), "logit"),
    "lrp_epsilon": (lambda **o: presets.lrp_epsilon(0.3, **o), epsilon(0.3), "logit"),
    "lrp_gamma": (presets.lrp_gamma, gamma(0.25), "logit"),
    "lrp_alpha_beta": (presets.lrp_alpha_beta, alpha_beta(2, 1), "one"),
    "lrp_zplus": (presets.lrp_zplus, alpha_beta(1, 0), "one"),
    "excitation_backprop": (presets.excitation_backprop, alpha_beta(1, 0, with_bias=False), "one"),
    "deep_taylor": (lambda **o: presets.deep_taylor(torch.tensor(LOW), torch.tensor(HIGH), **o), z_box, "one"),
    "lrp_composite": (lambda **o: presets.lrp_composite(Flat(), **o), flat, "logit"),
    "attn_lrp": (presets.attn_lrp, gamma(0.05), "logit"),
    "cp_lrp": (presets.cp_lrp, gamma(0.05), "logit"),
    "transformer_attention": (presets.transformer_attention, alpha_beta(1, 0, with_bias=False), "one"),
    "chefer": (lambda **o: presets.chefer(torch.tensor(LOW), torch.tensor(HIGH), **o), z_box, "one"),
}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_has_its_rule_in_a_dense_layer_and_starts_where_it_must(name: str) -> None:
    """One neuron: its logit, negative in one of two samples, or 1, times the shares."""
    preset, shares, start = PRESETS[name]
    layer, x = nn.Linear(4, 2).double(), torch.tensor([[2.0, 0.5, -1.0, 1.5]]).double()
    with torch.no_grad():
        layer.weight[1] = torch.tensor([1.0, -2.0, 0.5, 0.75])
        layer.bias[1] = 0.1
    x = torch.cat([x, -x])
    logits = layer.requires_grad_(False)(x)
    assert logits[:, 1].tolist() == pytest.approx([1.725, -1.525])
    for options, expected_start in (({}, start), ({"start": "logit"}, "logit"), ({"start": "one"}, "one")):
        passed = run(layer, x, preset(**options))
        found = passed.relevance(passed.logits[:, 1])
        for n in range(2):
            z = float(logits[n, 1])
            given = shares(x[n].tolist(), layer.weight[1].tolist(), float(layer.bias[1]), z)
            expected = [share * (z if expected_start == "logit" else 1.0) for share in given]
            torch.testing.assert_close(found[n].tolist(), expected, atol=1e-9, rtol=1e-9)


def test_the_composite_has_epsilon_in_dense_layers_and_gamma_in_convolutions() -> None:
    """Three layers with a rule each, as in the definition; ε is large enough to be seen."""
    net = nn.Sequential(nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Conv2d(3, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2))
    net, x = net.double().eval(), torch.rand(1, 2, 4, 5, dtype=torch.float64)
    relevance = [net(x)[0, 1].item()]
    layers: list[tuple[int, Tensor, Shares]] = [
        (5, net[:5](x), epsilon(0.2)),
        (2, net[:2](x), gamma(0.7)),
        (0, x, w_square),
    ]
    for index, below, shares in layers:
        size = (3, 3, 4) if index == 2 else (2, 4, 5)
        values, z = below.flatten().tolist(), net[: index + 1](x).flatten().tolist()
        received = [0.0] * len(values)
        of_layer = [*neurons(net[index], size)]
        above = list(zip(of_layer[1:] if index == 5 else of_layer, z[1:] if index == 5 else z, relevance, strict=True))
        for (seen, weights, bias), value, given in above:
            for i, share in zip(seen, shares([values[i] for i in seen], weights, bias, value), strict=True):
                received[i] += share * given
        relevance = received
    passed = run(net, x, presets.lrp_composite(WSquare(), gamma=0.7, epsilon=0.2))
    torch.testing.assert_close(passed.relevance(passed.logits[:, 1]).flatten().tolist(), relevance)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Epsilon(-0.1), "epsilon must be a number, at least 0, got -0.1"),
        (lambda: Gamma(-1), "gamma must be a number, at least 0, got -1"),
        (lambda: AlphaBeta(2, 2), "alpha - beta must be 1, got alpha=2, beta=2"),
        (lambda: AlphaBeta(0.5, -0.5), "alpha must be a number, at least 1, got 0.5"),
    ],
)
def test_rules_refuse_parameters_that_mean_nothing(make: Callable[[], AnyRule], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
