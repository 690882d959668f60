"""What constants absorb and what vanishing denominators create or lose, apart from what the rules hand to inputs."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace

import torch
from torch import Tensor

from heatproof.relevance import rules
from heatproof.relevance.layers import Layer
from heatproof.relevance.linear import (
    VANISHING,
    AlphaBeta,
    AnyRule,
    Epsilon,
    FirstRule,
    Flat,
    WSquare,
    ZBox,
    safe_divide,
)
from heatproof.relevance.mode import Rule

# (a constant's part of the value, the value, c) -> the relevance that the constant absorbs, or None
Share = Callable[[Tensor, Tensor, Tensor], Tensor | None]


def relevance(value: Tensor, c: Tensor) -> Tensor:
    """`value · c` in float64; a masked score of −∞ has none."""
    return torch.where(c == 0, 0.0, value.double() * c.double())


def by_value(constant: Tensor, value: Tensor, c: Tensor) -> Tensor:  # noqa: ARG001 a Share
    """A term of a sum has its own share of what the sum has."""
    return relevance(constant, c)


def by_ratio(constant: Tensor, value: Tensor, c: Tensor) -> Tensor:
    """Of Chefer's sum of two branches: the share of ΣR that |Σ b·c| has, over sums that are not 0."""
    c = torch.where(value == 0, 0.0, c)
    whole, own = relevance(value, c).sum(), relevance(constant, c).sum()
    return own.abs() * safe_divide(whole, own.abs() + (whole - own).abs())


def nothing(constant: Tensor, value: Tensor, c: Tensor) -> None:
    """The operation has no sum that a constant could be a term of."""


BY_RULE: dict[Rule | None, Share] = {
    rules.gradient: nothing,  # of softmax: what it does not pass on is lost
    rules.unchanged: nothing,
    rules.residual_by_ratio: by_ratio,
}
"""The shares of constants under a rule of operations; under any other, `by_value`."""


def of_bias(rule: AnyRule, layer: Layer, c: Tensor, z: Tensor) -> Tensor | None:
    """What a layer's bias absorbs: the rule is asked once more, with the bias as one more input, of weight 1."""
    if layer.bias is None or isinstance(rule, FirstRule) or not getattr(rule, "bias", True):
        return None
    bias = layer.bias.expand_as(z)
    wider = replace(
        layer,
        inputs=[*layer.inputs, bias],
        values=[*layer.values, bias],
        bias=None,
        factors=None if layer.factors is None else [*layer.factors, 1.0],
        product=lambda tensors, of_weights: (
            layer.product(tensors[:-1], of_weights) + tensors[-1] * of_weights(torch.ones_like(z[:1]))
        ),
        transposed=lambda s: [*layer.transposed(s), s],
    )
    c_bias = rule(wider, c, z)[-1]
    return None if c_bias is None else relevance(bias, c_bias)


def of_stabilizer(rule: AnyRule, c: Tensor, z: Tensor) -> Tensor | None:
    """What ε keeps: `R ε / (|z| + ε)`."""
    if not isinstance(rule, Epsilon) or rule.epsilon == 0:
        return None
    size = z.abs().flatten(1).mean(1).view(-1, *[1] * (z.ndim - 1)) if rule.relative else torch.ones_like(z)
    return relevance(z, c) * safe_divide(rule.epsilon * size, z.abs() + rule.epsilon * size)


def at_vanished(rule: AnyRule, layer: Layer, c: Tensor, z: Tensor) -> tuple[int, float]:
    """How many neurons with relevance have a denominator counting as 0, and what they create (negative: lose)."""
    received = relevance(z, c)
    vanished, passed = torch.zeros_like(z, dtype=torch.bool), torch.zeros_like(received)
    denominators = _denominators(rule, layer, z)
    for share, denominator, terms in denominators:
        zero = denominator.abs() <= VANISHING * terms
        vanished |= zero & (received != 0)
        passed += torch.where(zero, 0.0, share * received)
    created = (passed - received)[vanished]
    return int(vanished.sum()), float(created.sum())


def _denominators(rule: AnyRule, layer: Layer, z: Tensor) -> list[tuple[float, Tensor, Tensor]]:
    """The parts in which a rule shares out each neuron's relevance: (share, denominator, sum of its terms' sizes)."""
    ones = [torch.ones_like(x) for x in layer.values]
    if isinstance(rule, WSquare | Flat):
        total = layer.product(ones, torch.square if isinstance(rule, WSquare) else torch.ones_like)
        return [(1.0, total, total)]
    if isinstance(rule, ZBox) and layer.view is not None:
        low, high = layer.view.limits
        size = layer.product([(high - low) / 2], torch.abs)
        centred = layer.product([layer.values[0] - (low + high) / 2], lambda weights: weights)
        return [(1.0, centred + size, centred.abs() + size)]
    if not isinstance(rule, AlphaBeta):  # that of γ and ε is at least |z|
        return []
    size = layer.product([x.abs() for x in layer.values], torch.abs)
    shift = torch.zeros_like(z) if layer.bias is None else layer.bias.expand_as(z)
    terms = size + z.abs() + shift.abs()
    total, size = (z, size + shift.abs()) if rule.bias else (z - shift, size)
    parts = ((rule.alpha, (total + size) / 2), (-rule.beta, (total - size) / 2))
    return [(share, part, terms) for share, part in parts if share]


def operation_rule_name(rule: Rule | None) -> str:
    """How to call the rule of an operation; a rule with options by the function that made it."""
    if rule is None:
        return "ordinary gradient"
    return str(getattr(rule, "__qualname__", type(rule).__name__)).partition(".")[0]


def rule_name(rule: AnyRule) -> str:
    """How to call the rule of a layer: its class and the numbers it was made with."""
    options: dict[str, object] = {f.name: getattr(rule, f.name) for f in fields(rule)} if is_dataclass(rule) else {}
    shown = ", ".join(f"{name}={value}" for name, value in options.items() if not isinstance(value, Tensor))
    return f"{getattr(rule, '__name__', type(rule).__name__)}({shown})"
