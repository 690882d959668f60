"""A function of images as a model, and slow replicas of the rules of one linear layer, from its Jacobian in float64."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.relevance import Preset, presets, run

Function = Callable[[Tensor], Tensor]
SHAPE = (2, 2, 4, 4)


class Whole(nn.Module):
    """A function as a model: images -> logits."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def relevance_of(function: Function, x: Tensor, preset: Preset, index: int = 0) -> Tensor:
    passed = run(Whole(function).eval(), x, preset)
    return passed.relevance(passed.logits[:, index]).detach()


def build(name: str) -> Preset:
    """A preset in its plain form: ε as good as 0, γ = 0."""
    options: dict[str, Any] = {"lrp_epsilon": {"epsilon": 1e-13}, "attn_lrp": {"gamma_linear": 0.0, "gamma_conv": 0.0}}
    preset: Preset = getattr(presets, name)(**options.get(name, {}))
    return preset


def jacobian(function: Function, x: Tensor) -> Tensor:
    """`[N, J, I]` of a function of single samples, by plain autograd."""
    each = [torch.autograd.functional.jacobian(lambda v: function(v[None]).flatten(), sample) for sample in x]
    return torch.stack(each).flatten(2)


def z_plus(x: Tensor, weight: Tensor, bias: Tensor, relevance: Tensor) -> Tensor:
    """`Σ_j (x_i w_ji)⁺ / P_j R_j` for x `[N, I]`, weight `[N, J, I]`, bias `[N, J]` and R `[N, J]`."""
    parts = (x[:, None] * weight).clamp(min=0)
    total = parts.sum(2) + bias.clamp(min=0)
    share = torch.where(total > 1e-12, relevance / total, 0.0)
    return (parts * share[:, :, None]).sum(1)


def with_head(function: Function, x: Tensor) -> tuple[Function, Tensor]:
    """The function under one logit, a positive and negative mixture of all its numbers."""
    size = function(x[:1]).numel()
    head = torch.randn(1, size, dtype=x.dtype)
    return lambda v: F.linear(function(v).flatten(1), head), head
