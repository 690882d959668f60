"""Where relevance goes in the models that people use, unmodified: what leaks, and what the leak is due to."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from heatproof.relevance import Audit, Preset, audit, presets
from support import matrix


class Logits:
    """A model as a function from images to logits."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, x: Tensor) -> Tensor:
        found = self.module(x)
        return getattr(found, "logits", found)


def audited(name: str, preset: Preset) -> Audit:
    if name == "monai-vit":
        pytest.importorskip("einops")
    model, size = matrix.build(name).double(), matrix.MODELS[name].size
    return audit(Logits(model), torch.randn(2, 3, size, size, dtype=torch.float64), [0, 3], preset)


def assert_all_is_accounted_for(found: Audit) -> None:
    """What was given arrived, was absorbed, or is among the leaks: nothing went by unseen."""
    sizes = found.start.abs() + found.absorbed.abs() + found.created + found.lost
    missing = found.start - found.absorbed + found.created - found.lost - found.at_input
    assert (missing.abs() <= 1e-9 * sizes).all()


@pytest.mark.parametrize("name", [name for name in matrix.MODELS if name != "torchvision-vgg"])  # VGG-16 is below
def test_under_lrp_z_softmax_is_the_only_leak(name: str) -> None:
    found = audited(name, presets.lrp_z())
    attends = matrix.MODELS[name].attention != "none"
    softmaxes = [account for account in found.operations if account.operation == "softmax"]
    assert bool(softmaxes) == attends
    leaks = found.leaks(1e-6)
    assert {account.operation for account in leaks} == ({"softmax"} if attends else set())
    assert all(account.module != "(outside the model)" for account in found.operations)
    assert found.gaps() == []
    assert (found.absorbed != 0).all()
    assert_all_is_accounted_for(found)


@pytest.mark.parametrize(
    "name", ["timm-vit-registers", "timm-swin", "timm-efficientnet", "hf-vit-eager", "hf-dinov2-swiglu", "torchvision-vit",
             "torchvision-densenet", "odd-gates-and-norms"],
)  # fmt: skip
@pytest.mark.parametrize(
    "preset", [presets.attn_lrp(), presets.cp_lrp(), presets.lrp_zplus(), presets.lrp_alpha_beta(), presets.lrp_epsilon()],
    ids=lambda preset: preset.name,
)  # fmt: skip
def test_other_leaks_are_those_of_vanished_denominators(name: str, preset: Preset) -> None:
    found = audited(name, preset)
    for account in found.operations:
        if account.operation == "softmax":
            assert preset.name != "cp_lrp"
        else:  # α-β creates relevance where one sign is missing, z⁺ loses it; γ and ε do neither
            rounding = 1e-6 * torch.maximum(account.size, account.received.abs()).clamp(min=1e-12)
            assert ((account.leak - account.created_there).abs() <= rounding).all(), (account.operation, account.module)
    if preset.name in ("attn_lrp", "cp_lrp", "lrp_epsilon"):
        assert float(sum(account.created_there.abs().sum() for account in found.operations)) < 1e-6
    assert_all_is_accounted_for(found)


@pytest.mark.parametrize("name", ["densenet121", "resnet50", "vgg16"])
def test_lrp_z_conserves_in_single_precision(name: str) -> None:
    """At the input and at every operation, to 1e-3 · max(|f_t|, 0.01 Σ|R|)."""
    model, x = matrix.as_if_trained(getattr(torchvision.models, name)(num_classes=5)), torch.randn(2, 3, 64, 64)
    found = audit(model, x, [1, 2], presets.lrp_z())
    with torch.no_grad():
        torch.testing.assert_close(found.start.float(), model(x)[[0, 1], [1, 2]], rtol=1e-4, atol=1e-5)
    assert found.leaks(1e-3) == []
    size = found.relevance.double().abs().flatten(1).sum(1)
    allowed = 1e-3 * torch.maximum(found.start.abs(), 0.01 * size)
    assert ((found.at_input + found.absorbed - found.start).abs() < allowed).all()
