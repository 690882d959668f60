"""The rules, one small function each, in the form `c = R / x`.

A rule gets the operation that is about to run and returns its value, made so that relevance goes back through it as the
rule says. Every value is the model's own.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from heatproof.errors import UnsupportedOperationError
from heatproof.relevance import layers, norms, routing
from heatproof.relevance.layers import Layer
from heatproof.relevance.linear import AnyRule, FirstRule, LinearRule, Zero, is_pointwise, safe_divide
from heatproof.relevance.mode import Call, Preset, Rule
from heatproof.tracing import is_live, live_tensors, map_tensors

# f'(0) of the activations with f(0) = 0, the limit of f(x) / x
ACTIVATIONS_AT_ZERO = {
    "gelu": 0.5,
    "silu": 0.5,
    "mish": 0.6,
    "hardswish": 0.5,
    "tanh": 1.0,
    "elu": 1.0,
    "celu": 1.0,
    "selu": 1.0507009873554805,
    "softsign": 1.0,
    "tanhshrink": 0.0,
    "hardshrink": 0.0,
    "softshrink": 0.0,
    "erf": 1.1283791670955126,
    **dict.fromkeys(("sin", "tan", "asin", "atan", "sinh", "asinh", "atanh", "expm1", "log1p"), 1.0),
}


def gradient(call: Call) -> Tensor:
    """The ordinary gradient, on purpose (softmax: the first order of its Taylor expansion)."""
    return call.run()  # type: ignore[no-any-return]


def divide_by_input(call: Call) -> Tensor:
    """An activation with f(0) = 0 keeps its relevance: `c_x = c · f(x) / x`."""
    x = call.keep(call.args[0])
    at_zero = ACTIVATIONS_AT_ZERO[call.operation.name]
    return call.route([call.args[0]], lambda c, value: [(value / x).masked_fill_(x == 0, at_zero).mul_(c)])


def weighted(rule: LinearRule) -> Rule:
    """`rule` for dense layers, convolutions and matrix products with constants, or the preset's own one for their place.

    Where the weights depend on the image too, it is a product of two activations and each takes half.
    """

    def apply(call: Call) -> Any:
        if call.operation.name == "einsum" and _only_moves(call.args[0]):
            return call.run()
        layer = layers.weighted(call)
        if layer is None:
            return split_evenly(call)
        mode = call.mode
        layer.view = mode.view_of(layer.inputs[0])
        layer.path = mode.module_path() if mode.preset.modules else ""
        return mode.remember(mode.through(layer, ByPlace(rule, mode.preset)), layer)

    return apply


def _only_moves(equation: Any) -> bool:
    """Whether an `einsum` of one operand keeps each of its axes."""
    given, arrow, result = equation.partition("->") if isinstance(equation, str) else ("", "", "")
    return bool(arrow) and "," not in given and set(given) <= set(result)


def dense_or_product(rule: LinearRule) -> Rule:
    """`weighted` for a product with a matrix; one with more axes is of activations, even where one of them is constant."""
    dense = weighted(rule)

    def apply(call: Call) -> Any:
        constants = [t for t in call.args if isinstance(t, Tensor) and not is_live(t)]
        return dense(call) if all(t.ndim <= 2 for t in constants) else split_evenly(call)

    return apply


def resampling(rule: LinearRule | None) -> Rule:
    """Interpolation and sampling at given places are sums with weights that are not negative, except bicubic ones.

    With no `rule` they are their own gradient. Places that depend on the image are refused.
    """

    def apply(call: Call) -> Any:
        if any(is_live(place) for place in call.args[1:]):
            return call.mode.refuse(call, call.run(), "takes its samples at places that depend on the image,")
        if rule is None or call.kwargs["mode"].startswith("nearest"):  # which only moves values
            return call.run()
        if call.kwargs["mode"] == "bicubic":
            return call.mode.refuse(call, call.run(), "has weights of both signs (bicubic),")
        return in_full(layers.summing, rule)(call)

    return apply


def accumulating(rule: LinearRule) -> Rule:
    """Numbers added into others at some places are a layer of sums; where they replace what was there, they only move."""
    added = in_full(layers.accumulating, rule)

    def apply(call: Call) -> Any:
        adds = call.operation.name != "index_put" or (call.args[3:4] or (call.kwargs.get("accumulate", False),))[0]
        return added(call) if adds else call.run()

    return apply


def in_full(build: Callable[[Call], Layer], rule: LinearRule) -> Rule:
    """`rule` for an operation that is linear without weights of its own (sums, means), as `build` sees it."""
    return lambda call: call.mode.through(build(call), rule)


def batch_norm(merged: Callable[[Layer], LinearRule], alone: LinearRule) -> Rule:
    """Batch norm as part of the layer before it, under that layer's rule, where nothing else reads that layer.

    `merged` gives the usual rule of such a layer. Any other batch norm is a layer of its own, with one weight a channel,
    under the rule `alone`.
    """

    def apply(call: Call) -> Any:
        x, norm = call.args[0], _statistics(call)
        if norm.mean is None or norm.variance is None:
            return call.mode.refuse(call, call.run(), "takes its statistics from the batch,")
        if call.mode.made_by(x) is None and isinstance(alone, Zero):
            return call.run()
        scale = torch.rsqrt(norm.variance + norm.eps) * (1 if norm.weight is None else norm.weight)
        shift = -norm.mean * scale + (0 if norm.bias is None else norm.bias)
        axes = (-1, *[1] * (x.ndim - 2))
        scale, shift = scale.view(axes), shift.view(axes)
        layer, before = layers.diagonal(call, scale, shift), call.mode.made_by(x)
        if before is None:
            return call.mode.through(layer, alone)
        whole = before.scaled(scale, shift)
        back = Merged(before, whole, ByPlace(merged(before), call.mode.preset), alone)
        value = call.mode.through(layer, back, *whole.targets)
        if not before.uses:
            before.forget(layer)
        return call.mode.merged(value, whole)

    return apply


def fixed_batch_norm(call: Call) -> Any:
    """Batch norm in evaluation mode is its own gradient; with statistics from the batch it is not linear."""
    if _statistics(call).mean is None:
        return call.mode.refuse(call, call.run(), "takes its statistics from the batch,")
    return call.run()


def instance_norm(with_statistics: Rule) -> Rule:
    """A group norm with one channel a group; with running statistics it is a batch norm, `with_statistics`."""

    def apply(call: Call) -> Any:
        norm = _statistics(call)
        if norm.mean is None:
            return norms.instance_norm(call, norm.weight, norm.eps)
        return with_statistics(call)

    return apply


class _Statistics(NamedTuple):
    """What a batch or instance norm works with; no mean where it takes its statistics from its input."""

    mean: Tensor | None
    variance: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    eps: float


def _statistics(call: Call) -> _Statistics:
    names: tuple[str, ...] = ("running_mean", "running_var", "weight", "bias")
    if inspect.isbuiltin(call.operation.function):  # torch.batch_norm, unlike that of torch.nn.functional
        names = ("weight", "bias", "running_mean", "running_var")
    flag, from_input = ("training", False) if call.operation.name == "batch_norm" else ("use_input_stats", True)
    given = dict(zip((*names, flag, "momentum", "eps"), call.args[1:], strict=False)) | call.kwargs
    mean, variance = given.get("running_mean"), given.get("running_var")
    if given.get(flag, from_input):
        mean = variance = None
    return _Statistics(mean, variance, given.get("weight"), given.get("bias"), given.get("eps", 1e-5))


@dataclass(frozen=True, eq=False)
class ByPlace:
    """The rule that a weighted layer has by its place, `usual` where it has none."""

    usual: LinearRule
    preset: Preset

    @property
    def pointwise(self) -> bool:
        """Whether every rule is that the layer can get."""
        own = (self.preset.first, self.preset.last, *self.preset.modules.values())
        return all(is_pointwise(rule) for rule in (self.usual, *own) if rule is not None)

    def choose(self, layer: Layer) -> tuple[AnyRule, Layer]:
        """The rule, and the layer that it is applied to."""
        return self.preset.rule_for(layer, self.usual), layer

    def __call__(self, layer: Layer, c: Tensor, z: Tensor) -> Sequence[Tensor | None]:
        """`c_x` of each input, or the relevance that goes straight to the image."""
        rule, _ = self.choose(layer)
        if not isinstance(rule, FirstRule):
            return [*_where_relevance_comes(rule, layer, c, z), *[None] * (len(layer.targets) - len(layer.inputs))]
        if layer.view is None:
            raise UnsupportedOperationError(
                f"The preset {self.preset.name!r} gives {type(rule).__name__} to the module {layer.path!r}, which does not "
                "see the image itself. That rule is for first layers: give the module another one."
            )
        return [*[None] * len(layer.inputs), rule.relevance(layer, c, z)]


def _where_relevance_comes(rule: LinearRule, layer: Layer, c: Tensor, z: Tensor) -> Sequence[Tensor | None]:
    """`rule(layer, c, z)`, for some tokens only where no relevance comes to the others, as below a class token."""
    if not (layer.tokenwise and is_pointwise(rule)) or c.ndim < 3 or c[0, -1].any():
        return rule(layer, c, z)
    reached = (c != 0).any(-1)
    if 2 * int(reached.sum()) > reached.numel():
        return rule(layer, c, z)
    found = rule(layer.of_tokens(reached), c[reached], z[reached])
    return [
        None if part is None else torch.zeros_like(x).index_put_((reached,), part)
        for part, x in zip(found, layer.values, strict=True)
    ]


@dataclass(frozen=True, eq=False)
class Merged:
    """A norm as part of the layer `before` it, both being `whole`; `alone` where something else reads that layer."""

    before: Layer
    whole: Layer
    together: ByPlace
    alone: LinearRule

    @property
    def pointwise(self) -> bool:
        """Whether both rules are."""
        return self.together.pointwise and is_pointwise(self.alone)

    def choose(self, layer: Layer) -> tuple[AnyRule, Layer]:
        """The rule, and the layer that it is applied to."""
        return self.together.choose(self.whole) if self.before.uses == 1 else (self.alone, layer)

    def __call__(self, layer: Layer, c: Tensor, z: Tensor) -> Sequence[Tensor | None]:
        """Nothing for the norm's input and `c_x` of the layer's, or the other way round."""
        if self.before.uses == 1:
            return [None, *self.together(self.whole, c, z)]
        return [*self.alone(layer, c, z), *[None] * len(self.whole.targets)]


def resolved(back: LinearRule, layer: Layer) -> tuple[AnyRule, Layer]:
    """The rule behind `back` for this layer, and the layer that it is applied to."""
    return back.choose(layer) if isinstance(back, ByPlace | Merged) else (back, layer)


def guided(call: Call) -> Tensor:
    """A ReLU that was active passes the positive part of the gradient [springenberg2015striving]."""
    return _instead_of_gradient(call, lambda c, value: c.clamp(min=0) * (value > 0))


def deconvolved(call: Call) -> Tensor:
    """A ReLU passes the positive part of what comes back, active or not [zeiler2014visualizing]."""
    return _instead_of_gradient(call, lambda c, _: c.clamp(min=0))


def _instead_of_gradient(call: Call, backward: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The operation's value; `backward(c, value)` goes back to its input on either way back."""
    with torch.no_grad():
        value = call.run()
    kept = call.keep(value)
    back = lambda c: [backward(c, kept)]  # noqa: E731
    return routing.route(value, call.args[:1], back, call.mode.phase, gradient=back)


