"""Explaining changes nothing around it: after success and failure, in threads, nested, and inside other modes."""

import copy
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import heatproof as hp
from heatproof.errors import InputError
from heatproof.relevance import Call, Preset, composite, presets, run
from heatproof.relevance.layers import Layer
from heatproof.tracing import tracer
from support.nets import TinyCNN, TinyViT
from support.odd_calls import GOING_BACK, QUICK

METHODS = [  # that serve transformers, too
    name
    for name, entry in hp.methods().items()
    if entry.family in ("relevance", "attention", "gradient", "cam") and not entry.needs & {"relu", "pointwise"}
]
SOME = [
    "lrp_epsilon", "lrp_zplus", "lrp_composite", "attn_lrp", "chefer", "transformer_lrp", "attention_rollout",
    "generic_attention", "gradcam", "integrated_gradients",
]  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    **QUICK,
    "gradcam": {"layer": "blocks.0.norm1"},
    "lrp": {"preset": presets.lrp_zplus()},
}


def explain(model: nn.Module, images: Tensor, *, method: str, **options: Any) -> Tensor:
    classifier = hp.Classifier(model, image_size=32, mean=[0.5] * 3, std=[0.5] * 3)
    return hp.explain(classifier, images, [0] * len(images), method=method, **OPTIONS.get(method, {}), **options)


def surroundings(model: nn.Module) -> dict[str, Any]:
    """All that could leak, in a form that can be compared."""
    parameters = dict(model.named_parameters())
    return {
        "training": [part.training for part in model.modules()],
        "requires_grad": [p.requires_grad for p in parameters.values()],
        "grad": [None if p.grad is None else p.grad.numpy().tobytes() for p in parameters.values()],
        "hooks": [
            len(hooks) for part in model.modules() for name, hooks in vars(part).items() if name.endswith("_hooks")
        ],
        "parameter hooks": [len(p._backward_hooks or ()) for p in parameters.values()],
        "weights": {name: value.numpy().tobytes() for name, value in model.state_dict().items()},
        "attributes": [sorted(vars(part)) for part in model.modules()],
        "random": torch.get_rng_state().numpy().tobytes(),
        "function modes": torch._C._len_torch_function_stack(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "grad mode": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": (
            torch.is_autocast_enabled("cpu"),
            torch.get_autocast_dtype("cpu"),
            torch.is_autocast_cache_enabled(),
        ),
        "default dtype": torch.get_default_dtype(),
        "anomaly": torch.is_anomaly_enabled(),
        "saved tensors": torch._C._autograd._saved_tensors_hooks_is_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "nesting": tracer._nesting.level,
    }


@contextmanager
def nothing_leaks(model: nn.Module, *tensors: Tensor) -> Iterator[None]:
    next(model.parameters()).grad = torch.ones_like(next(model.parameters()))
    list(model.parameters())[1].requires_grad_(False)
    before, contents = surroundings(model), [(t.clone(), t.requires_grad, t._version) for t in tensors]
    yield
    after = surroundings(model)
    for name, value in before.items():
        assert after[name] == value, name
    for tensor, (content, wanted, version) in zip(tensors, contents, strict=True):
        assert torch.equal(tensor, content)
        assert (tensor.requires_grad, tensor.grad, tensor._version) == (wanted, None, version)


@pytest.mark.parametrize("method", METHODS)
def test_nothing_leaks_after_success(method: str) -> None:
    model, images = TinyViT(depth=1).eval(), torch.rand(3, 3, 32, 32)
    with nothing_leaks(model, images):
        explain(model, images, method=method, batch_size=2)
    with nothing_leaks(model, wanting := torch.rand(1, 3, 32, 32, requires_grad=True)):
        assert not explain(model, wanting, method=method).requires_grad


class Failing(nn.Module):
    """A ViT whose forward pass, or what goes back through it, fails once it is armed."""

    def __init__(self, error: type[BaseException]) -> None:
        super().__init__()
        self.vit, self.error, self.armed = TinyViT(depth=1), error, True

    def forward(self, x: Tensor) -> Tensor:
        logits = self.vit(x)
        if self.armed and torch.is_grad_enabled():
            raise self.error("in the forward pass")
        return logits


class FailingBackward(torch.autograd.Function):
    error: type[BaseException] = ValueError

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        raise FailingBackward.error("on the way back")


ERRORS = [ValueError, KeyboardInterrupt]


