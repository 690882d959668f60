"""One battery over the registry: every explainer keeps the contract, without a list of its own."""

import copy
import itertools
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import InputError, UnsupportedModelError
from heatproof.explainers.registry import Sum
from heatproof.probing.baselines import blur
from support.explainer_battery import (
    DRAWING,
    blotches,
    check_change,
    check_contract,
    explain,
    in_float64,
    is_linear,
    nothing_leaks,
    upsampled,
)
from support.nets import TinyCNN, TinyViT

# Where the defaults are a limit in which a method meets another one: what it is for.
OWN_SETTING: dict[str, dict[str, Any]] = {
    "lrp": {"rules": {"conv": "gamma"}},
    "lrp_epsilon": {"relative": True},
}
MODELS: dict[str, Callable[[], nn.Module]] = {"vit": TinyViT, "cnn": TinyCNN}
CASES = [(method, model) for method in hp.methods() for model in MODELS]


def serves(method: str, model: str) -> bool:
    beyond = {"relu", "pointwise"} if model == "vit" else {"attention"}
    return not beyond & hp.methods()[method].needs


SERVED = [case for case in CASES if serves(*case)]


def a_model_for(method: str) -> str:
    return next(name for name in MODELS if serves(method, name))


@pytest.fixture(scope="module")
def models() -> dict[str, hp.Classifier]:
    torch.manual_seed(1)
    return {
        name: hp.Classifier(make().eval(), image_size=32, mean=[0.5] * 3, std=[0.25] * 3)
        for name, make in MODELS.items()
    }


@pytest.fixture(scope="module")
def images() -> Tensor:
    return blotches(5)


Exact = Callable[..., Tensor]


@pytest.fixture(scope="module")
def exact(models: dict[str, hp.Classifier], images: Tensor) -> Exact:
    """`(method, model, **arguments) -> native maps` `[5, 3, h, w]` of the classes 0, 1, 2, in double precision; kept."""
    doubled = {name: in_float64(model) for name, model in models.items()}
    kept: dict[tuple[str, str], Tensor] = {}

    def maps_of(method: str, name: str, **arguments: Any) -> Tensor:
        if arguments or (method, name) not in kept:
            given = {"resolution": "native", **arguments}
            found = explain(doubled[name], images.double(), [[0, 1, 2]] * 5, method=method, **given)
            return found if arguments else kept.setdefault((method, name), found)
        return kept[method, name]

    return maps_of


@pytest.mark.parametrize(("method", "name"), CASES)
def test_maps_are_raw_float32_of_the_images_size_and_finite(
    method: str, name: str, models: dict[str, hp.Classifier], images: Tensor
) -> None:
    if not serves(method, name):
        with pytest.raises(UnsupportedModelError):
            explain(models[name], images, method=method)
        return
    check_contract(method, explain(models[name], images, method=method), (5, 32, 32))


@pytest.mark.parametrize("method", [name for name, entry in hp.methods().items() if "attention" in entry.needs])
def test_a_method_that_needs_attention_refuses_a_network_without(method: str, images: Tensor) -> None:
    """Also one of whose operations it has all the rules."""
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    with pytest.raises(UnsupportedModelError, match="attention"):
        explain(nn.Sequential(*layers).eval(), images, method=method)


@pytest.mark.parametrize("method", [name for name, entry in hp.methods().items() if entry.signed])
def test_a_signed_method_speaks_against_a_class_somewhere(
    method: str, models: dict[str, hp.Classifier], images: Tensor
) -> None:
    """Not on every model: z⁺ is signed on transformers only."""
    assert any((explain(models[name], images, method=method) < 0).any() for name in MODELS if serves(method, name))


@pytest.mark.parametrize(("method", "name"), SERVED)
def test_a_map_does_not_depend_on_its_batch(
    method: str, name: str, models: dict[str, hp.Classifier], images: Tensor
) -> None:
    keys = list("abcde")
    together = explain(models[name], images, method=method, keys=keys)
    tolerance = 1e-4 * float(together.abs().max())
    for i in (0, 3):
        alone = explain(models[name], images[i : i + 1], method=method, keys=keys[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], atol=tolerance, rtol=0)
    reordered = explain(models[name], images.flip(0), method=method, keys=keys[::-1], batch_size=2)
    torch.testing.assert_close(reordered.flip(0), together, atol=tolerance, rtol=0)
    without_keys = explain(models[name], images, method=method)
    by_content = explain(models[name], images[3:4], method=method)
    torch.testing.assert_close(by_content[0], without_keys[3], atol=1e-4 * float(without_keys.abs().max()), rtol=0)


