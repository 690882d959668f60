"""FullGrad: the gradient's share of the image, and of every number that the network adds on the way."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from heatproof.errors import UnsupportedModelError
from heatproof.explainers.feature_maps import precise, to_unit_range
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.relevance import Call, Preset, Rule, rescale, rules, run
from heatproof.tracing import is_live, map_tensors

Constant = Callable[[Call, Tensor], Tensor | None]  # of a call and its value; broadcasts to that

_ACTIVATIONS = (
    *rules.ACTIVATIONS_AT_ZERO, "sigmoid", "hardsigmoid", "softplus", "logsigmoid", "exp", "log", "sqrt", "square", "relu6",
    "hardtanh", "clamp", "threshold",
)  # fmt: skip
_PRODUCTS = ("matmul", "einsum", "tensordot", "inner", "mul")


@explainer("fullgrad", family="gradient", signed=False, needs={"pointwise"}, paper="srinivas2019full")
def fullgrad(model: Classifier, images: Tensor, targets: Targets, *, strict: bool) -> Tensor:
    """FullGrad: the gradient times the image, and the gradient at every bias, each by its size.

    Before their sizes are taken, all these parts sum to the score: what the pixels do not explain, the biases do. Rescaled
    layer by layer, all layers count alike however much they had to say, and neither sign nor sum is left.

    Formula:
        ψ(x ⊙ ∇f) + Σ_l ψ(b_l ⊙ ∂f/∂z_l), over what layer l adds, b_l, to its output z_l on a grid: the bias of a
            convolution,
        β − γμ/σ of a batch norm, y − y′x of an activation y (which is 0 of a ReLU); ψ takes sizes, scales each layer to
        0..1, sums over channels and enlarges bilinearly to the image

    Cost:
        1 forward pass, T ways back.

    Models:
        CNN. Of layers, batch norms and what works number by number; products of activations (gates, attention) and layer
        norms have no biases in this sense.

    Args:
        model: a network whose non-linearities work number by number or are max pooling, as most CNNs.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without such a part is an error, and so are parts that do not sum to the score.

    Returns:
        Maps `[B, T, H, W]`.

    Checked:
        the authors' formula in float64, to 1e-4: tests/explainers/test_fullgrad.py. The authors' code aligns corners
            where it enlarges, adds 1e-6 to what it divides by, and knows no activation but ReLU.
        the score itself, as the sum of all parts, to 1e-9 in float64: tests/explainers/test_fullgrad.py.
        pytorch-grad-cam `FullGrad`, to 2e-4: tests/peers/test_fullgrad.py. On one channel a layer: the peer scales each
            channel by itself.

    Raises:
        UnsupportedOperationError: the model multiplies activations (attention, gates) or normalises by them (layer norm).
        UnsupportedModelError: the parts do not sum to the score: the model adds something elsewhere.
    """
    parts = Parts(images.shape[2:])
    passed = run(model, images, _preset(parts.add), strict=strict)
    maps = []
    for score, last in targets.in_turn(passed.logits):
        parts.clear()
        (gradient,) = passed.per_unit(score, [passed.images], last=last)
        parts.add(images * gradient)
        if strict:
            parts.check(score.detach())
        maps.append(parts.map)
    return torch.stack(maps, 1)


class Parts:
    """What the parts of a score on one way back sum to, `total` `[B]`, and the `map` `[B, H, W]` that they make.

    Each is added as it comes, so that memory does not grow with their number.
    """

    def __init__(self, size: Sequence[int]) -> None:
        self._size = tuple(size)
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.map = self.total = self.sizes = torch.zeros(())

    def add(self, part: Tensor) -> None:
        """Add a part, `[B, ...]`; those on a grid `[B, C, h, w]` are seen in the map."""
        part = precise(part)
        self.total = self.total + part.flatten(1).sum(1)
        self.sizes = self.sizes + part.abs().flatten(1).sum(1)
        if part.ndim == 4 and part[0, 0].numel() > 1:
            scaled = to_unit_range(part.abs(), (1, 2, 3)).sum(1, keepdim=True)
            self.map = self.map + F.interpolate(scaled, self._size, mode="bilinear", align_corners=False)[:, 0]

    def check(self, score: Tensor) -> None:
        """Raise `UnsupportedModelError` where the parts sum to something else than the score `[B]`."""
        tolerance = torch.finfo(score.dtype).eps ** 0.5
        if ((self.total - score).abs() > tolerance * self.sizes).any():
            raise UnsupportedModelError(
                "FullGrad needs every number that the model adds on the way, and here they do not make up the score: "
                f"it is {float(score[0]):.6g}, the parts sum to {float(self.total[0]):.6g} (of the first image). The model "
                "puts constants in by other ways than biases, sums and norms (padding with values, maxima with a constant). "
                "Use a method for any model: input_x_gradient, integrated_gradients."
            )


def _preset(note: Callable[[Tensor], None]) -> Preset:
    """The ordinary gradient; on a way back `note` gets the part of the score that each constant has."""
    return Preset(
        "fullgrad",
        {
            **dict.fromkeys(_ACTIVATIONS, _noted(rules.gradient, _beside_tangent, note)),
            **dict.fromkeys(("linear", "conv", "conv_transpose"), _noted(rescale.linear, _bias, note)),
            **dict.fromkeys(("add", "sub"), _noted(rules.gradient, _at_zero, note)),
            "addmm": _noted(rescale.linear, _at_zero, note),
            "batch_norm": _noted(rules.fixed_batch_norm, _shift, note),
            **dict.fromkeys(_PRODUCTS, rescale.linear),
            **dict.fromkeys(("interpolate", "grid_sample"), rules.resampling(None)),
            "div": rescale.quotient,
        },
    )


def _noted(rule: Rule, constant_of: Constant, note: Callable[[Tensor], None]) -> Rule:
    """`rule`, where it does not refuse, with the constant that the operation adds."""

    def apply(call: Call) -> Tensor:
        refused = len(call.mode.gaps)
        value: Tensor = rule(call)
        constant = constant_of(call, value) if len(call.mode.gaps) == refused else None
        if constant is not None:

            def hear(c: Tensor | None) -> None:
                if c is not None:
                    note(constant * c)

            value.register_hook(hear)
        return value

    return apply


def _bias(call: Call, value: Tensor) -> Tensor | None:
    """Of a dense layer or convolution."""
    bias: Tensor | None = call.kwargs.get("bias", call.args[2] if len(call.args) > 2 else None)
    if bias is None or call.operation.name == "linear":
        return bias
    return bias.view(-1, *[1] * (value.ndim - 2))


def _shift(call: Call, value: Tensor) -> Tensor:
    """Of a batch norm in evaluation mode: what it makes of zeros, a number for each channel."""
    zeros = value.new_zeros(1, value.shape[1], *[1] * (value.ndim - 2))
    return call.run(zeros, *call.args[1:])  # type: ignore[no-any-return]


def _at_zero(call: Call, value: Tensor) -> Tensor | None:  # noqa: ARG001 all operands say it
    """Of a sum: what is left where all that depends on the image is 0; nothing where that is all."""
    if all(is_live(term) for term in call.args):
        return None
    return call.run(*map_tensors(lambda term: torch.zeros_like(term) if is_live(term) else term, call.args))  # type: ignore[no-any-return]


def _beside_tangent(call: Call, value: Tensor) -> Tensor:
    """Of an activation y(x): `y − y′x`, where its tangent meets 0."""
    x: Tensor = call.args[0]
    (slope,) = torch.autograd.grad(value.sum(), x, retain_graph=True)
    return value.detach() - slope * x.detach()
