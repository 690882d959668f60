"""The tracer sees every operation, under one name, and changes nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.tracing import Operation, Tracer
from support.nets import TinyViT


class Recorder(Tracer):
    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.seen: list[tuple[str, str]] = []

    def operation(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.seen.append((operation.name, self.module_path()))
        return super().operation(operation, args, kwargs)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.seen]


def traced(function: Any, *args: Any) -> tuple[Any, list[str]]:
    recorder = Recorder(nn.Identity())
    with recorder:
        result = function(*args)
    return result, recorder.names


def add_in_place(x: Tensor) -> Tensor:
    x = x * 1
    x += 1
    return x


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x + 1, "add"),
        (lambda x: 1 + x, "add"),
        (lambda x: torch.add(x, 1), "add"),
        (add_in_place, "add"),
        (lambda x: x.mul(2), "mul"),
        (lambda x: 2 / x, "div"),
        (lambda x: x / 2, "div"),
        (lambda x: x @ x, "matmul"),
        (lambda x: x[None].bmm(x[None]), "matmul"),
        (lambda x: torch.mm(x, x), "matmul"),
        (lambda x: x.softmax(-1), "softmax"),
        (lambda x: F.softmax(x, -1), "softmax"),
        (lambda x: F.relu(x), "relu"),
        (lambda x: torch.relu_(x * 1), "relu"),
        (lambda x: F.conv2d(x[None, None], x[None, None]), "conv"),
        (lambda x: F.layer_norm(x, (3,)), "layer_norm"),
    ],
)
def test_every_spelling_of_an_operation_has_one_name(function: Any, name: str) -> None:
    _, names = traced(function, torch.rand(3, 3))
    assert names[-1] == name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.randn(5, 5)},
        {"attn_mask": torch.rand(5, 5) > 0.3},
    ],
    ids=["plain", "causal", "scale", "additive mask", "boolean mask"],
)
def test_fused_attention_is_seen_in_its_parts_with_the_same_value(options: dict[str, Any]) -> None:
    if (mask := options.get("attn_mask")) is not None and mask.dtype == torch.bool:
        mask.fill_diagonal_(True)  # a row that may look nowhere has no value
    q, k, v = torch.randn(3, 2, 4, 5, 8).double().unbind(0)
    options = {key: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
               for key, value in options.items()}  # fmt: skip
    parts, names = traced(lambda: F.scaled_dot_product_attention(q, k, v, **options))
    assert names.count("matmul") == 2
    assert names.count("softmax") == 1
    torch.testing.assert_close(parts, F.scaled_dot_product_attention(q, k, v, **options))


def test_fused_attention_with_grouped_queries() -> None:
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 5, 8), torch.randn(2, 2, 5, 8)
    parts, _ = traced(lambda: F.scaled_dot_product_attention(q, k, v, enable_gqa=True))
    torch.testing.assert_close(parts, F.scaled_dot_product_attention(q, k, v, enable_gqa=True))


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_is_seen_in_its_parts(need_weights: bool) -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    recorder = Recorder(layer)
    with torch.no_grad(), recorder:
        value, _ = layer(x, x, x, need_weights=need_weights)
    assert {"linear", "matmul", "softmax"} <= set(recorder.names)
    torch.testing.assert_close(value, layer(x, x, x, need_weights=need_weights)[0])


def test_operations_know_their_module() -> None:
    model = TinyViT(depth=2).eval()
    recorder = Recorder(model)
    with recorder:
        model(torch.rand(1, 3, 32, 32))
    norms = [path for name, path in recorder.seen if name == "layer_norm"]
    assert norms == ["blocks.0.norm1", "blocks.0.norm2", "blocks.1.norm1", "blocks.1.norm2", "norm"]
    assert [path for name, path in recorder.seen if name == "softmax"] == ["blocks.0.attn", "blocks.1.attn"]


def test_parameters_are_constants_and_outputs_the_same() -> None:
    model = TinyViT(depth=2).eval()
    images = torch.rand(2, 3, 32, 32)
    with Recorder(model):
        traced_logits = model(images)
    assert not traced_logits.requires_grad  # nothing depends on a tensor that asks for gradients but the parameters
    assert model.head.weight.requires_grad
    torch.testing.assert_close(traced_logits, model(images).detach())


def test_torch_is_as_before() -> None:
    before = {name: getattr(F, name) for name in dir(F)}
    traced(lambda: F.scaled_dot_product_attention(*torch.rand(3, 1, 2, 2).unbind(0)))
    with pytest.raises(ZeroDivisionError):
        traced(lambda: 1 / 0)
    assert {name: getattr(F, name) for name in dir(F)} == before
    assert not torch.overrides.has_torch_function((torch.rand(1),))
