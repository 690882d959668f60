"""The rules, one small function each, in the form `c = R / x`.

A rule gets the operation that is about to run and returns its value, made so that relevance goes back through it as the
rule says. Every value is the model's own.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.relevance.mode import Call, Rule
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


def linear_layer(call: Call) -> Tensor:
    """A linear layer or convolution is its own gradient; where its weights depend on the image too, it is a product."""
    first = 1 if call.operation.name == "addmm" else 0  # addmm(bias, x, weight)
    x, weight = call.args[first : first + 2]
    if not (is_live(x) and is_live(weight)):
        return call.run()  # type: ignore[no-any-return]
    return call.run(*call.args[:first], call.scale(x, 0.5), call.scale(weight, 0.5), *call.args[first + 2 :])  # type: ignore[no-any-return]


def divide_by_input(call: Call) -> Tensor:
    """An activation with f(0) = 0 keeps its relevance: `c_x = c · f(x) / x`."""
    x = call.keep(call.args[0])
    at_zero = ACTIVATIONS_AT_ZERO[call.operation.name]
    return call.route([call.args[0]], lambda c, value: [c * torch.where(x == 0, at_zero, value / x)])


def epsilon(epsilon: float, relative: bool) -> Rule:
    """LRP-ε for a linear layer or convolution: `c_z` is scaled by `z / (z + ε sign z)`, with sign 0 = +1.

    With `relative`, ε is a multiple of each sample's mean |z| in this layer.
    """

    def rule(call: Call) -> Tensor:
        z = linear_layer(call)
        with torch.no_grad():
            size = z.abs().flatten(1).mean(1).view(-1, *[1] * (z.ndim - 1)) if relative else 1.0
            stabilizer = epsilon * size
            denominator = z + torch.where(z < 0, -stabilizer, stabilizer)
            factor = torch.where(denominator == 0, 0.0, z / denominator)
        return call.scale(z, factor)

    return rule


def split_evenly(call: Call) -> Tensor:
    """A product of n activations (matmul, einsum, mul) gives each the n-th part of its relevance."""
    count = sum(1 for _ in live_tensors(call.args))
    if count < 2:
        return call.run()  # type: ignore[no-any-return]
    share = lambda tensor: call.scale(tensor, 1 / count) if is_live(tensor) else tensor  # noqa: E731
    return call.run(*map_tensors(share, call.args))  # type: ignore[no-any-return]


def product(call: Call) -> Tensor:
    """A gate is a constant for the factor that it multiplies; other products are split evenly."""
    a, b = call.args[:2]
    if is_live(a) and is_live(b) and call.mode.is_gate(a) != call.mode.is_gate(b):
        factors = (a.detach(), b) if call.mode.is_gate(a) else (a, b.detach())
        return call.run(*factors)  # type: ignore[no-any-return]
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


def zplus_without_bias(call: Call) -> Tensor:
    """z⁺ for a linear layer, bias ignored: `R_i = Σ_j (x_i w_ji)⁺ / P_j · R_j`.

    The positive parts need no clamped copies of x and W: `(xw)⁺ = (xw + |x||w|) / 2`.
    """
    live, weight, bias = (*call.args, call.kwargs.get("bias"))[:3]
    if is_live(weight) or is_live(bias):
        return call.mode.refuse(call, call.run(), "has weights that depend on the image,")  # type: ignore[no-any-return]
    x = call.keep(live)

    def back(c: Tensor, z: Tensor) -> list[Tensor]:
        absolute = weight.abs()
        size = F.linear(x.abs(), absolute)
        plain = z if bias is None else z - bias
        positive = (plain + size) / 2
        noise = VANISHING * (size + z.abs() + (0 if bias is None else bias.abs()))
        s = torch.where(positive > noise, z * c / positive, 0.0)
        return [(s @ weight + x.sign() * (s @ absolute)) / 2]

    return call.route([live], back)


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
