"""Attention on every path of torch, against attention written out in float64 with plain autograd."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.relevance import presets, run
from support.operations import Whole, build, relevance_of

PRESETS = ["lrp_z", "attn_lrp"]
CLOSE = {"lrp_z": {"atol": 1e-10, "rtol": 1e-7}, "attn_lrp": {"atol": 1e-4, "rtol": 1e-3}}  # the latter's ε is 1e-6


def half(tensor: Tensor) -> Tensor:
    """The tensor, of whose gradient one half goes back: the share of a factor in a product of two."""
    return (tensor + tensor.detach()) / 2


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Attention in which products are halved; `mask` is added to the scores."""
    scores = half(q) @ half(k).mT * (q.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if mask is None else scores + mask
    nowhere = (scores == -math.inf).all(-1, keepdim=True)
    weights = scores.masked_fill(nowhere, 0).softmax(-1) * nowhere.logical_not()
    return half(weights) @ half(v)


def by_gradient(model: Any, x: Tensor, head: Tensor) -> Tensor:
    """Input × gradient of one logit of each sample."""
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(F.linear(model(leaf).flatten(1), head).sum(), leaf)
    return x * slope


def compare(model: Any, replica: Any, x: Tensor, preset: str) -> None:
    value = model(x)
    torch.testing.assert_close(replica(x), value)
    head = torch.randn(1, value[0].numel(), dtype=x.dtype)
    found = relevance_of(lambda v: F.linear(model(v).flatten(1), head), x, build(preset))
    torch.testing.assert_close(found, by_gradient(replica, x, head), **CLOSE[preset])


def additive(hidden: Tensor) -> Tensor:
    return torch.zeros(hidden.shape, dtype=torch.float64).masked_fill(hidden, -math.inf)


SEEN = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 1, 1], [0, 1, 1, 0, 1]]).bool()
LATER = torch.ones(5, 5).bool().triu(1)
NOWHERE = SEEN & torch.tensor([1, 1, 0, 1, 1]).bool()[:, None]  # the third row may look nowhere
BIAS = torch.linspace(-1, 1, 25).double().view(5, 5)
SDPA: dict[str, tuple[dict[str, Any], Tensor | None]] = {
    "plain": ({}, None),
    "scale": ({"scale": 0.3}, None),
    "causal": ({"is_causal": True}, additive(LATER)),
    "boolean mask": ({"attn_mask": SEEN}, additive(~SEEN)),
    "additive mask": ({"attn_mask": BIAS}, BIAS),
    "both masks": ({"attn_mask": SEEN | torch.eye(5).bool(), "is_causal": True},
                   additive(LATER | ~(SEEN | torch.eye(5).bool()))),
    "a row that may look nowhere": ({"attn_mask": NOWHERE}, additive(~NOWHERE)),
    "a row that may look nowhere, added": ({"attn_mask": additive(~NOWHERE)}, additive(~NOWHERE)),
}  # fmt: skip


@pytest.mark.parametrize("name", SDPA)
@pytest.mark.parametrize("preset", PRESETS)
def test_fused_attention_is_attention(name: str, preset: str) -> None:
    options, mask = SDPA[name]
    x = torch.randn(2, 3, 2, 5, 4, dtype=torch.float64)  # [B, (q, k, v), heads, tokens, width]
    fused = lambda v: F.scaled_dot_product_attention(*v.unbind(1), **options)  # noqa: E731
    compare(fused, lambda v: attend(*v.unbind(1), mask, options.get("scale")), x, preset)


def test_fused_attention_with_grouped_queries() -> None:
    x = torch.randn(2, 6, 5, 4, dtype=torch.float64)
    fused = lambda v: F.scaled_dot_product_attention(v[:, :2], v[:, 2:3], v[:, 3:4], enable_gqa=True)  # noqa: E731
    compare(fused, lambda v: attend(v[:, :2], v[:, 2:3].repeat(1, 2, 1, 1), v[:, 3:4].repeat(1, 2, 1, 1)), x, "lrp_z")


