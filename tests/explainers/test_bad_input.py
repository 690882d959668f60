"""What every explainer makes of models and numbers that make no sense, at the front door."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import InputError
from heatproof.probing import precision
from support.battery import Small
from support.nets import TinyCNN, TinyViT

METHODS = hp.methods()
QUICK: dict[str, dict[str, Any]] = {
    "lime": {"samples": 12, "segments": 4},
    "kernel_shap": {"samples": 12, "segments": 4},
    "rise": {"samples": 12, "cells": 2},
    "occlusion": {"window": 4},
    "control_average": {"references": torch.linspace(0, 1, 960).view(5, 3, 8, 8), "labels": [0, 1, 2, 3, 4]},
    "integrated_gradients": {"steps": 3},
    **{key: {"steps": 2} for key in ("transition_attention", "bidirectional_transformer")},
    "blur_integrated_gradients": {"steps": 3},
    **{
        key: {"samples": 3}
        for key in ("expected_gradients", "gradient_shap", "smoothgrad", "smoothgrad_squared", "vargrad")
    },
}
COUNTED = ("samples", "segments", "features", "window", "stride", "cells", "steps")
NO_MORE_THAN_PIXELS = ("segments", "window", "stride", "cells")
CHOICES = ("output", "segmentation", "start", "first", "head_fusion", "bias", "perception")


def tiny(method: str, classes: int = 5) -> nn.Module:
    """A network that the method can explain."""
    if METHODS[method].needs & {"relu", "pointwise"}:
        return TinyCNN(classes).eval()
    return TinyViT(image=8, patch=2, depth=1, classes=classes).eval()


def explain(method: str, images: Tensor | None = None, model: Any = None, **options: Any) -> Tensor:
    images = torch.rand(5, 3, 8, 8) if images is None else images
    model = tiny(method, classes=3) if model is None else model
    if not isinstance(model, hp.Classifier):
        model = hp.Classifier(model, mean=[0.5] * 3, std=[0.25] * 3)
    return hp.explain(model, images, method=method, **{**QUICK.get(method, {}), **options})


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if "baseline" in entry.options])
def test_a_baseline_of_each_image_s_own_goes_with_its_image(method: str) -> None:
    images, own, keys = torch.rand(5, 3, 8, 8), torch.rand(5, 3, 8, 8), list("abcde")
    model = tiny(method)
    together = explain(method, images, model, baseline=own, keys=keys, targets=[1] * 5, batch_size=2)
    for row in (0, 4):
        one = slice(row, row + 1)
        alone = explain(method, images[one], model, baseline=own[row], keys=keys[one], targets=[1])
        torch.testing.assert_close(together[row], alone[0], atol=1e-4 * float(together.abs().max()), rtol=0)
    with pytest.raises(InputError, match="must broadcast"):
        explain(method, images, model, baseline=own[:4], keys=keys, targets=[1] * 5, batch_size=2)


def with_options(*options: str) -> list[tuple[str, str]]:
    return [(name, option) for name, entry in METHODS.items() for option in options if option in entry.options]


@pytest.mark.parametrize(("method", "option"), with_options(*COUNTED))
def test_a_count_that_cannot_be_is_refused(method: str, option: str) -> None:
    for number in (0, -1, 2.0, True, "2", *([65] if option in NO_MORE_THAN_PIXELS else [])):
        with pytest.raises(InputError, match=f"{option} must be a whole number"):
            explain(method, **{option: number})


@pytest.mark.parametrize(("method", "option"), with_options("keep", "epsilon", "gamma", "alpha", "beta", "gamma_conv"))
def test_a_number_that_cannot_be_is_refused(method: str, option: str) -> None:
    for number in ("2", True, math.nan, -0.1):
        with pytest.raises(InputError, match=f"{option.partition('_')[0]} must be a number"):
            explain(method, **{option: number})


@pytest.mark.parametrize(("method", "option"), with_options(*CHOICES))
def test_an_unknown_choice_is_refused(method: str, option: str) -> None:
    for choice in ("nonsense", ["logit"]):
        with pytest.raises(InputError, match=f"{option} must be"):
            explain(method, **{option: choice})


@pytest.mark.parametrize(("method", "option"), with_options("baseline"))
@pytest.mark.parametrize("baseline", ["blcak", [0.0], None, torch.zeros(3, 5)])
def test_a_baseline_that_is_none_is_refused(method: str, option: str, baseline: Any) -> None:
    with pytest.raises(InputError, match=option):
        explain(method, baseline=baseline)


@pytest.mark.parametrize("method", METHODS)
def test_what_a_model_of_unknown_normalisation_cannot_give_is_refused_and_the_rest_is_not(method: str) -> None:
    model, options = hp.Classifier(tiny(method)), METHODS[method].options
    if options.get("baseline") == "black" or options.get("first") == "z_box" or method == "deep_taylor":
        with pytest.raises(InputError, match=r"normalisation .*(baseline=0.0|low=)"):
            explain(method, model=model)
        given = {"baseline": 0.0} if "baseline" in options else {"low": -2.0, "high": 2.0}
        assert explain(method, model=model, **given).isfinite().all()
    else:
        assert explain(method, model=model).isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_bf16_without_the_hardware_is_refused(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "bf16_supported", lambda device: False)
    with pytest.raises(InputError, match=r"bf16.*this cpu does not have. Use 'fp32'"):
        explain(method, precision="bf16")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("most", [1, 3])
def test_out_of_memory_halves_and_goes_on(method: str, most: int) -> None:
    net, images, keys = tiny(method), torch.rand(5, 3, 8, 8), list("abcde")
    most = max(most, 2) if method == "deep_lift" else most  # an image and its baseline
    small, large = Small(net, most).eval(), Small(net, 10**6).eval()
    found, expected = (explain(method, images, model, keys=keys) for model in (small, large))
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)
    assert small.refused > 0


def test_an_image_that_does_not_fit_alone_is_an_error_of_torch() -> None:
    for method in METHODS:
        with pytest.raises(torch.OutOfMemoryError):
            explain(method, model=Small(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), 0).eval())


@pytest.mark.parametrize("method", [name for name, entry in METHODS.items() if entry.family == "perturbation"])
def test_images_without_any_contrast_and_of_a_single_value_have_maps(method: str) -> None:
    images = torch.zeros(2, 3, 8, 8)
    images[1] = 0.7
    assert explain(method, images).isfinite().all()
    cnn = TinyCNN().eval()
    if "attention" not in METHODS[method].needs:
        assert explain(method, images, cnn).isfinite().all()