def split_evenly(call: Call) -> Any:
    """A product of n activations gives each the n-th part of its relevance; a bias that depends on the image is refused."""
    operands = list(call.args)
    bias = operands.pop(0) if call.operation.name == "addmm" else call.kwargs.get("bias")
    if call.operation.name in ("linear", "conv", "conv_transpose") and len(operands) > 2:
        bias = operands[2]
    count = sum(1 for _ in live_tensors((operands, call.kwargs)))
    if is_live(bias):
        return call.mode.refuse(call, call.run(), "has a bias that depends on the image,")
    if count < 2:
        return call.run()
    share = lambda tensor: call.scale(tensor, 1 / count) if is_live(tensor) else tensor  # noqa: E731
    args, kwargs = map_tensors(share, (call.args, call.kwargs))
    return call.operation.pure(*args, **kwargs)


def product(call: Call) -> Any:
    """A gate is a constant for the factor that it multiplies; other products are split evenly."""
    a, b = call.args[:2]
    if is_live(a) and is_live(b):
        gates = [call.mode.marks.of(factor) == "gate" for factor in (a, b)]
        if gates[0] != gates[1]:
            return call.run(*((a.detach(), b) if gates[0] else (a, b.detach())))
    return split_evenly(call)


def gate(call: Call) -> Tensor:
    """A sigmoid is a gate: relevance reaches it only where it is not used as one, and that is an error."""
    value: Tensor = call.mode.refuse(call, call.run(), "is used as more than a gate (f(0) is not 0),")
    call.mode.marks.set(value, "gate")
    return value


