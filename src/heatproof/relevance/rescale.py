"""DeepLIFT's Rescale rule [shrikumar2017learning]: the slope between image and baseline in the gradient's place.

The batch holds the images and, after them, a baseline for each. What flows back is the multiplier `m` of each unit, by
which its difference from the baseline, Δx, shares in that of the score: `Σ m Δx = Δscore` over the units of a layer. It goes
back to the images' half only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from heatproof.errors import UnsupportedModelError
from heatproof.relevance.mode import Call
from heatproof.tracing import live_tensors

_NEAR = 1e-5  # a difference below this share of both values is rounding, and the slope is the ordinary one


def rescale(call: Call) -> Any:
    """An operation that works number by number: `m_x = m_y Δy / Δx`."""
    x = call.keep(call.args[0])
    own = _own_gradient(call)

    def back(m: Tensor, value: Tensor) -> list[Tensor]:
        return _between(m, x, own, _of_images(m) * _difference(value))

    return call.route(call.args[:1], back)


def max_pool(call: Call) -> Any:
    """Max pooling: what the image's winner gains and what the baseline's winner loses goes to each of them.

    With `t = max(y, y′)`, `m_y (t − y′)` goes to the winner in the image and `m_y (y − t)` to that in the baseline.
    """
    x = call.keep(call.args[0])
    own = _own_gradient(call)

    def back(m: Tensor, value: Tensor) -> list[Tensor]:
        y, y0 = value.chunk(2)
        most, m_y = torch.maximum(y, y0), _of_images(m)
        gained, lost = own(torch.cat([m_y * (most - y0), m_y * (y - most)])).chunk(2)
        return _between(m, x, own, gained + lost)

    return call.route(call.args[:1], back)


def linear(call: Call) -> Any:
    """A product or layer that is linear in one thing that depends on the image; with two of them it is refused."""
    if sum(1 for _ in live_tensors((call.args, call.kwargs))) > 1:
        return call.mode.refuse(call, call.run(), "multiplies two things that depend on the image,")
    return call.run()


def quotient(call: Call) -> Any:
    """A quotient with a constant divisor; one that depends on the image is refused."""
    if call.operation.reflected:
        return call.mode.refuse(call, call.run(), "divides by what depends on the image,")
    return linear(call)


def _between(m: Tensor, x: Tensor, own: Callable[[Tensor], Tensor], relevance: Tensor) -> list[Tensor]:
    """`relevance / Δx`, the ordinary gradient where Δx vanishes, for the images; nothing for the baselines."""
    change, (a, b) = _difference(x), x.abs().chunk(2)
    found = torch.where(change.abs() <= _NEAR * torch.maximum(a, b), own(m).chunk(2)[0], relevance / change)
    return [torch.cat([found, torch.zeros_like(found)])]


def _of_images(m: Tensor) -> Tensor:
    images, baselines = m.chunk(2) if len(m) % 2 == 0 else (m, m)
    if baselines.any():
        raise UnsupportedModelError(
            "DeepLIFT compares each image with its baseline, and this model has something else than the batch on the "
            "first axis where it is not linear. Use integrated_gradients, or lrp_epsilon."
        )
    return images


def _difference(values: Tensor) -> Tensor:
    images, baselines = values.chunk(2)
    return images - baselines


def _own_gradient(call: Call) -> Callable[[Tensor], Tensor]:
    """The ordinary way back of the operation."""
    leaf = call.args[0].detach().clone().requires_grad_()
    with torch.enable_grad():
        value = call.run(leaf, *call.args[1:])
    return lambda m: torch.autograd.grad(value, leaf, m, retain_graph=True)[0]
