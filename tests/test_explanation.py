"""The front door: what it accepts, and what it says about the rest."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import InputError
from heatproof.explanation import explain_native, to_input_resolution
from support.nets import TinyCNN, TinyViT


@pytest.fixture
def model() -> TinyCNN:
    return TinyCNN().eval()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "gradcm"}, "Unknown explainer 'gradcm'. Did you mean 'gradcam'"),
        ({"images": torch.rand(3, 8, 8)}, r"images must be a float tensor \[B, C, H, W\], got .*\[3, 8, 8\]"),
        ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, "got torch.uint8"),
        ({"images": torch.full((1, 3, 8, 8), torch.nan)}, "NaN"),
        ({"targets": [3, 0]}, r"targets must lie in 0..2 .* got values from 0 to 3"),
        ({"targets": [0]}, "one row for each of the 2 images, got 1"),
        ({"targets": [0.5, 1.0]}, "targets must be integers"),
        ({"targets": [0, 1], "against": 7}, "against must lie in 0..2"),
        ({"keys": ["a"]}, "one id for each of the 2 images"),
        ({"precision": "fp16"}, "precision must be"),
        ({"resolution": "full"}, "resolution must be"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"method": "lrp_z", "precision": "bf16"}, "fp32"),
        ({"method": "gradcam", "epsilon": 1}, "gradcam has no option 'epsilon'"),
    ],
)
def test_bad_arguments(model: TinyCNN, arguments: dict[str, Any], message: str) -> None:
    arguments = {"images": torch.rand(2, 3, 16, 16), "method": "gradcam", **arguments}
    with pytest.raises(InputError, match=message):
        hp.explain(model, arguments.pop("images"), arguments.pop("targets", None), **arguments)


def test_a_model_in_training_mode_is_an_error(model: TinyCNN) -> None:
    with pytest.raises(InputError, match="training mode"):
        hp.explain(model.train(), torch.rand(1, 3, 16, 16), method="gradcam")


def test_a_model_that_returns_no_logits_is_an_error() -> None:
    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(InputError, match="got tuple"):
        hp.explain(Pair().eval(), torch.rand(1, 3, 16, 16), method="gradcam")
    with pytest.raises(InputError, match=r"logits of shape \[B, K\]"):
        hp.explain(nn.Identity().eval(), torch.rand(1, 3, 16, 16), method="gradcam")


def test_outputs_that_differ_from_the_classes_are_an_error(model: TinyCNN) -> None:
    with pytest.raises(InputError, match="3 outputs and 2 classes"):
        hp.explain(hp.Classifier(model, ["a", "b"]), torch.rand(1, 3, 16, 16), method="gradcam")


def test_the_prediction_is_the_default_target(model: TinyCNN) -> None:
    images = torch.rand(9, 3, 16, 16) * 6 - 3
    predicted = model(images).argmax(1)
    torch.testing.assert_close(
        hp.explain(model, images, method="lrp_z"), hp.explain(model, images, predicted, method="lrp_z")
    )


def test_against_explains_the_difference_of_two_logits(model: TinyCNN) -> None:
    images = torch.rand(2, 3, 16, 16)
    first, second = (hp.explain(model, images, [k, k], method="lrp_z") for k in (0, 2))
    contrast = hp.explain(model, images, [0, 0], against=2, method="lrp_z")
    torch.testing.assert_close(contrast, first - second, atol=1e-6, rtol=1e-4)


def test_a_model_in_another_precision_and_with_strange_outputs() -> None:
    class WithLogits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = TinyViT(depth=1).double()

        def forward(self, x: Tensor) -> Any:
            return type("Output", (), {"logits": self.inner(x)})()

    maps = hp.explain(WithLogits().eval(), torch.rand(1, 3, 32, 32, dtype=torch.float64), method="transformer_lrp")
    assert maps.dtype == torch.float32


def test_duplicate_names_are_refused() -> None:
    from heatproof.explainers import explainer

    with pytest.raises(InputError, match="'gradcam' is registered already"):

        @explainer("gradcam", family="cam", signed=False, paper="none")
        def again(model: Any, images: Tensor, targets: Any) -> Tensor:
            """Never registered."""
            return images


@pytest.mark.parametrize(("method", "several"), [("attention", True), ("transformer_lrp", False), ("lrp_z", False)])
def test_native_maps_and_their_upsampling_are_the_two_halves_of_explain(method: str, several: bool) -> None:
    model, images = TinyViT(depth=2).eval(), torch.rand(3, 3, 32, 32)
    targets = torch.tensor([[0, 1], [1, 2], [4, 0]]) if several else torch.tensor([0, 3, 1])
    native = explain_native(model, images, targets, method=method, batch_size=2)
    assert native.shape == (3, 2 if several else 1, *((32, 32) if method == "lrp_z" else (4, 4)))
    full = to_input_resolution(native, (32, 32), hp.methods()[method])
    for resolution, maps in (("native", native), ("input", full)):
        expected = hp.explain(model, images, targets, method=method, resolution=resolution)
        torch.testing.assert_close(maps if several else maps[:, 0], expected)


def test_upsampling_is_the_methods_own() -> None:
    grid = torch.tensor([[[[0.0, 4.0]]]])
    nearest, bilinear = (to_input_resolution(grid, (1, 4), hp.methods()[name]) for name in ("attention", "gradcam"))
    assert nearest.flatten().tolist() == [0, 0, 4, 4]
    assert bilinear.flatten().tolist() == [0, 1, 3, 4]


def test_the_model_runs_only_where_its_answer_is_needed() -> None:
    """With the classes known and targets given, nothing runs but the method itself."""
    counts: list[int] = []
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    net.register_forward_hook(lambda module, args, output: counts.append(len(args[0])))
    known, images = hp.Classifier(net, ["a", "b", "c"]), torch.rand(5, 1, 2, 2)
    passes = {}
    for name, model, targets in (("known", known, [0] * 5), ("unknown", net, [0] * 5), ("predicted", known, None)):
        counts.clear()
        hp.explain(model, images, targets, method="saliency")
        passes[name] = list(counts)
    assert passes == {"known": [5], "unknown": [1, 5], "predicted": [5, 5]}
    with pytest.raises(InputError, match="targets must lie in 0..2"):
        hp.explain(known, images, [3] * 5, method="saliency")