def odd_sigmoid(call: Call) -> Tensor:
    """An activation with f(0) = 0, of which 1 + f is a gate (GELU and SiLU by hand)."""
    value = divide_by_input(call)
    call.mode.marks.set(value, "odd sigmoid")
    return value


def divisor_is_constant(call: Call) -> Tensor:
    """A quotient: the numerator takes all."""
    if call.operation.reflected:  # 2 / x arrives as (x, 2)
        return constant(call)
    numerator, divisor, *rest = call.args
    return call.run(numerator, divisor.detach() if isinstance(divisor, Tensor) else divisor, *rest)  # type: ignore[no-any-return]


def constant(call: Call) -> Tensor:
    """The value counts as a constant (standard deviations, norms, roots)."""
    with torch.no_grad():
        return call.run()  # type: ignore[no-any-return]


def unchanged(call: Call) -> Tensor:
    """R passes as it is, `c_x = R / x`, 0 where x = 0 (Chefer 2021, for everything but products, sums and layers)."""
    x = call.keep(call.args[0])
    return call.route([call.args[0]], lambda c, value: [(value * c).div_(x).masked_fill_(x == 0, 0.0)])


def residual_by_ratio(call: Call) -> Tensor:
    """Chefer's sum of two branches: each takes the share of ΣR that its own |Σ a·c| has, over one sample.

    A constant (a position embedding) has a share too, which ends there. A weighted sum is refused.
    """
    if call.kwargs.get("alpha", 1) != 1:
        return call.mode.refuse(call, call.run(), f"weighs its second term (alpha={call.kwargs['alpha']}),")  # type: ignore[no-any-return]
    live = [is_live(term) for term in call.args[:2]]
    kept = [call.keep(term) if isinstance(term, Tensor) else torch.tensor(term) for term in call.args[:2]]

    def back(c: Tensor, value: Tensor) -> list[Tensor]:
        c = c.masked_fill(value == 0, 0.0)
        whole, *of_terms = (_relevance_per_sample(term.to(c).expand_as(c), c) for term in (value, *kept))
        ratio = safe_divide(whole, of_terms[0].abs() + of_terms[1].abs())
        shares = [(of_term.sign() * ratio).view(-1, *[1] * (c.ndim - 1)) for of_term in of_terms]
        return [(c * shares[i]).sum_to_size(kept[i].shape) for i in range(2) if live[i]]

    return call.route([call.args[i] for i in range(2) if live[i]], back)


def _relevance_per_sample(values: Tensor, c: Tensor) -> Tensor:
    """`Σ values · c` over each sample, `[B]`; a masked score of −∞ has none."""
    found: Tensor = torch.linalg.vecdot(values.flatten(1), c.flatten(1))  # in one pass over the numbers
    if torch.isfinite(found).all():
        return found
    return torch.where(c == 0, 0.0, values * c).flatten(1).sum(1)
