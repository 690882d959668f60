"""The rules of LRP once more, slow and on their own: ordinary autograd through surrogates with the same values.

A rule is a surrogate: an expression of the value z whose gradient is `c = R / x`. What must be constant is detached;
contributions of either sign come from clamped copies of inputs and weights. In float64, on a model that runs as it is.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Apply = Callable[[Tensor, Tensor], Tensor]  # (inputs, weights) -> outputs, linear in both
VANISHING = 1e-5


@dataclass(frozen=True)
class Rule:
    """How a linear layer shares: `plain`, `epsilon`, `gamma`, `alpha_beta`."""

    kind: str = "plain"
    size: float = 0.0  # ε, γ or α
    bias: bool = True

    def surrogate(self, apply: Apply, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The value `apply(x, weight) + bias`, whose gradient by x is what goes back."""
        of_x = apply(x, weight)
        shift = torch.zeros_like(of_x) if bias is None else bias.expand_as(of_x)
        z = of_x + shift
        if self.kind == "plain":
            return z
        if self.kind == "epsilon":
            return valued(z, of_x * quotient(z, torch.where(z < 0, z - self.size, z + self.size), 0))
        x_up, x_down = x * (x > 0), x * (x < 0)
        positive = apply(x_up, weight.clamp(min=0)) + apply(x_down, weight.clamp(max=0))
        negative = apply(x_up, weight.clamp(max=0)) + apply(x_down, weight.clamp(min=0))
        noise = positive - negative + z.abs() + shift.abs()
        if self.kind == "gamma":
            up = z > 0
            total = z + self.size * torch.where(up, positive + shift.clamp(min=0), negative + shift.clamp(max=0))
            share = of_x + self.size * torch.where(up, positive, negative)
            return valued(z, torch.where(z == 0, 0.0, share * quotient(z, total, noise)))
        of_bias = shift if self.bias else torch.zeros_like(shift)
        to_positive = quotient(z, positive + of_bias.clamp(min=0), noise)
        to_negative = quotient(z, negative + of_bias.clamp(max=0), noise)
        return valued(z, self.size * positive * to_positive - (self.size - 1) * negative * to_negative)


PLAIN = Rule()


def quotient(numerator: Tensor, denominator: Tensor, noise: Tensor | float) -> Tensor:
    """A constant; 0 where the denominator vanishes beside the sizes in `noise`."""
    safe = denominator.abs() > VANISHING * torch.as_tensor(noise)
    return torch.where(safe, numerator / denominator, 0.0).detach()


def valued(value: Tensor, surrogate: Tensor) -> Tensor:
    """`surrogate` with another value."""
    return surrogate + (value - surrogate).detach()


@dataclass(frozen=True)
class Rules:
    """A preset as the replica knows it. `products` is what each of two live factors gets; `box` that of first layers."""

    dense: Rule = PLAIN
    conv: Rule = PLAIN
    sums: Rule = PLAIN
    norm: Rule = PLAIN
    bilinear_constants: Rule | None = None  # of products with constants of more than two axes; else as `dense`
    constant_attention: bool = False
    start_at_one: bool = False
    box: tuple[float, float] | None = None


def everywhere(rule: Rule, **others: Any) -> Rules:
    return Rules(rule, rule, rule, rule, **others)


_PLAIN_EPSILON = Rule("epsilon", 1e-6)
_GAMMA, _SMALL_GAMMA = Rule("gamma", 0.25), Rule("gamma", 0.05)
_ATTENTIVE = {"dense": _SMALL_GAMMA, "conv": _GAMMA, "norm": _GAMMA, "bilinear_constants": PLAIN}
BOX = (-4.0, 4.0)

REPLICAS = {
    "lrp_z": Rules(),
    "lrp_epsilon": Rules(_PLAIN_EPSILON, _PLAIN_EPSILON),
    "lrp_gamma": everywhere(_GAMMA),
    "lrp_alpha_beta": everywhere(Rule("alpha_beta", 2.0), start_at_one=True),
    "lrp_zplus": everywhere(Rule("alpha_beta", 1.0), start_at_one=True),
    "excitation_backprop": everywhere(Rule("alpha_beta", 1.0, bias=False), start_at_one=True),
    "deep_taylor": everywhere(Rule("alpha_beta", 1.0), start_at_one=True, box=BOX),
    "lrp_composite": Rules(_PLAIN_EPSILON, _GAMMA, norm=_GAMMA, box=BOX),
    "attn_lrp": Rules(**_ATTENTIVE),
    "cp_lrp": Rules(**_ATTENTIVE, constant_attention=True),
}

