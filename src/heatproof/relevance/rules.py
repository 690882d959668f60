"""The rules, one small function each, in the form `c = R / x`.

A rule gets the operation that is about to run and returns its value, made so that relevance goes back through it as the
rule says. Every value is the model's own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from heatproof.relevance import layers
from heatproof.relevance.first_layer import ImageView
from heatproof.relevance.layers import Layer
from heatproof.relevance.mode import Call, FirstRule, LinearRule, Rule
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
    "relu6": 0.0,
    "hardtanh": 1.0,
    "softsign": 1.0,
    "tanhshrink": 0.0,
    "hardshrink": 0.0,
    "softshrink": 0.0,
}

VANISHING = 1e-5  # a denominator below this share of its terms' sizes is rounding noise


def gradient(call: Call) -> Tensor:
    """The ordinary gradient, on purpose (softmax: the first order of its Taylor expansion)."""
    return call.run()  # type: ignore[no-any-return]


def divide_by_input(call: Call) -> Tensor:
    """An activation with f(0) = 0 keeps its relevance: `c_x = c · f(x) / x`."""
    x = call.keep(call.args[0])
    at_zero = ACTIVATIONS_AT_ZERO[call.operation.name]
    return call.route([call.args[0]], lambda c, value: [c * torch.where(x == 0, at_zero, value / x)])


def z(layer: Layer, c: Tensor, _: Tensor) -> list[Tensor]:
    """LRP-z: a linear layer is its own gradient."""
    return layer.transposed(c)


def epsilon(epsilon: float, relative: bool) -> LinearRule:
    """LRP-ε: `c_z` is scaled by `z / (z + ε sign z)`, with sign 0 = +1.

    With `relative`, ε is a multiple of each sample's mean |z| in this layer.
    """

    def rule(layer: Layer, c: Tensor, z: Tensor) -> list[Tensor]:
        size = z.abs().flatten(1).mean(1).view(-1, *[1] * (z.ndim - 1)) if relative else 1.0
        stabilizer = epsilon * size
        return layer.transposed(c * safe_divide(z, z + torch.where(z < 0, -stabilizer, stabilizer)))

    return rule


def signed(alpha: float, beta: float, *, bias: bool = True) -> LinearRule:
    """LRP-αβ: positive contributions share α R_j, negative ones −β R_j; z⁺ is α = 1, β = 0.

    `R_i = Σ_j [α (x_i w_ji)⁺ / P_j − β (x_i w_ji)⁻ / N_j] R_j`, where P and N are the sums of the positive and of the
    negative contributions; with `bias`, its positive part belongs to P and its negative part to N. A part that vanishes
    passes nothing on.

    The parts need no clamped copies of x and W: since `(x w)^± = (x w ± |x||w|) / 2`, P and N are
    `(z ± (|x||W|ᵀ + |b|)) / 2`.
    """

    def rule(layer: Layer, c: Tensor, z: Tensor) -> list[Tensor]:
        size, pull = layer.absolute([x.abs() for x in layer.values])
        shift = torch.zeros_like(z) if layer.bias is None else layer.bias
        noise = VANISHING * (size + z.abs() + shift.abs())
        total, size = (z, size + shift.abs()) if bias else (z - shift, size)
        positive, negative = (total + size) / 2, (total - size) / 2
        s_positive, s_negative = (
            torch.where(part.abs() > noise, share * z * c / part, 0.0)
            for part, share in ((positive, alpha), (negative, beta))
        )
        both = zip(layer.values, layer.transposed(s_positive - s_negative), pull(s_positive + s_negative), strict=True)
        return [(direct + x.sign() * absolute) / 2 for x, direct, absolute in both]

    return rule


def z_box(limits: tuple[Tensor, Tensor]) -> FirstRule:
    """The z-box rule of first layers, whose inputs lie between l and h: contributions `x_i w_ji − l_i w_ji⁺ − h_i w_ji⁻`.

    With the middle m and the half width d of the box, a contribution is `(x_i − m_i) w_ji + d_i |w_ji|`. The bias has none.
    """

    def rule(layer: Layer, view: ImageView, c: Tensor, z: Tensor) -> Tensor:
        (x,), (low, high) = layer.values, view.limits
        centred, half = x - (low + high) / 2, (high - low) / 2
        size, pull = layer.absolute([half])
        from_middle = layer.product([centred], False)
        total = from_middle + size
        s = torch.where(total.abs() > VANISHING * (from_middle.abs() + size), z * c / total, 0.0)
        return centred * layer.transposed(s)[0] + half * pull(s)[0]

    return FirstRule(rule, limits)


def weighted(rule: LinearRule) -> Rule:
    """`rule` for dense layers, convolutions and matrix products, or the preset's own rule where one is a first layer.

    Where the weights depend on the image too, it is a product of two activations and each takes half.
    """

    def apply(call: Call) -> Any:
        layer = layers.weighted(call)
        if layer is None:
            return split_evenly(call)
        mode = call.mode
        layer.view = mode.view_of(layer.inputs[0])
        return mode.remember(mode.through(layer, _or_first(rule, mode.preset.first)), layer)

    return apply


def in_full(build: Callable[[Call], Layer], rule: LinearRule) -> Rule:
    """`rule` for an operation that is linear without weights of its own (sums, means), as `build` sees it."""
    return lambda call: call.mode.through(build(call), rule)


def batch_norm(merged: LinearRule, alone: LinearRule) -> Rule:
    """Batch norm as part of the layer before it, under that layer's rule `merged`, where nothing else reads that layer.

    Any other batch norm is a layer of its own, with one weight a channel, under the rule `alone`.
    """

    def apply(call: Call) -> Any:
        x, mean, variance, weight, bias, training, _, eps = _batch_norm_arguments(*call.args, **call.kwargs)
        if training or mean is None or variance is None:
            return call.mode.refuse(call, call.run(), "takes its statistics from the batch,")
        scale = torch.rsqrt(variance + eps) * (1 if weight is None else weight)
        shift = -mean * scale + (0 if bias is None else bias)
        axes = (-1, *[1] * (x.ndim - 2))
        scale, shift = scale.view(axes), shift.view(axes)
        layer, before = layers.diagonal(call, scale, shift), call.mode.made_by(x)
        if before is None:
            return call.mode.through(layer, alone)
        whole = before.scaled(scale, shift)
        to_whole = _or_first(merged, call.mode.preset.first)

        def back(layer: Layer, c: Tensor, z: Tensor) -> list[Tensor | None]:
            if before.uses == 1:
                return [None, *to_whole(whole, c, z)]
            return [*alone(layer, c, z), *[None] * len(whole.targets)]

        return call.mode.through(layer, back, *whole.targets)

    return apply


def fixed_batch_norm(call: Call) -> Any:
    """Batch norm in evaluation mode is its own gradient; with statistics from the batch it is not linear."""
    _, mean, _, _, _, training, _, _ = _batch_norm_arguments(*call.args, **call.kwargs)
    if training or mean is None:
        return call.mode.refuse(call, call.run(), "takes its statistics from the batch,")
    return call.run()


def _batch_norm_arguments(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, bool, float, float]:
    return x, running_mean, running_var, weight, bias, training, momentum, eps


def _or_first(rule: LinearRule, first: FirstRule | None) -> LinearRule:
    """`rule`, or the preset's rule of first layers for a layer that has a view of the image."""

    def back(layer: Layer, c: Tensor, z: Tensor) -> Sequence[Tensor | None]:
        if layer.view is None or first is None:
            return rule(layer, c, z)
        return [*[None] * len(layer.inputs), first.rule(layer, layer.view, c, z)]

    return back


