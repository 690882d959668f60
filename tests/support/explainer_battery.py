"""What every explainer must do, whatever the model: the checks that the batteries share."""

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import heatproof as hp
from heatproof.errors import EmptyMapWarning, UnsupportedModelError

QUICK: dict[str, dict[str, Any]] = {
    "lime": {"samples": 40, "segments": 12},
    "kernel_shap": {"samples": 40, "segments": 12},
    "rise": {"samples": 30, "cells": 4},
    "occlusion": {"window": 8, "stride": 8},
    "integrated_gradients": {"steps": 5},
    **{key: {"steps": 3} for key in ("transition_attention", "bidirectional_transformer")},
    "blur_integrated_gradients": {"steps": 5},
    **{key: {"samples": 5} for key in ("expected_gradients", "gradient_shap")},
    **{key: {"samples": 4} for key in ("smoothgrad", "smoothgrad_squared", "vargrad")},
}  # settings that keep the batteries quick
DRAWING: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"baseline": "noise"},
    "deep_lift": {"baseline": "noise"},
    "control_average": {"base": "smoothgrad_squared", "options": {"samples": 2}},
}  # where randomness is an option
POSITIVE_PARTS = [
    name
    for name, entry in hp.methods().items()
    if entry.family == "cam" or name == "guided_gradcam"
    or (entry.family == "attention" and not (entry.signed or entry.class_agnostic))
]  # where everything may speak against the target  # fmt: skip
# What a kind of model lacks, and what a method that needs it must say.
_NO_PATCHES = "needs the patches of a vision transformer"
CNN = {"attention": f"needs self-attention|{_NO_PATCHES}"}
VIT = {
    "relu": "this model runs none",
    "pointwise": "'(deep_lift|fullgrad)' has no rule|something else than the batch on the first axis",
}
SWIN = {**VIT, "attention": f"attends within windows|{_NO_PATCHES}"}


def blotches(count: int, size: int = 32) -> Tensor:
    """Images `[count, 3, size, size]` with blotches, which superpixels can follow, and some grain."""
    random = torch.Generator().manual_seed(3)
    coarse, fine = torch.rand(count, 1, 5, 5, generator=random), torch.rand(count, 3, size, size, generator=random)
    return (F.interpolate(coarse, (size, size), mode="bilinear") + 0.1 * fine) * 4 - 2


# the same two images for every class, so that a label of its own model is explained as it is among others
QUICK["control_average"] = {
    "references": blotches(2).repeat(5, 1, 1, 1), "labels": [0, 0, 1, 1, 2, 2, 3, 3, 4, 4], "base": "saliency", "samples": 2,
}  # fmt: skip


def explain(model: Any, images: Tensor, targets: Any = None, *, method: str, **options: Any) -> Tensor:
    """`heatproof.explain` with settings that are quick."""
    given = {**QUICK.get(method, {}), **options}
    if "references" in given:
        given["references"] = F.interpolate(given["references"], images.shape[2:]).to(images)
    return hp.explain(model, images, targets, method=method, **given)


def upsampled(method: str, native: Tensor, size: tuple[int, int]) -> Tensor:
    """Native maps `[..., h, w]` at `size`, as the method declares it."""
    mode = hp.methods()[method].upsampling
    corners = {"align_corners": False} if mode == "bilinear" else {}
    return F.interpolate(native.flatten(0, -3)[:, None], size, mode=mode, **corners).view(*native.shape[:-2], *size)


def differ(left: Tensor, right: Tensor) -> Tensor:
    """Which of two stacks of maps `[..., H, W]`, made in double precision, differ by more than rounding: bool `[...]`."""
    size = torch.maximum(left.abs(), right.abs()).amax((-2, -1))
    return (left - right).abs().amax((-2, -1)) > 1e-5 * size


def check_contract(method: str, maps: Tensor, shape: tuple[int, ...]) -> None:
    """Raw maps of that shape, of the declared sign, and each of them tells something."""
    assert maps.shape == shape
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert torch.isfinite(maps).all()
    assert hp.methods()[method].signed or not (maps < 0).any()
    telling = maps.amax((-2, -1)) > maps.amin((-2, -1))
    if method in POSITIVE_PARTS:
        assert (telling | (maps == 0).all(-1).all(-1)).all()
        assert telling.any()
    else:
        assert telling.all(), "a constant map says nothing"


