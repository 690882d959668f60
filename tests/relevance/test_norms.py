"""Norms: fused, as functions, and written out by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from support.operations import SHAPE, Function, build, jacobian, relevance_of, with_head, z_plus


def trained(norm: Any) -> Any:
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    for name, buffer in norm.named_buffers():
        if name in ("running_mean", "running_var"):
            nn.init.uniform_(buffer, 0.5, 2)
    return norm.double().eval()


def held(
    norm: Function, x: Tensor, axes: tuple[int, ...], groups: tuple[int, ...], eps: float, centred: bool
) -> Function:
    """`(v − mean v) / σ(x) · w + b`, σ being that of x itself: affine in v."""
    grouped = x.reshape(groups)
    sigma = ((grouped - grouped.mean(axes, keepdim=True) * centred).square().mean(axes, keepdim=True) + eps).sqrt()
    weight = getattr(norm, "weight", None)
    bias = getattr(norm, "bias", None)

    def apply(v: Tensor) -> Tensor:
        part = v.reshape(len(v), *groups[1:])
        whole = ((part - part.mean(axes, keepdim=True) * centred) / sigma).reshape(v.shape)
        shape = (-1,) if isinstance(norm, nn.LayerNorm | nn.RMSNorm) else (-1, 1, 1)
        whole = whole if weight is None else whole * weight.view(shape)
        return whole if bias is None else whole + bias.view(shape)

    return apply


NORMS: dict[str, Callable[[], tuple[Any, tuple[int, ...], tuple[int, ...], float, bool]]] = {
    "layer": lambda: (nn.LayerNorm(4), (-1,), (1, 2, 4, 4), 1e-5, True),
    "layer without weights": lambda: (nn.LayerNorm(4, elementwise_affine=False), (-1,), (1, 2, 4, 4), 1e-5, True),
    "group": lambda: (nn.GroupNorm(2, 4, eps=1e-3), (-1,), (1, 2, -1), 1e-3, True),
    "group without weights": lambda: (nn.GroupNorm(4, 4, affine=False), (-1,), (1, 4, -1), 1e-5, True),
    "instance": lambda: (nn.InstanceNorm2d(4), (-1,), (1, 4, -1), 1e-5, True),
    "instance with weights": lambda: (nn.InstanceNorm2d(4, affine=True), (-1,), (1, 4, -1), 1e-5, True),
    "rms": lambda: (nn.RMSNorm(4, eps=1e-4), (-1,), (1, 2, 4, 4), 1e-4, False),
    "rms without a floor": lambda: (nn.RMSNorm(4), (-1,), (1, 2, 4, 4), torch.finfo(torch.float64).eps, False),
}


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("preset", ["lrp_z", "lrp_zplus", "attn_lrp"])
def test_a_norm_holds_its_deviation_constant(name: str, preset: str) -> None:
    norm, axes, groups, eps, centred = NORMS[name]()
    norm = trained(norm)
    x = torch.randn(1, 4 if groups[1] != 2 or name == "group" else 2, 4, 4, dtype=torch.float64)
    affine = held(norm, x, axes, groups, eps, centred)
    torch.testing.assert_close(affine(x), norm(x))
    model, head = with_head(norm, x)
    z = norm(x).flatten(1).detach()
    top = head * z
    if preset == "lrp_zplus":
        top = z_plus(z, head[None], torch.zeros(1, 1).double(), torch.ones(1, 1).double())
    expected = x.flatten(1) * torch.einsum("nji,nj->ni", jacobian(affine, x), top / z)
    close = 1e-4 if preset == "attn_lrp" else 1e-9
    torch.testing.assert_close(relevance_of(model, x, build(preset)).flatten(1), expected, atol=close, rtol=close)


@pytest.mark.parametrize("preset", ["lrp_z", "lrp_zplus"])
def test_norms_are_the_same_however_they_are_called(preset: str) -> None:
    x = torch.randn(3, 4, 4, 4, dtype=torch.float64)
    batch, instance = trained(nn.BatchNorm2d(4)), trained(nn.InstanceNorm2d(4, affine=True, track_running_stats=True))
    instance.load_state_dict(batch.state_dict())
    values = batch.weight, batch.bias, batch.running_mean, batch.running_var
    as_torch = lambda v: torch.batch_norm(v, *values, False, 0.1, 1e-5, False)  # noqa: E731
    as_instance = lambda v: torch.instance_norm(v, *values, False, 0.1, 1e-5, False)  # noqa: E731
    for before in (lambda v: v, nn.Conv2d(4, 4, 1).double()):
        _, head = with_head(batch, x)
        maps = [
            relevance_of(lambda v, f=norm, b=before, h=head: F.linear(f(b(v)).flatten(1), h), x, build(preset))
            for norm in (batch, instance, as_torch, as_instance)
        ]
        for other in maps[1:]:
            torch.testing.assert_close(other, maps[0])
    plain = trained(nn.InstanceNorm2d(4, affine=True))
    by_torch = lambda v: torch.instance_norm(v, plain.weight, plain.bias, None, None, True, 0.1, 1e-5, False)  # noqa: E731
    model, head = with_head(plain, x)
    expected = relevance_of(model, x, build(preset))
    torch.testing.assert_close(
        relevance_of(lambda v: F.linear(by_torch(v).flatten(1), head), x, build(preset)), expected
    )


BY_HAND: dict[str, tuple[Function, Function]] = {
    "layer norm by rsqrt": (
        lambda v: (v - v.mean(-1, keepdim=True)) * torch.rsqrt(v.var(-1, unbiased=False, keepdim=True) + 1e-5),
        lambda v: F.layer_norm(v, (4,)),
    ),
    "layer norm by a power": (
        lambda v: (v - v.mean(-1, keepdim=True)) * (v.var(-1, correction=0, keepdim=True) + 1e-5) ** -0.5,
        lambda v: F.layer_norm(v, (4,)),
    ),
    "layer norm by squares": (
        lambda v: (
            (v - v.mean(-1, keepdim=True))
            / ((v**2).mean(-1, keepdim=True) - v.mean(-1, keepdim=True).square() + 1e-5).sqrt()
        ),
        lambda v: F.layer_norm(v, (4,)),
    ),
    "group norm by var_mean": (
        lambda v: group_norm_by_hand(v),
        lambda v: F.group_norm(v, 1),
    ),
    "channels first, as ConvNeXt": (
        lambda v: (
            (v - v.mean(1, keepdim=True))
            / torch.sqrt((v - v.mean(1, keepdim=True)).pow(2).mean(1, keepdim=True) + 1e-6)
        ),
        lambda v: F.layer_norm(v.permute(0, 2, 3, 1), (2,), eps=1e-6).permute(0, 3, 1, 2),
    ),
    "rms norm": (
        lambda v: v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-6),
        lambda v: F.rms_norm(v, (4,), eps=1e-6),
    ),
    "rms norm by its length": (
        lambda v: v / (v.norm(dim=-1, keepdim=True) * 4**-0.5),
        lambda v: F.rms_norm(v, (4,), eps=0.0),
    ),
    "length": (lambda v: v / v.square().sum(1, keepdim=True).sqrt().clamp_min(1e-12), lambda v: F.normalize(v)),
    "length by linalg": (lambda v: v / torch.linalg.vector_norm(v, dim=1, keepdim=True), lambda v: F.normalize(v)),
}


def group_norm_by_hand(v: Tensor) -> Tensor:
    variance, mean = torch.var_mean(v, dim=(1, 2, 3), unbiased=False, keepdim=True)
    return (v - mean).div((variance + 1e-5).sqrt())


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("preset", ["lrp_z", "lrp_epsilon", "attn_lrp"])
def test_a_norm_written_out_by_hand_is_the_fused_one(name: str, preset: str) -> None:
    by_hand, fused = BY_HAND[name]
    x = torch.randn(SHAPE, dtype=torch.float64)
    model, head = with_head(by_hand, x)
    expected = relevance_of(lambda v: F.linear(fused(v).flatten(1), head), x, build(preset))
    torch.testing.assert_close(relevance_of(model, x, build(preset)), expected, atol=1e-7, rtol=1e-5)