@pytest.mark.parametrize("error", ERRORS)
def test_nothing_leaks_where_the_forward_pass_fails(error: type[BaseException]) -> None:
    model, images = Failing(error).eval(), torch.rand(1, 3, 32, 32)
    for method in METHODS:
        options = {"layer": "vit.norm"} if method == "gradcam" else {}
        with nothing_leaks(model, images), pytest.raises(error, match="in the forward pass"):
            hp.explain(
                hp.Classifier(model, mean=[0.5] * 3, std=[0.5] * 3), images, [0], method=method,
                **{**OPTIONS.get(method, {}), **options},
            )  # fmt: skip
    model.armed = False  # and all is well again
    assert torch.equal(
        explain(model, images, method="transformer_lrp"), explain(model.vit, images, method="transformer_lrp")
    )


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("strict", [True, False])
def test_nothing_leaks_where_the_way_back_fails(error: type[BaseException], strict: bool) -> None:
    class Tailed(TinyViT):
        def forward(self, x: Tensor) -> Tensor:
            return FailingBackward.apply(super().forward(x))

    FailingBackward.error = error
    model, images = Tailed(depth=1).eval(), torch.rand(1, 3, 32, 32)
    expected = hp.errors.UnsupportedOperationError if strict else error
    for method in GOING_BACK:
        by_relevance = hp.methods()[method].family == "relevance"
        with nothing_leaks(model, images), pytest.raises(expected if by_relevance else error):
            explain(model, images, method=method, strict=strict)


def failing_rule(error: type[BaseException]) -> Preset:
    def rule(call: Call) -> Tensor:
        raise error("in a rule")

    return composite(operations={"gelu": rule})


class FailingLinear:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __call__(self, layer: Layer, c: Tensor, z: Tensor) -> list[Tensor]:
        raise self.error("in a rule")


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(
    "preset", [failing_rule, lambda error: composite(dense=FailingLinear(error))], ids=["operation", "way back"]
)
def test_nothing_leaks_where_a_rule_fails(preset: Callable[..., Preset], error: type[BaseException]) -> None:
    model, images = TinyViT(depth=1).eval(), torch.rand(1, 3, 32, 32)
    with nothing_leaks(model, images), pytest.raises(error, match="in a rule"):
        hp.explain(model, images, [0], method="lrp", preset=preset(error))
    with nothing_leaks(model, images):
        hp.explain(model, images, [0], method="lrp_zplus")


# --- threads


def test_threads_do_not_disturb_each_other() -> None:
    """Two models, and the same model, at once in several threads: each map as when alone, to the bit."""
    models, images = [TinyViT(depth=2).eval(), TinyViT(depth=1).eval()], torch.rand(2, 3, 32, 32)
    work = [(model, method) for model in (models[0], models[0], models[1]) for method in SOME]
    expected = [explain(model, images, method=method) for model, method in work]
    interval = sys.getswitchinterval()
    start = threading.Barrier(3)

    def share(offset: int) -> list[bool]:
        start.wait()
        return [
            torch.equal(explain(work[i][0], images, method=work[i][1]), expected[i])
            for i in (*range(offset, len(work)), *range(offset))
        ]

    sys.setswitchinterval(1e-5)
    try:
        with nothing_leaks(copy.deepcopy(models[0])), ThreadPoolExecutor(3) as pool:
            found = list(pool.map(share, (0, 1, len(SOME))))
    finally:
        sys.setswitchinterval(interval)
    assert all(map(all, found))


def test_a_hook_on_a_shared_model_keeps_to_its_thread() -> None:
    """While one thread holds its hook open, another runs the same module on other images."""
    other_ran = threading.Event()

    class Meeting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vit = TinyViT(depth=1)

        def forward(self, x: Tensor) -> Tensor:
            logits = self.vit(x)
            if threading.current_thread() is threading.main_thread() and torch.is_grad_enabled():
                thread = threading.Thread(target=lambda: (self.vit(torch.rand(2, 3, 32, 32) * 9), other_ran.set()))
                thread.start()
                thread.join()
            return logits

    model, images = Meeting().eval(), torch.rand(2, 3, 32, 32)
    found = hp.explain(model, images, [0, 1], method="gradcam", layer="vit.blocks.0.norm1")
    assert other_ran.is_set()
    assert torch.equal(found, hp.explain(model.vit, images, [0, 1], method="gradcam", layer="blocks.0.norm1"))


# --- one explanation inside another