def check_change(method: str, maps: Tensor, others: Tensor) -> None:
    """Another target or contrast makes another map, or the very same where the method is declared class-agnostic."""
    if hp.methods()[method].class_agnostic:
        assert torch.equal(maps, others)
        return
    changed = differ(maps, others)
    assert changed.any()
    if method not in POSITIVE_PARTS:
        assert changed.all()


def is_linear(contrast: Tensor, of: Tensor, against: Tensor) -> bool:
    """Whether the map of a contrast is the difference of the maps of its classes."""
    size = torch.maximum(of.abs(), against.abs()).amax((-2, -1), keepdim=True)
    return bool(((contrast - (of - against)).abs() <= 1e-4 * size).all())


@contextmanager
def nothing_leaks(module: nn.Module, images: Tensor) -> Iterator[None]:
    """Inside, neither model nor images nor torch's random state are changed for good."""

    def hooks() -> list[int]:
        return [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]

    weights = {key: value.clone() for key, value in module.state_dict().items()}
    asking, hooked = [parameter.requires_grad for parameter in module.parameters()], hooks()
    pixels, random = images.clone(), torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(images, pixels)
    assert not images.requires_grad
    assert [parameter.requires_grad for parameter in module.parameters()] == asking
    assert all(parameter.grad is None for parameter in module.parameters())
    assert not any(part.training for part in module.modules())
    assert hooks() == hooked
    for key, value in module.state_dict().items():
        assert torch.equal(value, weights[key])


def reason_to_refuse(method: str, lacks: Mapping[str, str]) -> str | None:
    """What the method must say of a model that `lacks` something it needs (need -> pattern); None where it serves it."""
    entry = hp.methods()[method]
    # to these, attention within windows is as good
    in_windows = (entry.family == "relevance" or method == "vit_cx") and lacks is SWIN
    missing = [need for need in sorted(entry.needs) if need in lacks and not (need == "attention" and in_windows)]
    return lacks[missing[0]] if missing else None


def check_on_model(method: str, model: hp.Classifier, images: Tensor, lacks: Mapping[str, str]) -> str:
    """The battery on one more model; returns what came of it, in words.

    That maps are sound is looked at in single precision; that some are equal in double precision, where rounding hides
    nothing.
    """
    reason = reason_to_refuse(method, lacks)
    if reason is not None:
        with pytest.raises(UnsupportedModelError, match=reason):
            explain(model, images, method=method)
        return f"refused: {reason}"
    classes, size = model(images).shape[1], (images.shape[2], images.shape[3])
    every = torch.arange(classes).expand(len(images), -1)
    with nothing_leaks(model.module, images), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        maps = explain(model, images, every, method=method)
    if method in POSITIVE_PARTS and not maps.any():
        assert any(issubclass(warning.category, EmptyMapWarning) for warning in said)
        return "maps of nothing but zeros, which a warning says"
    check_contract(method, maps, (*every.shape, *size))

    keys = [f"id{row}" for row in range(len(images))]
    exact, images = in_float64(model), images.double()
    given = {"method": method, "keys": keys, "resolution": "native"}
    native = explain(exact, images, every, **given)
    check_change(method, native, native.roll(1, 1))
    alone = explain(exact, images[1:2], [2], method=method, keys=keys[1:2])[0]
    expected = upsampled(method, native, size)[1, 2]
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-5 * float(native.abs().max()))
    contrast = explain(exact, images, every, against=every.roll(-1, 1), **given)
    check_change(method, native, contrast)
    assert is_linear(contrast, native, native.roll(-1, 1)) or not hp.methods()[method].linear
    other_seed = explain(exact, images, every, seed=1, **given)
    draws = "random" in hp.methods()[method].injected and method not in DRAWING
    assert bool(differ(other_seed, native).any()) == draws
    return "maps"


def in_float64(model: hp.Classifier) -> hp.Classifier:
    """A copy of the classifier in double precision."""
    twin = copy.deepcopy(model)
    twin.module.double()
    return twin