@pytest.mark.parametrize("method", list(hp.methods()))
def test_a_map_does_not_depend_on_how_many_threads_work(
    method: str, models: dict[str, hp.Classifier], images: Tensor
) -> None:
    """Torch's own threads, and those that explain some of the images each, at once and with the same model."""
    keys, before, interval = list("abcde"), torch.get_num_threads(), sys.getswitchinterval()
    model = models[a_model_for(method)]
    together = explain(model, images, method=method, keys=keys)
    parts = [slice(0, 3), slice(2, 5), slice(1, 4)]
    start = threading.Barrier(3)

    def share(rows: slice) -> Tensor:
        start.wait()
        return explain(model, images[rows], method=method, keys=keys[rows])

    sys.setswitchinterval(1e-5)
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        with ThreadPoolExecutor(3) as pool:
            found = list(pool.map(share, parts))
    finally:
        torch.set_num_threads(before)
        sys.setswitchinterval(interval)
    for rows, maps in zip(parts, found, strict=True):
        torch.testing.assert_close(maps, together[rows], atol=1e-4 * float(together.abs().max()), rtol=0)


@pytest.mark.parametrize(("method", "name"), SERVED)
def test_several_targets_are_each_as_alone(
    method: str, name: str, models: dict[str, hp.Classifier], images: Tensor
) -> None:
    targets = torch.tensor([[0, 1], [1, 2], [2, 0], [1, 1], [0, 2]])
    both = explain(models[name], images, targets, method=method)
    assert both.shape == (5, 2, 32, 32)
    for t in range(2):
        alone = explain(models[name], images, targets[:, t], method=method)
        torch.testing.assert_close(both[:, t], alone, atol=1e-4 * float(alone.abs().max()), rtol=0)


@pytest.mark.parametrize(("method", "name"), SERVED)
def test_another_target_makes_another_map_unless_the_method_is_class_agnostic(
    method: str, name: str, exact: Exact
) -> None:
    maps = exact(method, name)
    check_change(method, maps, maps.roll(1, 1))


@pytest.mark.parametrize(("method", "name"), SERVED)
def test_a_contrast_makes_another_map_and_where_a_method_is_linear_the_difference_of_two(
    method: str, name: str, exact: Exact
) -> None:
    maps = exact(method, name)
    contrast = exact(method, name, against=torch.tensor([[1, 2, 0]] * 5))
    check_change(method, maps, contrast)
    assert is_linear(contrast, maps, maps.roll(-1, 1)) == hp.methods()[method].linear


@pytest.mark.parametrize(("method", "name"), SERVED)
def test_native_maps_upsampled_as_declared_are_the_maps(method: str, name: str, exact: Exact) -> None:
    native, maps = exact(method, name), exact(method, name, resolution="input")
    described, grid = hp.methods()[method].sections["Returns"], tuple(native.shape[-2:])
    if described.startswith("Maps `[B, T, H, W]`"):
        assert grid == (32, 32)
    elif "grid of the base method" not in described:
        assert max(grid) < 32
        assert "token grid" not in described or grid == (4, 4)
    torch.testing.assert_close(maps, upsampled(method, native, (32, 32)), rtol=0, atol=1e-6 * float(maps.abs().max()))


class OneLabel(nn.Module):
    """A model that has only one of the labels of another."""

    def __init__(self, inner: nn.Module, label: int) -> None:
        super().__init__()
        self.inner, self.label = inner, label

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[:, self.label : self.label + 1]


