"""Operations that are linear in the image, seen as what they are: `z = L x + b`.

A rule for them is one small function of a `Layer`, whether that is a convolution, a sum of two branches or a pooling.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from heatproof.relevance.first_layer import ImageView
from heatproof.tracing import is_live, live_tensors, map_tensors

if TYPE_CHECKING:
    from heatproof.relevance.mode import Call

Weights = Callable[[Tensor], Tensor]  # what is made of the weights; see `Layer.whole`
Product = Callable[[Sequence[Tensor], Weights], Tensor]


@dataclass(eq=False)
class Layer:
    """`z = L x + b` of one or more tensors x.

    `inputs` stand in the model's graph, `values` are what they held, `output` is z, None while no rule would ask for it.
    `product(tensors, of_weights)` is `L` of any tensors in the inputs' place, made of `of_weights` of its weights
    (`torch.abs`: |L|); `transposed(s)` is `Lᵀ s`, one tensor for each input; `bias` broadcasts to z.

    `of_weights` of a product of weights must be the product of that; only where the weights are `whole`, known as one
    tensor, it may be `torch.relu`, too (L⁺). `by_rows` says that the rows of that tensor make the channels of z. Where L
    works number by number, `factors` are its weights, one for each input, which broadcast to z. A `tokenwise` layer does the
    same to each vector along the last axis of its one input.

    For the choice of a rule: `kind` is the operation's name; `path` is that of its module, where the preset asks; `view` is
    set where the input is the image and the preset has a rule of its own for that; `weighted` layers may have a norm merged
    into them; `last` where no other weighted layer follows. `uses` counts the operations that read z; `norm` is the first
    of them, where it is a norm; `pointwise` says that its rule does not mind what z is where no relevance comes back.
    """

    inputs: Sequence[Tensor]
    values: Sequence[Tensor]
    output: Tensor | None
    product: Product
    transposed: Callable[[Tensor], list[Tensor]]
    bias: Tensor | None = None
    whole: bool = True
    by_rows: bool = False
    factors: Sequence[Tensor | float] | None = None
    tokenwise: bool = False
    kind: str = ""
    path: str = ""
    view: ImageView | None = None
    last: bool = False
    weighted: bool = False
    pointwise: bool = False
    uses: int = 0
    norm: "Layer | None" = None

    @property
    def z(self) -> Tensor:
        """The output, which is there whenever a rule asks."""
        assert self.output is not None  # noqa: S101 see recall
        return self.output

    @property
    def targets(self) -> list[Tensor]:
        """Where relevance may go: the inputs, and straight to the image from a first layer."""
        return [*self.inputs, *([] if self.view is None else [self.view.carrier])]

    def weighing(
        self, of_weights: Weights, tensors: Sequence[Tensor]
    ) -> tuple[Tensor, Callable[[Tensor], list[Tensor]]]:
        """L made of `of_weights` of its weights: of tensors in the inputs' place, and as `s -> Lᵀ s`, to be called once.

        The first is the caller's own, to be written into.
        """
        leaves = [tensor.detach().requires_grad_() for tensor in tensors]
        with torch.enable_grad():
            product = self.product(leaves, of_weights)
        return product.detach(), lambda s: list(torch.autograd.grad(product, leaves, s))

    def of_tokens(self, which: Tensor) -> "Layer":
        """A tokenwise layer of some tokens only, bool over all axes but the last."""
        values = [x[which] for x in self.values]

        def transposed(s: Tensor) -> list[Tensor]:
            return self.weighing(_itself, values)[1](s)

        return replace(self, values=values, transposed=transposed)

    def forget(self, norm: "Layer") -> None:
        """Drop z, as `norm`, which alone reads it so far, can be seen as part of this layer."""
        self.norm, self.output, norm.values, norm.inputs = norm, None, [], []

    def recall(self, z: Tensor) -> None:
        """Take z back: something else reads it, too."""
        assert self.norm is not None  # noqa: S101 the one that it was forgotten for
        self.output, self.norm.values = z, [z]

    def scaled(self, scale: Tensor, shift: Tensor) -> "Layer":
        """The layer followed by `scale · z + shift` with one number a channel, as one layer."""

        def product(tensors: Sequence[Tensor], of_weights: Weights) -> Tensor:
            if of_weights is torch.relu:
                return self.product(tensors, lambda w: torch.relu(w * scale.view(-1, *[1] * (w.ndim - 1))))
            return self.product(tensors, of_weights) * of_weights(scale)

        return replace(
            self,
            whole=self.whole and self.by_rows,
            by_rows=False,
            tokenwise=False,
            product=product,
            transposed=lambda s: self.transposed(s * scale),
            output=None,
            bias=shift if self.bias is None else shift + scale * self.bias,
        )


def weighted(call: "Call") -> Layer | None:
    """A dense layer, convolution or matrix product with constants; None where it is something else.

    It is something else where weights or bias depend on the image too, or where `addmm` scales its terms.
    """
    name, function, args, kwargs = call.operation.name, call.operation.pure, list(call.args), dict(call.kwargs)
    bias = kwargs.pop("bias", None)
    if name == "addmm":  # addmm(bias, x, weight)
        bias, *args = args
        function = torch.matmul
    elif name in ("linear", "conv", "conv_transpose") and len(args) > 2:
        bias, args[2] = args[2], None
    live = list(live_tensors((args, kwargs)))
    if len(live) != 1 or is_live(bias) or (name == "addmm" and kwargs):
        return None
    if bias is not None and name.startswith("conv"):
        bias = bias.view(-1, *[1] * (live[0].ndim - 2))

    def product(tensors: Sequence[Tensor], of_weights: Weights) -> Tensor:
        replaced = map_tensors(lambda t: tensors[0] if is_live(t) else of_weights(t), (args, kwargs))
        return function(*replaced[0], **replaced[1])  # type: ignore[no-any-return]

    layer = _layer(call, product, bias)
    axes = [t.ndim for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and not is_live(t)]
    layer.whole = len(axes) == 1
    layer.tokenwise = name == "linear" and axes == [2]
    layer.by_rows = (name == "linear" and live[0].ndim == 2) or (name == "conv" and [live[0].ndim] == axes)
    return layer


def summing(call: "Call") -> Layer:
    """An operation that adds up its input with weights that are not negative: sums, means, average pooling."""
    run = _with_others(call)
    return _layer(call, lambda tensors, _: run(tensors))


def accumulating(call: "Call") -> Layer:
    """An operation that adds some numbers to others; those that do not depend on the image are a bias."""
    run, live = _with_others(call), list(live_tensors((call.args, call.kwargs)))
    with torch.no_grad():
        bias = run([torch.zeros_like(tensor) for tensor in live])
    return _layer(call, lambda tensors, _: run(tensors) - bias, bias)


def additive(call: "Call") -> Layer:
    """`a ± alpha · b`; an operand that does not depend on the image is a bias."""
    sign: float = call.kwargs.get("alpha", 1) * (-1 if call.operation.name == "sub" else 1)
    factors = (sign, 1) if call.operation.reflected else (1, sign)  # 2 - x arrives as (x, 2)
    terms = list(zip(call.args[:2], factors, strict=True))
    signs = [factor for term, factor in terms if is_live(term)]
    constants = [factor * term for term, factor in terms if not is_live(term)]
    shape = torch.broadcast_shapes(*(getattr(term, "shape", ()) for term, _ in terms))

    def product(tensors: Sequence[Tensor], of_weights: Weights) -> Tensor:
        factors = [of_weights(tensor.new_tensor(sign)) for tensor, sign in zip(tensors, signs, strict=True)]
        parts = [tensor.expand(shape) * factor for tensor, factor in zip(tensors, factors, strict=True)]
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    layer = _layer(call, product)
    layer.factors = [float(sign) for sign in signs]
    x = layer.values[0]
    layer.bias = torch.as_tensor(constants[0], dtype=x.dtype, device=x.device) if constants else None
    return layer


def diagonal(call: "Call", scale: Tensor, shift: Tensor) -> Layer:
    """`scale · x + shift`, number by number."""

    def product(tensors: Sequence[Tensor], of_weights: Weights) -> Tensor:
        return tensors[0] * of_weights(scale)

    with torch.no_grad():
        output = call.run()
    values = [call.keep(call.args[0])]
    return Layer(call.args[:1], values, output, product, lambda s: [s * scale], shift, factors=[scale],
                 kind=call.operation.name)  # fmt: skip


def _itself(weights: Tensor) -> Tensor:
    return weights


def _layer(call: "Call", product: Product, bias: Tensor | None = None) -> Layer:
    """The layer that `call` is, with the model's own value and a graph of its own for `Lᵀ`.

    That graph stands on aliases which do not notice writes in place: `Lᵀ` does not look at x.
    """
    inputs = list(live_tensors((call.args, call.kwargs)))
    leaves = [tensor.data.requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        output = _with_others(call)(leaves)
    end = get_gradient_edge(output)  # which does not hold the output itself

    def transposed(s: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(end, leaves, s, retain_graph=True))

    values, kind = [call.keep(tensor) for tensor in inputs], call.operation.name
    return Layer(inputs, values, output.detach(), product, transposed, bias, kind=kind)


def _with_others(call: "Call") -> Callable[[Sequence[Tensor]], Tensor]:
    """The operation as a function of tensors in the place of its live ones, in their order.

    It does not hold on to `call`: the graph would own the mode that owns the graph, and neither would ever be freed.
    """
    function, arguments = call.operation.pure, (call.args, call.kwargs)

    def run(tensors: Sequence[Tensor]) -> Tensor:
        others = iter(tensors)
        args, kwargs = map_tensors(lambda t: next(others) if is_live(t) else t, arguments)
        return function(*args, **kwargs)  # type: ignore[no-any-return]

    return run
