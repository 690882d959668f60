"""Norms that take their statistics from each sample: the deviation is a constant, the mean stays linear.

The shift absorbs its share as a bias. So with `n` values in a group and `σ` their deviation,
`c_x = (c w − mean(c w)) / σ`, and without the mean where the norm does not subtract it (RMS norm) [ali2022xai].
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from heatproof.relevance.mode import Call


def layer_norm(call: Call) -> Tensor:
    """Over the last axes."""
    return _layer_norm(call, *call.args, **call.kwargs)


def _layer_norm(
    call: Call,
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,  # noqa: ARG001 it has no part in c
    eps: float = 1e-5,
    cudnn_enable: bool = True,  # noqa: ARG001 torch.layer_norm's own name
) -> Tensor:
    return _normalized(call, x, (*x.shape[: -len(normalized_shape)], -1), weight, eps)


def rms_norm(call: Call) -> Tensor:
    """Over the last axes, without a mean."""
    return _rms_norm(call, *call.args, **call.kwargs)


def _rms_norm(
    call: Call, x: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    eps = torch.finfo(x.dtype).eps if eps is None else eps
    return _normalized(call, x, (*x.shape[: -len(normalized_shape)], -1), weight, eps, centred=False)


def group_norm(call: Call) -> Tensor:
    """Over groups of channels and space, with one weight a channel."""
    return _group_norm(call, *call.args, **call.kwargs)


def _group_norm(
    call: Call,
    x: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,  # noqa: ARG001 it has no part in c
    eps: float = 1e-5,
    cudnn_enabled: bool = True,  # noqa: ARG001 torch.group_norm's own name
) -> Tensor:
    return _normalized(call, x, (len(x), num_groups, -1), _of_channels(weight, x), eps)


def instance_norm(call: Call, weight: Tensor | None, eps: float) -> Tensor:
    """Over space, with one weight a channel; one with running statistics is a batch norm."""
    x = call.args[0]
    return _normalized(call, x, (len(x), x.shape[1], -1), _of_channels(weight, x), eps)


def _of_channels(weight: Tensor | None, x: Tensor) -> Tensor | None:
    return None if weight is None else weight.view(-1, *[1] * (x.ndim - 2))


def _normalized(
    call: Call, x: Tensor, groups: Sequence[int], weight: Tensor | None, eps: float, *, centred: bool = True
) -> Tensor:
    """A norm over the last axis of `x.reshape(groups)`, whose result is multiplied by `weight`."""
    with torch.no_grad():
        grouped = x.reshape(groups)
        square = grouped.var(-1, correction=0, keepdim=True) if centred else grouped.square().mean(-1, keepdim=True)
        scale = torch.rsqrt(square + eps)

    def back(c: Tensor, _: Tensor) -> list[Tensor]:
        direct = (c if weight is None else c * weight).reshape(groups) * scale
        if centred:
            direct = direct - direct.mean(-1, keepdim=True)
        return [direct.reshape(c.shape)]

    return call.route([x], back)
