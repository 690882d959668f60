"""One battery over the registry: every explainer keeps the contract, without a list of its own."""

import copy
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import InputError, UnsupportedModelError
from support.nets import TinyCNN, TinyViT

QUICK: dict[str, dict[str, Any]] = {
    "lime": {"samples": 40, "segments": 12},
    "kernel_shap": {"samples": 40, "segments": 12},
    "rise": {"samples": 30, "cells": 4},
    "occlusion": {"window": 8},
    "integrated_gradients": {"steps": 5},
    **{key: {"steps": 3} for key in ("transition_attention", "bidirectional_transformer")},
    "blur_integrated_gradients": {"steps": 5},
    **{key: {"samples": 5} for key in ("expected_gradients", "gradient_shap")},
    **{key: {"samples": 4} for key in ("smoothgrad", "smoothgrad_squared", "vargrad")},
}  # settings that keep the battery quick
DRAWING: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"baseline": "noise"},
    "deep_lift": {"baseline": "noise"},
}  # where randomness is an option
_CAMS = [name for name, entry in hp.methods().items() if entry.family == "cam"]
POSITIVE_PARTS = ("attention_gradcam", *_CAMS)  # where everything may speak against the target
MODELS: dict[str, Callable[[], nn.Module]] = {"vit": TinyViT, "cnn": TinyCNN}
CASES = [(method, model) for method in hp.methods() for model in MODELS]


def serves(method: str, model: str) -> bool:
    beyond = {"relu", "pointwise"} if model == "vit" else {"attention"}
    return not beyond & hp.methods()[method].needs


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
    """Blotches, which superpixels can follow, with some grain."""
    random = torch.Generator().manual_seed(3)
    coarse, fine = torch.rand(5, 1, 5, 5, generator=random), torch.rand(5, 3, 32, 32, generator=random)
    return (nn.functional.interpolate(coarse, (32, 32), mode="bilinear") + 0.1 * fine) * 4 - 2


def explain(model: Any, images: Tensor, targets: Any = None, *, method: str, **options: Any) -> Tensor:
    return hp.explain(model, images, targets, method=method, **{**QUICK.get(method, {}), **options})


@pytest.mark.parametrize(("method", "name"), CASES)
def test_maps_are_raw_float32_of_the_images_size_and_finite(
    method: str, name: str, models: dict[str, hp.Classifier], images: Tensor
) -> None:
    if not serves(method, name):
        with pytest.raises(UnsupportedModelError):
            explain(models[name], images, method=method)
        return
    maps = explain(models[name], images, method=method)
    assert maps.shape == (5, 32, 32)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert torch.isfinite(maps).all()
    telling = maps.flatten(1).amax(1) > maps.flatten(1).amin(1)
    if method in POSITIVE_PARTS:
        assert (telling | (maps == 0).flatten(1).all(1)).all()
        assert telling.any()
    else:
        assert telling.all(), "a constant map says nothing"
    assert hp.methods()[method].signed or not (maps < 0).any()


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


@pytest.mark.parametrize(("method", "name"), [case for case in CASES if serves(*case)])
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


@pytest.mark.parametrize(("method", "name"), [case for case in CASES if serves(*case)])
def test_several_targets_are_each_as_alone(
    method: str, name: str, models: dict[str, hp.Classifier], images: Tensor
) -> None:
    targets = torch.tensor([[0, 1], [1, 2], [2, 0], [1, 1], [0, 2]])
    both = explain(models[name], images, targets, method=method)
    assert both.shape == (5, 2, 32, 32)
    for t in range(2):
        alone = explain(models[name], images, targets[:, t], method=method)
        torch.testing.assert_close(both[:, t], alone, atol=1e-4 * float(alone.abs().max()), rtol=0)


@pytest.mark.parametrize(("method", "name"), [case for case in CASES if serves(*case)])
def test_nothing_leaks(method: str, name: str, models: dict[str, hp.Classifier], images: Tensor) -> None:
    model = copy.deepcopy(models[name])
    frozen = next(model.module.parameters()).requires_grad_(False)
    before = {key: value.clone() for key, value in model.module.state_dict().items()}
    original, state = images.clone(), torch.get_rng_state()
    with torch.inference_mode():
        explain(model, images, method=method)
    with torch.no_grad():
        explain(model, images, method=method)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, original)
    assert not images.requires_grad
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in list(model.module.parameters())[1:])
    assert all(p.grad is None for p in model.module.parameters())
    assert not model.module.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())
    for key, value in model.module.state_dict().items():
        assert torch.equal(value, before[key])


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
