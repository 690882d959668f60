"""No silent gap: what has no rule is refused, or said."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from heatproof.errors import RelevanceGapWarning, UnsupportedOperationError
from heatproof.relevance import presets, run
from support import odd_calls
from support.nets import TinyCNN, TinyViT
from support.odd_calls import METHODS, SOME, Whole, explain


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * g


class Relu(Square):
    """Another function under the name of an operation that is known."""


@torch.library.custom_op("bad_models::cube", mutates_args=())
def cube(x: Tensor) -> Tensor:
    return x**3


cube.register_autograd(
    lambda ctx, g: 3 * ctx.saved_tensors[0] ** 2 * g,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)

LIBRARY = torch.library.Library("bad_models", "FRAGMENT")
LIBRARY.define("mul(Tensor x, Tensor y) -> Tensor")
LIBRARY.impl("mul", lambda x, y: x * y * y, "CompositeImplicitAutograd")


HIDDEN: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "exp": (torch.exp, "'exp' in module tail runs ExpBackward0"),
    "aten": (torch.ops.aten.exp, "'exp' in module tail runs ExpBackward0"),
    "aten overload": (torch.ops.aten.exp.default, "'exp' in module tail runs ExpBackward0"),
    "autograd.Function": (Square.apply, "SquareBackward out of sight"),
    "by another name": (Relu.apply, "ReluBackward out of sight"),
    "custom op": (cube, "'bad_models::cube' in module tail"),
    "an operation's name": (lambda x: torch.ops.bad_models.mul(x, x), "'bad_models::mul' in module tail"),
    "scripted": (lambda x: torch.jit.trace(torch.square, torch.rand(1))(x), "out of sight"),
}


class Tailed(nn.Module):
    """TinyViT with `function` of its logits on top."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.tail = TinyViT(depth=1), Whole(lambda _, x: function(x), nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.inner(x)) * 2.0


RELEVANCE = [method for method in METHODS if hp.methods()[method].family == "relevance" or method == "transformer_lrp"]


@pytest.mark.parametrize("name", HIDDEN)
def test_no_silent_gap(name: str) -> None:
    """Every relevance method refuses, or warns and goes on; gradients are those of autograd."""
    function, message = HIDDEN[name]
    model, images = Tailed(function).eval(), torch.rand(3, 3, 32, 32)
    for method in RELEVANCE:
        with pytest.raises(UnsupportedOperationError, match=message):
            explain(model, images, method=method)
        if method not in SOME:
            continue
        with pytest.warns(RelevanceGapWarning, match=message) as caught:
            maps = explain(model, images, method=method, strict=False, batch_size=1)
        (told,) = (
            warning for warning in caught if warning.category is RelevanceGapWarning
        )  # three passes, one warning
        assert told.filename == odd_calls.__file__  # the caller outside the package
        assert torch.isfinite(maps).all()
        assert maps.abs().sum() > 0
    leaf = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    torch.testing.assert_close(explain(model, images, method="saliency"), gradient.abs().amax(1), atol=1e-7, rtol=1e-4)


def test_a_lenient_map_takes_the_ordinary_gradient_of_what_has_no_rule() -> None:
    """R = x · c: at the top c is the slope of the unknown function, and the rest is the plain network's."""
    for function, slope in ((Square.apply, lambda z: 2 * z), (torch.exp, torch.exp)):
        model, images = (
            Whole(lambda m, x, f=function: f(m(x)), TinyCNN().double()).eval(),
            torch.rand(2, 3, 8, 8).double(),
        )
        with pytest.warns(RelevanceGapWarning):
            found = explain(model, images, method="lrp_z", strict=False)
        plain, logit = explain(model.inner, images, method="lrp_z"), model.inner(images)[:, 0]
        torch.testing.assert_close(found, (plain * slope(logit)[:, None, None]).detach().float())


def test_a_gap_that_relevance_does_not_meet_is_none(recwarn: pytest.WarningsRecorder) -> None:
    """Transformer LRP stops at the first attention; what is below needs no rule."""
    for function in (Square.apply, torch.exp):
        model = Whole(lambda m, x, f=function: m(f(x))).eval()
        assert explain(model, method="transformer_lrp").sum() > 0
        assert explain(model, method="transformer_lrp", strict=False).sum() > 0
        with pytest.raises(UnsupportedOperationError):
            explain(model, method="attn_lrp")
    assert not [w for w in recwarn if issubclass(w.category, RelevanceGapWarning)]


def test_an_unknown_function_is_no_obstacle_for_gradients() -> None:
    """Both ways back through one pass: only relevance is refused."""
    for function in (Square.apply, torch.exp):
        model, images = Whole(lambda m, x, f=function: f(m(x))).eval(), torch.rand(1, 3, 32, 32)
        passed = run(model, images, presets.lrp_z(), both=True)
        leaf = images.clone().requires_grad_()
        (expected,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
        (found,) = passed.per_unit(passed.logits[:, 0], [passed.images], phase="gradient")
        torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-4)
        with pytest.raises(UnsupportedOperationError):
            passed.relevance(passed.logits[:, 0])


def test_a_pass_of_ones_own_warns_when_it_goes_back() -> None:
    passed = run(Tailed(torch.exp).eval(), torch.rand(1, 3, 32, 32), presets.lrp_z(), strict=False)
    with pytest.warns(RelevanceGapWarning, match="'exp' in module tail"):
        passed.relevance(passed.logits[:, 0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passed.relevance(passed.logits[:, 1])  # each gap is said once


def test_weights_made_by_a_function_of_ones_own_are_constants() -> None:
    """Not of the image, so the product with them is a dense layer and not a product of two activations."""

    class Reparametrised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(5, 27))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x.flatten(1), Square.apply(self.weight))

    model, images = Reparametrised().eval(), torch.rand(2, 3, 3, 3)
    expected = (images.flatten(1) * model.weight[0] ** 2).view_as(images).sum(1).detach()
    torch.testing.assert_close(explain(model, images, method="lrp_z"), expected)