def split_evenly(call: Call) -> Any:
    """A product of n activations gives each the n-th part of its relevance; a bias that depends on the image is refused."""
    operands = list(call.args)
    bias = operands.pop(0) if call.operation.name == "addmm" else call.kwargs.get("bias")
    if call.operation.name in ("linear", "conv", "conv_transpose") and len(operands) > 2:
        bias = operands[2]
    count = sum(1 for _ in live_tensors(operands))
    if is_live(bias):
        return call.mode.refuse(call, call.run(), "has a bias that depends on the image,")
    if count < 2:
        return call.run()
    share = lambda tensor: call.scale(tensor, 1 / count) if is_live(tensor) else tensor  # noqa: E731
    return call.run(*map_tensors(share, call.args))


def product(call: Call) -> Any:
    """A gate is a constant for the factor that it multiplies; other products are split evenly."""
    a, b = call.args[:2]
    if is_live(a) and is_live(b) and call.mode.is_gate(a) != call.mode.is_gate(b):
        factors = (a.detach(), b) if call.mode.is_gate(a) else (a, b.detach())
        return call.run(*factors)
    return split_evenly(call)


def gate(call: Call) -> Tensor:
    """A sigmoid is a gate: relevance reaches it only where it is not used as one, and that is an error."""
    value: Tensor = call.mode.refuse(call, call.run(), "is used as more than a gate (f(0) is not 0),")
    call.mode.mark_gate(value)
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


def layer_norm(call: Call) -> Tensor:
    """The deviation is constant, the mean stays linear, the shift absorbs its share as a bias."""
    x, shape, weight, _, eps = _layer_norm_arguments(*call.args, **call.kwargs)
    axes = tuple(range(-len(shape), 0))
    with torch.no_grad():
        scale = torch.rsqrt(x.var(axes, correction=0, keepdim=True) + eps)
        scale = scale if weight is None else scale * weight

    def back(c: Tensor, _: Tensor) -> list[Tensor]:
        direct = c * scale
        return [direct - direct.mean(axes, keepdim=True)]

    return call.route([x], back)


def _layer_norm_arguments(
    x: Tensor,
    normalized_shape: list[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: ARG001 torch.layer_norm's own name
) -> tuple[Tensor, list[int], Tensor | None, Tensor | None, float]:
    return x, list(normalized_shape), weight, bias, eps


def unchanged(call: Call) -> Tensor:
    """R passes as it is, `c_x = R / x`, 0 where x = 0 (Chefer 2021, for everything but products, sums and layers)."""
    x = call.keep(call.args[0])
    return call.route([call.args[0]], lambda c, value: [safe_divide(value * c, x)])


def residual_by_ratio(call: Call) -> Tensor:
    """Chefer's sum of two branches: each takes the share of ΣR that its own |Σ a·c| has, over one sample."""
    a, b = call.args[:2]
    if not (is_live(a) and is_live(b)):
        return call.run()  # type: ignore[no-any-return]
    kept_a, kept_b = call.keep(a), call.keep(b)

    def back(c: Tensor, value: Tensor) -> list[Tensor]:
        of_a, of_b, whole = (_per_sample_sum(t * c) for t in (kept_a.expand_as(c), kept_b.expand_as(c), value))
        ratio = safe_divide(whole, of_a.abs() + of_b.abs())
        ratio_a, ratio_b = ((t.sign() * ratio).view(-1, *[1] * (c.ndim - 1)) for t in (of_a, of_b))
        return [(c * ratio_a).sum_to_size(kept_a.shape), (c * ratio_b).sum_to_size(kept_b.shape)]

    return call.route([a, b], back)


def safe_divide(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, 0 where the denominator is 0."""
    return torch.where(denominator == 0, 0.0, numerator / denominator)


def _per_sample_sum(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)
