"""Rules of operations that look at one number at a time, beside the activations of `rules`."""

from typing import Any

import torch
from torch import Tensor

from heatproof.relevance.mode import Call
from heatproof.tracing import is_live


def power(call: Call) -> Any:
    """`xᵖ` with p > 0 is an activation with f(0) = 0, `c_x = c · xᵖ⁻¹`; a negative power is a divisor and a constant.

    For a whole p that is also the product of p activations with an even share each.
    """
    base, exponent = call.args[0], 2.0 if call.operation.name == "square" else _exponent(call)
    powers = torch.as_tensor(exponent)
    if is_live(exponent) or call.operation.reflected:
        return call.mode.refuse(call, call.run(), "has an exponent that depends on the image,")
    if (powers <= 0).all():
        return call.run().detach()
    if not (powers > 0).all():
        return call.mode.refuse(call, call.run(), "mixes positive and negative exponents,")
    x = call.keep(base)
    at_zero = (powers == 1).to(x)
    return call.route([base], lambda c, value: [(c * torch.where(x == 0, at_zero, value / x)).sum_to_size(x.shape)])


def _exponent(call: Call) -> Any:
    return call.kwargs["exponent"] if "exponent" in call.kwargs else call.args[1]


def clamp(call: Call) -> Any:
    """Bounds on both sides of 0 (or at it) make an activation with f(0) = 0, which keeps its relevance, `c_x = c · y / x`.

    Otherwise it is a choice between the input and a constant, as in a maximum: the one that wins takes all.
    """
    low, high = _bounds(call)
    if any(isinstance(bound, Tensor) and (is_live(bound) or bound.numel() > 1) for bound in (low, high)):
        return call.run()
    if (low is not None and low > 0) or (high is not None and high < 0):
        return call.run()
    x = call.keep(call.args[0])
    at_zero = float((low is None or low < 0) and (high is None or high > 0))
    return call.route([call.args[0]], lambda c, value: [c * torch.where(x == 0, at_zero, value / x)])


def _bounds(call: Call) -> tuple[Any, Any]:
    name, given = call.operation.function.__name__.partition(".")[0].strip("_"), list(call.args[1:])
    if name == "relu6":
        return 0.0, 6.0
    if name == "clamp_max":
        return None, given[0] if given else call.kwargs["max"]
    defaults = (-1.0, 1.0) if name == "hardtanh" else (None, None)
    low, high = [*given, *defaults[len(given) :]][:2]
    names = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    return call.kwargs.get(names[0], low), call.kwargs.get(names[1], high)


def glu(call: Call) -> Tensor:
    """`a · sigmoid(b)` of the two halves of an axis: the gate is a constant, a takes all."""
    x = call.args[0]
    axis = call.kwargs.get("dim", call.args[1] if len(call.args) > 1 else -1)
    gate = call.keep(x).chunk(2, axis)[1].sigmoid()
    return call.route([x], lambda c, _: [torch.cat([c * gate, torch.zeros_like(c)], axis)])