class Attentive(nn.Module):
    """A model that looks where the explanation of another one points."""

    def __init__(self, where: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.vit, self.where = TinyViT(depth=1), where

    def forward(self, x: Tensor) -> Tensor:
        return self.vit(x * self.where(x)[:, None])


@pytest.mark.parametrize("inner", ["lrp_zplus", "transformer_lrp", "saliency"])
def test_an_explanation_inside_a_models_forward_pass(inner: str) -> None:
    guide, images = TinyViT(depth=1).eval(), torch.rand(1, 3, 32, 32).repeat(2, 1, 1, 1)
    nested = Attentive(lambda x: explain(guide, x, method=inner).abs()).eval()
    maps = explain(guide, images, method=inner).abs()
    plain = copy.deepcopy(nested)
    plain.where = lambda x: maps[: len(x)]
    for method in SOME:
        options = {"layer": "vit.norm"} if method == "gradcam" else OPTIONS.get(method, {})
        if method == "integrated_gradients":  # whose points on the way are other images
            continue
        found, expected = (
            hp.explain(hp.Classifier(model, mean=[0.5] * 3, std=[0.5] * 3), images, [0, 0], method=method, **options)
            for model in (nested, plain)
        )
        torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4, msg=method)


def test_a_pass_inside_a_models_forward_pass() -> None:
    def where(x: Tensor) -> Tensor:
        passed = run(guide, x, presets.lrp_zplus())
        with torch.enable_grad():
            score = passed.logits[:, 0]
        return passed.relevance(score).sum(1).abs()

    guide, images = TinyViT(depth=1).eval(), torch.rand(2, 3, 32, 32)
    nested = Attentive(where).eval()
    maps = where(images)
    plain = copy.deepcopy(nested)
    plain.where = lambda x: maps[: len(x)]
    found, expected = (explain(model, images, method="lrp_zplus") for model in (nested, plain))
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)


def test_an_explanation_inside_a_rule() -> None:
    guide, images = TinyCNN().eval(), torch.rand(2, 3, 32, 32)
    expected = explain(guide, images, method="lrp_zplus")
    found: list[Tensor] = []

    def curious(call: Call) -> Tensor:
        found.append(explain(guide, images, method="lrp_zplus"))
        return call.run()

    model = TinyViT(depth=1).eval()
    with_rule = hp.explain(model, images, [0, 0], method="lrp", preset=composite(operations={"reshape": curious}))
    assert found
    assert all(torch.equal(maps, expected) for maps in found)
    assert torch.equal(with_rule, hp.explain(model, images, [0, 0], method="lrp", preset=composite()))


# --- inside whatever the caller has entered


class Counting(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


class CountingBelow(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def double_by_default() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


CONTEXTS: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "set_grad_enabled": lambda: torch.set_grad_enabled(False),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "default device": lambda: torch.device("cpu"),
    "default dtype": double_by_default,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True, check_nan=True),
    "function mode": Counting,
    "dispatch mode": CountingBelow,
}


@pytest.mark.parametrize("name", CONTEXTS)
@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_maps_are_the_same_inside_any_mode(name: str) -> None:
    model, images = TinyViT(depth=1).eval(), torch.rand(2, 3, 32, 32)
    for method in SOME:
        expected = explain(model, images, method=method)
        with CONTEXTS[name]() as entered:
            before = surroundings(model)
            assert torch.equal(explain(model, images, method=method), expected), method
            after = surroundings(model)
            assert after == before
        if isinstance(entered, Counting | CountingBelow):
            assert entered.count > 0


def test_gradients_are_on_inside_a_decorated_function() -> None:
    model, images = TinyViT(depth=1).eval(), torch.rand(2, 3, 32, 32)

    @torch.set_grad_enabled(False)
    def maps(method: str) -> Tensor:
        found = explain(model, images, method=method)
        assert not torch.is_grad_enabled()
        return found

    for method in SOME:
        assert torch.equal(maps(method), explain(model, images, method=method)), method


def test_saving_activations_elsewhere_is_an_error() -> None:
    for method in SOME:
        with torch.autograd.graph.save_on_cpu(), pytest.raises(hp.errors.UnsupportedModelError, match="save_on_cpu"):
            explain(TinyViT(depth=1).eval(), torch.rand(1, 3, 32, 32), method=method)
    assert torch._C._autograd._saved_tensors_hooks_is_enabled()


def within(mode: AbstractContextManager[Any], function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with mode:
        return function(x)


@pytest.mark.parametrize(
    "inside",
    [
        lambda explain, x: within(FakeTensorMode(allow_non_fake_inputs=True), explain, x),
        lambda explain, x: torch.func.vmap(lambda image: explain(image[None])[0])(x),
        lambda explain, x: torch.func.grad(lambda image: explain(image).sum())(x),
        lambda explain, x: torch.func.jvp(explain, (x,), (x,)),
    ],
    ids=["fake", "vmap", "grad", "jvp"],
)
def test_transforms_and_fakes_are_an_error(inside: Callable[..., Any]) -> None:
    model, images = TinyViT(depth=1).eval(), torch.rand(2, 3, 32, 32)
    for method in METHODS:
        with pytest.raises(InputError, match="meta or fake tensors, or this runs within a transform"):
            inside(lambda x, method=method: explain(model, x, method=method), images)
