"""The rules, one small function each, in the form `c = R / x`.

A rule gets the operation that is about to run and returns its value, made so that relevance goes back through it as the
rule says. Every value is the model's own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from heatproof.errors import UnsupportedOperationError
from heatproof.relevance import layers
from heatproof.relevance.layers import Layer
from heatproof.relevance.linear import FirstRule, LinearRule, safe_divide
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
    "relu6": 0.0,
    "hardtanh": 1.0,
    "softsign": 1.0,
    "tanhshrink": 0.0,
    "hardshrink": 0.0,
    "softshrink": 0.0,
}


def gradient(call: Call) -> Tensor:
    """The ordinary gradient, on purpose (softmax: the first order of its Taylor expansion)."""
    return call.run()  # type: ignore[no-any-return]


def divide_by_input(call: Call) -> Tensor:
    """An activation with f(0) = 0 keeps its relevance: `c_x = c · f(x) / x`."""
    x = call.keep(call.args[0])
    at_zero = ACTIVATIONS_AT_ZERO[call.operation.name]
    return call.route([call.args[0]], lambda c, value: [c * torch.where(x == 0, at_zero, value / x)])


def weighted(rule: LinearRule) -> Rule:
    """`rule` for dense layers, convolutions and matrix products with constants, or the preset's own one for their place.

    Where the weights depend on the image too, it is a product of two activations and each takes half.
    """

    def apply(call: Call) -> Any:
        layer = layers.weighted(call)
        if layer is None:
            return split_evenly(call)
        mode = call.mode
        layer.view = mode.view_of(layer.inputs[0])
        layer.path = mode.module_path() if mode.preset.modules else ""
        return mode.remember(mode.through(layer, _by_place(rule, mode.preset)), layer)

    return apply


def dense_or_product(rule: LinearRule) -> Rule:
    """`weighted` for a product with a matrix; one with more axes is of activations, even where one of them is constant."""
    dense = weighted(rule)

    def apply(call: Call) -> Any:
        constants = [t for t in call.args if isinstance(t, Tensor) and not is_live(t)]
        return dense(call) if all(t.ndim <= 2 for t in constants) else split_evenly(call)

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
        to_whole = _by_place(merged(before), call.mode.preset)

        def back(layer: Layer, c: Tensor, z: Tensor) -> list[Tensor | None]:
            if before.uses == 1:
                return [None, *to_whole(whole, c, z)]
            return [*alone(layer, c, z), *[None] * len(whole.targets)]

        return call.mode.merged(call.mode.through(layer, back, *whole.targets), whole)

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


def _by_place(usual: LinearRule, preset: Preset) -> LinearRule:
    """The rule that a weighted layer has by its place, `usual` where it has none."""

    def back(layer: Layer, c: Tensor, z: Tensor) -> Sequence[Tensor | None]:
        rule = preset.rule_for(layer, usual)
        if not isinstance(rule, FirstRule):
            return rule(layer, c, z)
        if layer.view is None:
            raise UnsupportedOperationError(
                f"The preset {preset.name!r} gives {type(rule).__name__} to the module {layer.path!r}, which does not see "
                "the image itself. That rule is for first layers: give the module another one."
            )
        return [*[None] * len(layer.inputs), rule.relevance(layer, c, z)]

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


def _per_sample_sum(values: Tensor) -> Tensor:
    return values.flatten(1).sum(1)
