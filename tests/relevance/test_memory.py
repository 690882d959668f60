"""What a pass computes, holds on to and sends back: nothing that the maps do not need."""

import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import heatproof as hp
from heatproof.relevance import Preset, presets, routing, run
from support.nets import TinyViT


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors alive at once that torch made while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self.see, result)
        return result

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.alive:
            self.alive[storage._cdata] = storage.nbytes()
            self.peak = max(self.peak, sum(self.alive.values()))
            weakref.finalize(storage, self.alive.pop, storage._cdata)


class Net(nn.Sequential):
    """Convolution, batch norm and ReLU in place, four times; activations far outweigh the weights."""

    def __init__(self) -> None:
        blocks = [[nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)] for _ in range(4)]
        super().__init__(*[part for block in blocks for part in block], nn.AdaptiveAvgPool2d(1), nn.Flatten())


ACTIVATION = 4 * 2 * 8 * 32 * 32  # bytes of each


def peak_activations(preset: Preset | None, *, last: bool = True) -> float:
    model, images = Net().eval().requires_grad_(False), torch.randn(2, 8, 32, 32)
    with LiveBytes() as live:
        if preset is None:
            leaf = images.clone().requires_grad_()
            torch.autograd.grad(model(leaf)[:, 1].sum(), leaf)
        else:
            passed = run(model, images, preset)
            passed.relevance(passed.logits[:, 1], last=last)
    return live.peak / ACTIVATION


@pytest.mark.parametrize(
    ("preset", "more"),
    [(presets.lrp_z(), 1.3), (presets.lrp_epsilon(), 1.1), (presets.lrp_zplus(), 1.2), (presets.lrp_alpha_beta(), 1.4)],
)
def test_the_activations_are_held_few_times(preset: Preset, more: float) -> None:
    """A plain pass holds two of each block; a rule that merges the norm holds one, and what it needs on its way back."""
    assert peak_activations(preset) < more * peak_activations(None)


@pytest.mark.parametrize("preset", [presets.lrp_epsilon(), presets.lrp_zplus(), presets.transformer_attention()])
def test_the_last_way_back_frees_what_it_is_done_with(preset: Preset) -> None:
    model = nn.Sequential(nn.Flatten(2), *[part for _ in range(6) for part in (nn.Linear(64, 64), nn.GELU())])
    model = nn.Sequential(model, nn.Flatten(), nn.Linear(512, 2)).eval().requires_grad_(False)
    images = torch.randn(50, 8, 8, 8)
    held = []
    for last in (False, True):
        with LiveBytes() as live:
            passed = run(model, images, preset)
            passed.relevance(passed.logits[:, 1], last=last)
            held.append(sum(live.alive.values()) / images.nbytes)
    assert held[1] < held[0] / 3


FAMILIES = ("relevance", "attention", "gradient", "cam")
OPTIONS: dict[str, dict[str, Any]] = {
    "integrated_gradients": {"steps": 4, "baseline": 0.0},
    "deep_lift": {"baseline": 0.0},
    **{
        key: {"samples": 4}
        for key in ("expected_gradients", "gradient_shap", "smoothgrad", "smoothgrad_squared", "vargrad")
    },
    "blur_integrated_gradients": {"steps": 4},
    "transition_attention": {"steps": 4},
    "bidirectional_transformer": {"steps": 4},
    "deep_taylor": {"low": -3.0, "high": 3.0},
    "lrp_composite": {"low": -3.0, "high": 3.0},
}


@pytest.mark.parametrize("method", [name for name, entry in hp.methods().items() if entry.family in FAMILIES])
def test_several_targets_share_what_the_forward_pass_holds(method: str) -> None:
    """A target adds its map, and nothing of the size of the activations: they are there once."""
    images = torch.randn(2, 1, 32, 32)
    if "attention" in hp.methods()[method].needs:
        model = TinyViT(channels=1, classes=8, depth=3).eval().requires_grad_(False)
    else:
        model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), *Net()).eval().requires_grad_(False)
    peaks, calls = [], []
    for count in (1, 8):
        targets = torch.arange(count).expand(2, -1)
        with LiveBytes() as live, Calls() as seen:
            hp.explain(model, images, targets, method=method, **OPTIONS.get(method, {}))
        peaks.append(live.peak)
        calls.append(seen.of["convolution"] if method in ("lrp_z", "saliency", "gradcam", "attention") else None)
    assert peaks[1] < 1.3 * peaks[0], "eight targets, that would each hold a pass of their own"
    assert calls[0] == calls[1]


class Calls(TorchDispatchMode):
    """How often each of torch's operations runs while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.of[function.overloadpacket.__name__] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("preset", "least", "forward", "back"),
    [
        (presets.lrp_z(), -9, 1, 1),
        (presets.lrp_epsilon(), -9, 1, 1),
        (presets.lrp_zplus(), 0, 2, 1),
        (presets.lrp_zplus(), -9, 2, 2),
        (presets.lrp_alpha_beta(), 0, 2, 2),
        (presets.lrp_alpha_beta(), -9, 2, 2),
        (presets.lrp_gamma(), -9, 2, 2),
    ],
)
def test_a_layer_is_computed_no_more_often_than_its_rule_needs(
    preset: Preset, least: float, forward: int, back: int
) -> None:
    """Where no input is negative, z⁺ needs one more product and one way back in place of the layer's own."""
    model, images = nn.Sequential(nn.Conv2d(3, 2, 5), nn.BatchNorm2d(2), nn.Flatten()).eval(), torch.randn(2, 3, 5, 5)
    with Calls() as calls:
        passed = run(model, images.clamp(min=least), preset)
        passed.relevance(passed.logits[:, 1])
    assert (calls.of["convolution"], calls.of["convolution_backward"]) == (forward, back)


def test_nothing_goes_back_to_what_was_written_over() -> None:
    """torch's own `copy_` would send zeros, which the layer before would have to take further back."""
    x, value = (torch.randn(2, 3).requires_grad_() for _ in range(2))
    target = x * 2
    written = routing.write(target, value * 3)
    assert written is target
    torch.testing.assert_close(written, value * 3)
    found = torch.autograd.grad(written.sum(), [x, value], allow_unused=True)
    assert found[0] is None
    torch.testing.assert_close(found[1], torch.full((2, 3), 3.0))


def test_a_write_into_a_view_leaves_the_rest_its_gradient() -> None:
    x, value = torch.randn(2, 4).requires_grad_(), torch.randn(2, 2).requires_grad_()
    base = x * 2
    routing.write(base[:, :2], value)
    of_x, of_value = torch.autograd.grad(base.sum(), [x, value])
    torch.testing.assert_close(of_x, torch.tensor([[0.0, 0, 2, 2]]).expand(2, 4))
    torch.testing.assert_close(of_value, torch.ones(2, 2))


def test_a_rule_writes_into_nothing_that_is_not_its_own() -> None:
    """Two ways back through one pass agree, and the images stay as they are."""
    model, images = Net().eval(), torch.randn(2, 8, 8, 8)
    for preset in (presets.lrp_epsilon(0.1), presets.lrp_gamma(), presets.lrp_alpha_beta(), presets.lrp_zplus()):
        passed, before = run(model, images, preset), images.clone()
        first, second = (passed.relevance(passed.logits[:, 1]) for _ in range(2))
        torch.testing.assert_close(first, second, rtol=0, atol=0)
        torch.testing.assert_close(images, before, rtol=0, atol=0)
        torch.testing.assert_close(passed.logits, model(images))
