"""The tracer sees every operation, under one name, and changes nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heatproof.tracing import Operation, Tracer
from heatproof.tracing.operations import describe
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


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x.clip(0, 1), "clamp"),
        (lambda x: x.clamp_max(1), "clamp"),
        (lambda x: torch.mv(x, x[0]), "matmul"),
        (lambda x: torch.concat([x, x]), "cat"),
        (lambda x: x.swapaxes(0, 1), "transpose"),
        (lambda x: torch.special.softmax(x, -1), "softmax"),
        (lambda x: torch.special.expit(x), "sigmoid"),
        (lambda x: F.threshold(x, 0.1, 0.0), "threshold"),
        (lambda x: x**2, "pow"),
        (lambda x: torch.ops.aten.relu(x), "relu"),
        (lambda x: torch.ops.aten.relu.default(x), "relu"),
        (lambda x: torch.square(input=x), "square"),
    ],
)
def test_more_spellings_of_an_operation(function: Any, name: str) -> None:
    _, names = traced(function, torch.rand(3, 3))
    assert names[-1] == name


def test_attributes_of_what_depends_on_the_input_are_operations_too() -> None:
    x = torch.rand(3, 2, requires_grad=True) * 1
    value, names = traced(lambda: (x.shape, x.device, x.mT)[-1])
    assert names == ["mT"]
    assert value.shape == (2, 3)
    assert traced(lambda: x.detach().mT)[1] == ["detach"]


@pytest.mark.parametrize(
    ("function", "parts"),
    [
        (lambda x: torch.addcmul(x, x, x, value=2), ["mul", "mul", "add"]),
        (lambda x: x.addcdiv_(x, x + 1), ["add", "div", "add", "copy"]),
        (lambda x: torch.baddbmm(x[None], x[None], x[None], alpha=3), ["matmul", "mul", "add"]),
        (lambda x: torch.addmm(x, x, x, beta=2), ["matmul", "mul", "add"]),
        (lambda x: torch.addmm(x, x, x), ["addmm"]),
        (lambda x: torch.lerp(x, x, 0.5), ["mul", "mul", "add"]),
        (lambda x: torch.var_mean(x, 1)[1], ["var", "mean"]),
        (lambda x: F.normalize(x), ["norm", "clamp", "expand_as", "div"]),
        (lambda x: torch.einsum("ij,jk->ik", x, x), ["einsum"]),
    ],
)
def test_a_fused_function_is_seen_in_its_parts_with_the_same_value(function: Any, parts: list[str]) -> None:
    x = torch.rand(3, 3).double()
    value, names = traced(function, x.clone())
    assert [name for name in names if name not in ("getitem", "dim", "clone")][-len(parts) :] == parts
    torch.testing.assert_close(value, function(x.clone()))


@pytest.mark.parametrize(
    "call",
    [
        lambda x: torch.var_mean(x),
        lambda x: torch.var_mean(x, True),
        lambda x: torch.std_mean(x, (0, 1), False, True),
        lambda x: torch.std_mean(x, 1, correction=0),
        lambda x: (torch.rsub(x, 3, alpha=2), x.diff(n=2), x.diff(dim=0, prepend=x[:1])),
        lambda x: (torch.linalg.multi_dot([x, x, x]), torch.linalg.vecdot(x, x), torch.ger(x[0], x[1])),
        lambda x: (F.cosine_similarity(x, x.flip(0)), F.softmin(x, 1), F.lp_pool1d(x, 2, 2)),
        lambda x: (torch.addmv(x[0], x, x[1], beta=0), torch.addr(x, x[0], x[1]), F.bilinear(x, x, x[:, None, :] * x)),
        lambda x: x.index_add(0, torch.tensor([0]), x[:1], alpha=3),
    ],
)
def test_parts_have_the_value_of_the_whole(call: Any) -> None:
    x = torch.rand(3, 3).double().requires_grad_() * 1
    torch.testing.assert_close(traced(call, x)[0], call(x))


def test_what_an_operation_is_called_is_found_once() -> None:
    for function in (torch.Tensor.add_, torch.relu, torch.Tensor.zero_, torch.Tensor.T.__get__, F.dropout):
        assert describe(function) is describe(function)


@pytest.mark.parametrize("write", ["zero_", "fill_", "copy_", "normal_", "bernoulli_", "random_", "masked_fill_"])
def test_the_pure_twin_of_a_function_that_writes(write: str) -> None:
    arguments: dict[str, tuple[Any, ...]] = {
        "fill_": (3.0,),
        "copy_": (torch.full((4,), 2.0),),
        "masked_fill_": (torch.tensor([True, False, True, False]), 7.0),
    }
    operation = describe(getattr(torch.Tensor, write))
    assert operation.inplace
    before, written = torch.ones(4), torch.ones(4)
    torch.manual_seed(1)
    getattr(written, write)(*arguments.get(write, ()))
    torch.manual_seed(1)
    value = operation.pure(before, *arguments.get(write, ()))
    assert torch.equal(value, written)
    assert torch.equal(before, torch.ones(4))


def test_what_only_relabels_a_tensor_is_no_write() -> None:
    for name in ("squeeze_", "unsqueeze_", "requires_grad_", "detach_"):
        assert not describe(getattr(torch.Tensor, name)).inplace
