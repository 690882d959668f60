"""Autograd functions that keep an operation's value and choose what goes back through it.

A `Phase` says which way back is wanted: the ordinary gradient or the relevance. With both built into one graph, one
forward pass serves both.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Way = Literal["relevance", "gradient"]
Back = Callable[[Tensor], Sequence[Tensor | None]]


@dataclass
class Phase:
    """Which way back is taken now, and whether it is the last one, on which everything is freed that it is done with."""

    name: Way = "relevance"
    last: bool = False


class _Scale(torch.autograd.Function):
    """The identity; relevance per unit of activation is multiplied by `factor` on its way back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: Tensor | float, phase: Phase) -> Tensor:
        ctx.factor, ctx.phase = factor, phase
        ctx.set_materialize_grads(False)
        return tensor.detach()  # neither a view nor a copy, so that the model may write into it

    @staticmethod
    def backward(ctx: Any, c: Tensor | None) -> Any:
        if c is None or ctx.phase.name == "gradient":
            return c, None, None
        return c * ctx.factor, None, None


class _Route(torch.autograd.Function):
    """`value`, with `backward(c) -> one c for each input` on one way back, `gradient` or its own gradient on the other."""

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, backward: Back, phase: Phase, gradient: Back | None, *inputs: Tensor
    ) -> Tensor:
        ctx.rules, ctx.phase, ctx.count = {"relevance": backward, "gradient": gradient}, phase, len(inputs)
        ctx.set_materialize_grads(False)
        return value.detach()

    @staticmethod
    def backward(ctx: Any, c: Tensor | None) -> Any:
        rule = ctx.rules[ctx.phase.name]
        if ctx.phase.last:
            ctx.rules = {}
        if c is None or rule is None:
            return (c, None, None, None, *[None] * ctx.count)
        return (None, None, None, None, *rule(c))


class _Watched(torch.autograd.Function):
    """The identity; `meet` is told of relevance that comes back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, meet: Callable[[], None], phase: Phase) -> Tensor:
        ctx.meet, ctx.phase = meet, phase
        ctx.set_materialize_grads(False)
        return tensor.detach()

    @staticmethod
    def backward(ctx: Any, c: Tensor | None) -> Any:
        if c is not None and ctx.phase.name == "relevance" and (c != 0).any():
            ctx.meet()
        return c, None, None


class _Write(torch.autograd.Function):
    """`value` written into `target`, whose past counts no more: torch's own `copy_` would send zeros back there.

    Zeros go back to a view: for None, torch drops what goes to the rest of its base, too.
    """

    @staticmethod
    def forward(ctx: Any, target: Tensor, value: Tensor) -> Tensor:
        ctx.dtype, ctx.into_view = value.dtype, target._base is not None
        ctx.mark_dirty(target)
        ctx.set_materialize_grads(False)
        return target.copy_(value)

    @staticmethod
    def backward(ctx: Any, c: Tensor | None) -> Any:
        if c is None:
            return None, None
        return torch.zeros_like(c) if ctx.into_view else None, c.to(ctx.dtype)


def write(target: Tensor, value: Tensor) -> Tensor:
    """`target`, with `value` written into it."""
    return _Write.apply(target, value)  # type: ignore[no-any-return, no-untyped-call]


def scale(tensor: Tensor, factor: Tensor | float, phase: Phase) -> Tensor:
    """`tensor`, whose relevance per unit of activation is multiplied by `factor` on the way back."""
    return _Scale.apply(tensor, factor, phase)  # type: ignore[no-any-return, no-untyped-call]


def route(
    value: Tensor, inputs: Sequence[Tensor], backward: Back, phase: Phase, gradient: Back | None = None
) -> Tensor:
    """`value`, from which relevance goes back to `inputs` as `backward` says.

    The ordinary gradient goes back to them as `gradient` says, or else through `value`'s own graph.
    """
    return _Route.apply(value, backward, phase, gradient, *inputs)  # type: ignore[no-any-return, no-untyped-call]


def watch(tensor: Tensor, meet: Callable[[], None], phase: Phase) -> Tensor:
    """`tensor`; `meet` is called when relevance comes back to it, and may raise."""
    return _Watched.apply(tensor, meet, phase)  # type: ignore[no-any-return, no-untyped-call]