_AT_ZERO = {"gelu": 0.5, "silu": 0.5, "hardswish": 0.5, "elu": 1.0, "relu6": 0.0, "tanh": 1.0}
_MOVES = frozenset("unfold transpose reshape view flatten permute contiguous pad mul".split())
_NAMES = {"mm": "matmul", "bmm": "matmul", "conv2d": "conv", "true_divide": "div", "truediv": "div"}


def live(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


class Readers(TorchFunctionMode):
    """Counts the operations that read each layer's output, in the order in which the layers run."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []
        self.counts: list[int] = []

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            for index, output in enumerate(self.outputs):
                self.counts[index] += any(arg is output for arg in args)
        if function in (F.conv2d, F.linear):
            self.outputs.append(result)
            self.counts.append(0)
        return result


class Replica(TorchFunctionMode):
    """Runs a model, whose parameters ask for no gradients, with surrogates."""

    def __init__(self, rules: Rules, eps: float, readers: list[int]) -> None:
        super().__init__()
        self.rules = rules
        self.eps, self.readers = eps, iter(readers)
        self.boxes: dict[int, tuple[Tensor, Tensor, Tensor]] = {}  # id -> (the tensor, kept alive, its box)
        self.layers: dict[int, tuple[Any, ...]] = {}

    def __torch_function__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        reflected = name.startswith("__r")
        name = name.removeprefix("__").removesuffix("__").removesuffix("_")
        if function.__name__.startswith(("__i", "__r")) and name[1:] in ("add", "sub", "mul", "truediv", "matmul"):
            name = name[1:]
        handler = getattr(self, "of_" + _NAMES.get(name, name), None)
        if handler is None and name in _AT_ZERO:
            handler = lambda x, *_, **__: self.activation(function, name, x, *args[1:])  # noqa: E731
        if reflected:
            args = tuple(reversed(args))
        if handler is None or name == "get":
            result = function(*args, **kwargs)
        else:
            kwargs.pop("inplace", None)
            result = handler(*args, **kwargs)
        self.follow_box(name, function, args, kwargs, result)
        return result

    def follow_box(self, name: str, function: Any, args: Any, kwargs: Any, result: Any) -> None:
        moved = name in _MOVES or name == "get"
        if moved and isinstance(result, Tensor) and live(args[0]) and id(args[0]) in self.boxes:
            _, *box = self.boxes[id(args[0])]
            if result.numel() >= args[0].numel():
                self.boxes[id(result)] = (result, *(function(end, *args[1:], **kwargs) for end in box))

    # linear layers

    def layer(self, kind: str, apply: Apply, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        value = self.shared(kind, apply, x, weight, bias)
        if next(self.readers) == 1:  # a norm after it can be part of it
            self.layers[id(value)] = (value, kind, apply, x, weight, bias)
        return value

    def shared(self, kind: str, apply: Apply, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if id(x) in self.boxes:
            return self.boxed(apply, x, weight, bias)
        return getattr(self.rules, kind).surrogate(apply, x, weight, bias)

    def boxed(self, apply: Apply, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        _, low, high = self.boxes[id(x)]
        z = apply(x, weight) if bias is None else apply(x, weight) + bias
        from_box = apply(x, weight) - apply(low, weight.clamp(min=0)) - apply(high, weight.clamp(max=0))
        return valued(z, from_box * quotient(z, from_box, 0))

    def of_conv(self, x: Tensor, weight: Tensor, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
                groups: int = 1) -> Tensor:  # fmt: skip
        apply = lambda x, w: F.conv2d(x, w, None, stride, padding, dilation, groups)  # noqa: E731
        return self.layer("conv", apply, x, weight, None if bias is None else bias.view(-1, 1, 1))

    def of_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.layer("dense", F.linear, x, weight, bias)

    def of_addmm(self, bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        return self.shared("dense", torch.matmul, x, weight, bias)

    def of_batch_norm(self, x: Tensor, mean: Tensor, var: Tensor, weight: Any = None, bias: Any = None, *_: Any,
                      **__: Any) -> Tensor:  # fmt: skip
        scale = (var + self.eps).rsqrt() * weight
        shift = bias - mean * scale
        if id(x) in self.layers:
            _, kind, apply, before, of_layer, of_bias = self.layers[id(x)]
            whole = of_layer * scale.view(-1, *[1] * (of_layer.ndim - 1))
            shift = shift.view(-1, 1, 1) + (0 if of_bias is None else of_bias * scale.view(-1, 1, 1))
            return self.shared(kind, apply, before, whole, shift)
        return self.rules.norm.surrogate(torch.mul, x, scale.view(-1, 1, 1), shift.view(-1, 1, 1))

    # sums

    def of_add(self, a: Any, b: Any, alpha: float = 1) -> Any:
        return self.sum_of(a, b, alpha)

    def of_sub(self, a: Any, b: Any, alpha: float = 1) -> Any:
        return self.sum_of(a, b, -alpha)

    def sum_of(self, a: Any, b: Any, sign: float) -> Any:
        if not (live(a) or live(b)):
            return a + sign * b
        shape = torch.broadcast_shapes(*(getattr(term, "shape", ()) for term in (a, b)))
        like = a if live(a) else b
        terms = [(term, factor) for term, factor in ((a, 1.0), (b, float(sign))) if live(term)]
        constants = [factor * term for term, factor in ((a, 1.0), (b, sign)) if not live(term)]
        stacked = torch.stack([term.expand(shape) for term, _ in terms])
        signs = like.new_tensor([factor for _, factor in terms]).view(-1, *[1] * len(shape))
        bias = torch.as_tensor(constants[0]).to(like) if constants else None
        return self.rules.sums.surrogate(lambda x, w: (x * w).sum(0), stacked, signs, bias)

    def summed(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        return self.rules.sums.surrogate(lambda x, w: function(x) * w, x, x.new_tensor(1.0), None)

    def of_mean(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.summed(lambda x: x.mean(*args, **kwargs), x)

    def of_sum(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.summed(lambda x: x.sum(*args, **kwargs), x)

    def of_adaptive_avg_pool2d(self, x: Tensor, size: Any) -> Tensor:
        return self.summed(lambda x: F.adaptive_avg_pool2d(x, size), x)

    def of_adaptive_avg_pool1d(self, x: Tensor, size: Any) -> Tensor:
        return self.summed(lambda x: F.adaptive_avg_pool1d(x, size), x)

    def of_avg_pool2d(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.summed(lambda x: F.avg_pool2d(x, *args, **kwargs), x)

    # products and quotients

    def of_mul(self, a: Any, b: Any) -> Any:
        return halved(a * b) if live(a) and live(b) else a * b

    def of_div(self, a: Any, b: Any) -> Any:
        return a / (b.detach() if isinstance(b, Tensor) else b)

    def of_matmul(self, a: Tensor, b: Tensor) -> Tensor:
        return self.product(torch.matmul, a, b)

    def of_einsum(self, equation: str, a: Tensor, b: Tensor) -> Tensor:
        return self.product(lambda a, b: torch.einsum(equation, a, b), a, b)

    def product(self, apply: Apply, a: Tensor, b: Tensor) -> Tensor:
        if live(a) and live(b):
            return halved(apply(a, b))
        x, weight = (a, b) if live(a) else (b, a)
        in_order = apply if live(a) else lambda x, w: apply(w, x)
        wide = self.rules.bilinear_constants if weight.ndim > 2 else None
        return (wide or self.rules.dense).surrogate(in_order, x, weight, None)

    def of_baddbmm(self, bias: Tensor, a: Tensor, b: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
        product = self.product(torch.bmm, a, b) * alpha
        return self.sum_of(bias * beta, product, 1)

    def of_addcmul(self, bias: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return self.sum_of(bias, self.of_mul(a, b), 1)

    # the rest

    def of_softmax(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kwargs.pop("_stacklevel", None)
        value = torch.softmax(x, kwargs.get("dim", args[0] if args else None))
        return value.detach() if self.rules.constant_attention else value

    def of_layer_norm(self, x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, *_: Any
                      ) -> Tensor:  # fmt: skip
        axes = tuple(range(-len(shape), 0))
        normed = (x - x.mean(axes, keepdim=True)) / (x.var(axes, correction=0, keepdim=True) + eps).sqrt().detach()
        return normed * (1 if weight is None else weight) + (0 if bias is None else bias)

    def of_sigmoid(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x).detach()

    def of_hardsigmoid(self, x: Tensor) -> Tensor:
        return F.hardsigmoid(x).detach()

    def of_rsqrt(self, x: Tensor) -> Tensor:
        return x.rsqrt().detach()

    def of_sqrt(self, x: Tensor) -> Tensor:
        return x.sqrt().detach()

    def of_norm(self, *args: Any, **kwargs: Any) -> Tensor:
        return torch.norm(*args, **kwargs).detach()

    def of_normalize(self, x: Tensor, p: float = 2, dim: int = 1, eps: float = 1e-12, **_: Any) -> Tensor:
        return x / x.norm(p, dim, keepdim=True).clamp_min(eps).detach()

    def of_pow(self, x: Tensor, exponent: float) -> Tensor:
        return x * x.pow(exponent - 1).detach()

    def activation(self, function: Any, name: str, x: Tensor, *args: Any) -> Tensor:
        value = function(x.clone(), *args)
        return valued(value, x * torch.where(x == 0, _AT_ZERO[name], value / x).detach())

    def of_relu(self, x: Tensor) -> Tensor:
        return torch.relu(x)

    # attention

    def of_scaled_dot_product_attention(self, q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None,
                                        dropout_p: float = 0, is_causal: bool = False, scale: float | None = None,
                                        **_: Any) -> Tensor:  # fmt: skip
        assert not is_causal
        scores = self.of_matmul(q, k.transpose(-2, -1)) * (scale or 1 / math.sqrt(q.shape[-1]))
        if attn_mask is not None:
            scores = self.sum_of(scores, attn_mask, 1)
        return self.of_matmul(self.of_softmax(scores, -1), v)

    def of_multi_head_attention_forward(self, q: Tensor, k: Tensor, v: Tensor, width: int, heads: int, in_weight: Tensor,
                                        in_bias: Tensor, _: Any, __: Any, ___: bool, dropout: float, out_weight: Tensor,
                                        out_bias: Tensor, **options: Any) -> tuple[Tensor, None]:  # fmt: skip
        parts = []
        for x, weight, bias in zip((q, k, v), in_weight.chunk(3), in_bias.chunk(3), strict=True):
            projected = self.rules.dense.surrogate(F.linear, x, weight, bias)  # [N, B, D]
            parts.append(projected.unflatten(2, (heads, -1)).permute(1, 2, 0, 3))
        attended = self.of_scaled_dot_product_attention(*parts).permute(2, 0, 1, 3).flatten(2)
        return self.rules.dense.surrogate(F.linear, attended, out_weight, out_bias), None


def halved(product: Tensor) -> Tensor:
    """Each of two factors gets half."""
    return valued(product, product / 2)


def relevance(model: nn.Module, images: Tensor, target: int, rules: Rules) -> tuple[Tensor, Tensor]:
    """R `[B, C, H, W]` of one class, and the logits, which are the model's own."""
    model = copy.deepcopy(model).double().requires_grad_(False)
    leaves = [images.double().requires_grad_()]
    (eps,) = {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)} or {1e-5}
    with torch.no_grad(), Readers() as readers:
        model(images.double())
    mode = Replica(rules, eps, readers.counts)
    entrance = leaves[0] * 1
    if rules.box is not None:
        leaves += [torch.full_like(leaves[0], end).requires_grad_() for end in rules.box]
        mode.boxes[id(entrance)] = (entrance, *leaves[1:])
    with mode:
        logits = model(entrance)
        logits = getattr(logits, "logits", logits)
    score = logits[:, target]
    start = 1 / score.detach() if rules.start_at_one else torch.ones_like(score)
    slopes = torch.autograd.grad(score, leaves, start, allow_unused=True)
    shares = [leaf * slope for leaf, slope in zip(leaves, slopes, strict=True) if slope is not None]
    return torch.stack(shares).sum(0).detach(), logits.detach()