def multihead(layer: nn.MultiheadAttention, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """`nn.MultiheadAttention` of `[N, L, E]`, from its documentation."""
    if layer.in_proj_weight is None:
        weights = [layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight]
    else:
        weights = list(layer.in_proj_weight.chunk(3))
    biases = [None] * 3 if layer.in_proj_bias is None else list(layer.in_proj_bias.chunk(3))
    q, k, v = (F.linear(t, w, b) for t, w, b in zip((q, k, v), weights, biases, strict=True))
    if layer.bias_k is not None:
        k, v = (torch.cat([t, b.expand(len(t), -1, -1)], 1) for t, b in ((k, layer.bias_k), (v, layer.bias_v)))
    if layer.add_zero_attn:
        k, v = (F.pad(t, (0, 0, 0, 1)) for t in (k, v))
    if mask is not None:
        mask = F.pad(mask, (0, k.shape[1] - mask.shape[-1]))
    q, k, v = (t.unflatten(2, (layer.num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    return layer.out_proj(attend(q, k, v, mask).transpose(1, 2).flatten(2))


HIDDEN = torch.tensor([[0, 0, 0, 0, 1], [0, 1, 0, 0, 0]]).bool()
MULTIHEAD: dict[str, tuple[dict[str, Any], dict[str, Any], Tensor | None]] = {
    "plain": ({}, {}, None),
    "without weights": ({}, {"need_weights": False}, None),
    "weights of each head": ({}, {"average_attn_weights": False}, None),
    "without biases": ({"bias": False}, {"need_weights": False}, None),
    "dropout in evaluation": ({"dropout": 0.5}, {}, None),
    "bias_kv": ({"add_bias_kv": True}, {}, None),
    "bias_kv without weights": ({"add_bias_kv": True}, {"need_weights": False}, None),
    "zero_attn": ({"add_zero_attn": True}, {}, None),
    "keys and values of their own": ({"kdim": 8, "vdim": 8, "add_bias_kv": True, "add_zero_attn": True}, {}, None),
    "boolean mask": ({}, {"attn_mask": ~SEEN}, additive(~SEEN)),
    "additive mask": ({}, {"attn_mask": BIAS, "need_weights": False}, BIAS),
    "hidden keys": ({}, {"key_padding_mask": HIDDEN}, additive(HIDDEN)[:, None, None]),
    "hidden keys and a mask": ({}, {"key_padding_mask": HIDDEN, "attn_mask": LATER, "need_weights": False},
                               additive(HIDDEN)[:, None, None] + additive(LATER)),
    "causal": ({}, {"attn_mask": LATER, "is_causal": True, "need_weights": False}, additive(LATER)),
}  # fmt: skip


def random_biases(module: nn.Module) -> Any:
    for name, parameter in module.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return module.double().eval()


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", MULTIHEAD)
@pytest.mark.parametrize("preset", PRESETS)
def test_multihead_attention_is_attention(name: str, batch_first: bool, preset: str) -> None:
    options, call, mask = MULTIHEAD[name]
    layer = random_biases(nn.MultiheadAttention(8, 2, batch_first=batch_first, **options))
    x = torch.randn(2, 5, 8, dtype=torch.float64)

    def model(v: Tensor) -> Tensor:
        tokens = v if batch_first else v.transpose(0, 1)
        value, _ = layer(tokens, tokens.flip(2), tokens, **call)
        return value if batch_first else value.transpose(0, 1)

    compare(model, lambda v: multihead(layer, v, v.flip(2), v, mask), x, preset)


def encoder_block(layer: nn.TransformerEncoderLayer, x: Tensor, mask: Tensor | None) -> Tensor:
    """A block of `nn.TransformerEncoder`, with constant deviations and activations that keep their relevance."""

    def normed(norm: nn.LayerNorm, v: Tensor) -> Tensor:
        sigma = (v.var(-1, correction=0, keepdim=True) + norm.eps).sqrt().detach()
        return (v - v.mean(-1, keepdim=True)) / sigma * norm.weight + norm.bias

    def feed_forward(v: Tensor) -> Tensor:
        hidden = layer.linear1(v)
        return layer.linear2(hidden * (layer.activation(hidden) / hidden).detach())

    def attention(v: Tensor) -> Tensor:
        return multihead(layer.self_attn, v, v, v, mask)

    if layer.norm_first:
        x = x + attention(normed(layer.norm1, x))
        return x + feed_forward(normed(layer.norm2, x))
    x = normed(layer.norm1, x + attention(x))
    return normed(layer.norm2, x + feed_forward(x))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("hidden", [None, HIDDEN], ids=["all tokens", "hidden tokens"])
def test_an_encoder_is_seen_through_its_fast_path(activation: str, norm_first: bool, hidden: Tensor | None) -> None:
    """In evaluation torch runs a block as one fused function, and an encoder with hidden tokens on nested tensors."""
    block = nn.TransformerEncoderLayer(8, 2, 16, activation=activation, batch_first=True, norm_first=norm_first)
    encoder = random_biases(nn.TransformerEncoder(block, 2, enable_nested_tensor=not norm_first))
    mask = None if hidden is None else additive(hidden)[:, None, None]
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    seen = torch.ones(2, 5, 1).double() if hidden is None else (~hidden)[:, :, None].double()

    def model(v: Tensor) -> Tensor:
        return encoder(v, src_key_padding_mask=hidden) * seen

    def replica(v: Tensor) -> Tensor:
        for layer in encoder.layers:
            v = encoder_block(layer, v, mask)
        return v * seen

    compare(model, replica, x, "lrp_z")
    with torch.no_grad():  # where the fast path is open
        fast = model(x)
        passed = run(Whole(lambda v: model(v).flatten(1)), x, presets.lrp_z())
    torch.testing.assert_close(passed.logits.detach(), fast.flatten(1))
    assert passed.mode.capture.attention


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_pooling_with_a_query_of_its_own(need_weights: bool) -> None:
    """A query that does not depend on the image is a weight: the keys take all of the scores' relevance."""
    layer = random_biases(nn.MultiheadAttention(8, 1, batch_first=True, add_bias_kv=False))
    query, x = torch.randn(1, 3, 8).double(), torch.randn(2, 5, 8, dtype=torch.float64)

    def replica(v: Tensor) -> Tensor:
        (q_weight, k_weight, v_weight), (q_bias, k_bias, v_bias) = (
            layer.in_proj_weight.chunk(3),
            layer.in_proj_bias.chunk(3),
        )
        scores = F.linear(query, q_weight, q_bias) @ F.linear(v, k_weight, k_bias).mT / 8**0.5
        return layer.out_proj(half(scores.softmax(-1)) @ half(F.linear(v, v_weight, v_bias)))

    compare(lambda v: layer(query.expand(len(v), -1, -1), v, v, need_weights=need_weights)[0], replica, x, "lrp_z")