@pytest.mark.parametrize(("method", "name"), SERVED)
def test_labels_of_a_multi_label_model_are_explained_as_if_each_were_the_only_one(
    method: str, name: str, models: dict[str, hp.Classifier], images: Tensor
) -> None:
    """Several in one call. What compares classes says that one is not enough."""
    options: dict[str, Any] = {"task": "multilabel", "image_size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
    module, images = models[name].module, images[:2]
    maps = explain(hp.Classifier(module, **options), images, [[0, 2]] * 2, method=method)
    for t, label in enumerate((0, 2)):
        only = hp.Classifier(OneLabel(module, label).eval(), **options)
        try:
            expected = explain(only, images, [0] * 2, method=method)
        except UnsupportedModelError as refusal:
            assert "compares classes" in str(refusal)  # noqa: PT017
            continue
        torch.testing.assert_close(maps[:, t], expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


class WithoutConstants(TinyCNN):
    """Nothing but the image adds to the score, and no part of it speaks against class 0 in the head."""

    def __init__(self) -> None:
        super().__init__()
        for constant in (*(layer.bias for layer in self.children()), self.bn1.running_mean, self.bn2.running_mean):
            nn.init.zeros_(constant)
        with torch.no_grad():
            self.head.weight[0].abs_()


def known_sums(model: hp.Classifier, images: Tensor) -> Mapping[str, Tensor]:
    """What a map for class 0 may be declared to sum to, `[B]` each; the baseline is 0."""

    def f(x: Tensor) -> Tensor:
        return model(x)[:, 0].detach()

    blurred = blur(images, min(images.shape[2:]) / 4)
    changes = {
        "f(x) − f(baseline)": f(images) - f(torch.zeros_like(images)),
        "f(x) − f(blurred x)": f(images) - f(blurred),
    }
    if not isinstance(model.module, WithoutConstants):
        return changes
    return {**changes, "f(x)": f(images), "1": torch.ones_like(f(images))}


@pytest.mark.parametrize("method", list(hp.methods()))
def test_maps_sum_to_what_is_declared_and_are_declared_where_they_do(
    method: str, models: dict[str, hp.Classifier], images: Tensor
) -> None:
    """In float64, with tolerances for what ε absorbs, and for integrals that are sums of 50 steps.

    These are far better on the smooth ViT than where the gradient jumps as a ReLU goes on or off.
    """
    entry = hp.methods()[method]
    options: dict[str, Any] = {"baseline": 0.0} if "baseline" in entry.options else {}
    tolerance = dict.fromkeys(MODELS, 1e-4)
    if entry.complete is not None and "steps" in entry.options:
        options["steps"], tolerance = 50, {"vit": 5e-4, "cnn": 1e-2}
    without = hp.Classifier(WithoutConstants().eval(), mean=[0.5] * 3, std=[0.25] * 3)
    found: dict[str, list[bool]] = {}
    for name, single in (*models.items(), ("cnn", without)):
        if serves(method, name):
            model, exact = in_float64(single), images[:3].double()
            maps = explain(model, exact, [0] * 3, method=method, **options).double()
            size = maps.abs().sum((1, 2))
            for words, total in known_sums(model, exact).items():
                near = (maps.sum((1, 2)) - total).abs() <= tolerance[name] * size
                found.setdefault(words, []).append(bool(near.all()))
    true = {words for words, near in found.items() if all(near)}
    assert true <= {*get_args(Sum)}
    assert entry.complete in (true or {None})


def twins(maps: Mapping[str, Mapping[str, Tensor]]) -> list[tuple[str, str]]:
    """Pairs of methods whose maps (model -> method -> `[N, H, W]`) are the same on every model that both serve.

    The same: no pixel differs by more than a thousandth of the map's largest value, after each map was divided by that, so
    that a method which only rescales another counts as the same.
    """
    units = {
        model: {method: found / found.abs().amax((1, 2), keepdim=True).clamp(min=1e-30) for method, found in by.items()}
        for model, by in maps.items()
    }
    methods = sorted({method for by in maps.values() for method in by})

    def same(first: str, second: str) -> bool:
        shared = [by for by in units.values() if first in by and second in by]
        return bool(shared) and all(float((by[first] - by[second]).abs().max()) <= 1e-3 for by in shared)

    return [pair for pair in itertools.combinations(methods, 2) if same(*pair)]


def test_no_two_methods_give_the_same_maps_on_all_models(exact: Exact) -> None:
    """A method that only renames another must be an alias, which the registry does not list."""

    def maps_of(method: str, name: str) -> Tensor:
        native = exact(method, name, **OWN_SETTING.get(method, {}))
        return upsampled(method, native, (32, 32)).flatten(0, 1)

    maps = {name: {method: maps_of(method, name) for method in hp.methods() if serves(method, name)} for name in MODELS}
    assert not twins(maps)


def test_methods_that_rename_or_rescale_another_are_found() -> None:
    one, other = torch.randn(2, 3, 4, 4)
    vit = {
        "one": one,
        "renamed": one.clone(),
        "rescaled": 7 * one,
        "turned": -one,
        "other": other,
        "on one model": other,
    }
    cnn = {"one": other, "renamed": other, "rescaled": other / 3, "turned": other, "other": one}
    expected = [("on one model", "other"), ("one", "renamed"), ("one", "rescaled"), ("renamed", "rescaled")]
    assert twins({"vit": vit, "cnn": cnn}) == expected


@pytest.mark.parametrize(("method", "name"), SERVED)
def test_nothing_leaks(method: str, name: str, models: dict[str, hp.Classifier], images: Tensor) -> None:
    model = copy.deepcopy(models[name])
    next(model.module.parameters()).requires_grad_(False)
    with nothing_leaks(model.module, images):
        with torch.inference_mode():
            explain(model, images, method=method)
        with torch.no_grad():
            explain(model, images, method=method)


@pytest.mark.parametrize("method", list(hp.methods()))
def test_seeds(method: str, models: dict[str, hp.Classifier], images: Tensor) -> None:
    options = {"batch_size": 4, **DRAWING.get(method, {})}  # given, so that equal calls give equal numbers
    model = models[a_model_for(method)]
    first, again, other = (explain(model, images, method=method, seed=s, **options) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert torch.equal(first, other) != ("random" in hp.methods()[method].injected)


@pytest.mark.parametrize("method", list(hp.methods()))
def test_metadata_is_complete(method: str) -> None:
    entry = hp.methods()[method]
    assert entry.summary.endswith(".")
    assert entry.paper
    with pytest.raises(InputError, match="no option 'layre'"):
        explain(TinyCNN().eval(), torch.rand(1, 3, 32, 32), method=method, layre=1)
