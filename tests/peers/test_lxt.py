"""CP-LRP and AttnLRP as their authors' package LXT has them, on torchvision's and transformers' vision transformers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn
from torchvision.models.vision_transformer import VisionTransformer

from heatproof.relevance import Preset, Zero, presets, run
from support.isolation import run_python

TARGETS = [1, 4]

# LXT changes classes of torch and transformers for good, so it runs in a process of its own. The modules of its package
# are imported one by one: together they need a function that transformers 5 no longer has. zennit's stabiliser is taken
# out of the way.
LXT = """
import sys, types
import torch
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import lxt
for name in ("lxt.efficient", "lxt.efficient.models"):
    sys.modules[name] = package = types.ModuleType(name)
    package.__path__ = [lxt.__path__[0] + name.removeprefix("lxt").replace(".", "/")]
from lxt.efficient.models.vit_torch import cp_LRP
from lxt.efficient.patches import layer_norm_forward, non_linear_forward, patch_method, wrap_attention_forward
from lxt.efficient.zennit_patches import monkey_patch_zennit
from transformers.activations import GELUActivation
from transformers.models.vit import modeling_vit
from zennit.composites import LayerMapComposite
from zennit.rules import Gamma

for target, patch in cp_LRP.items():  # of torch's GELU, layer norm and attention
    assert patch(target)
assert patch_method(non_linear_forward, GELUActivation, keep_original=True)
modeling_vit.eager_attention_forward = wrap_attention_forward(modeling_vit.eager_attention_forward)
monkey_patch_zennit()

models, images, targets = torch.load(folder + "/case.pt", weights_only=False)
maps = {}
for name, model in models.items():
    for gammas in ((0, 0), (0.25, 0.05), (1.0, 2.0)):
        rules = [(kind, Gamma(gamma, 1e-25)) for kind, gamma in zip((torch.nn.Conv2d, torch.nn.Linear), gammas)]
        hooks = LayerMapComposite(rules if any(gammas) else [])
        hooks.register(model)
        leaf = images.clone().requires_grad_()
        logits = model(leaf)
        logits = getattr(logits, "logits", logits)
        (gradient,) = torch.autograd.grad(logits[range(len(targets)), targets].sum(), leaf)
        hooks.remove()
        maps[name, gammas] = (images * gradient).detach()
torch.save(maps, folder + "/maps.pt")
"""


def lxt_maps(
    models: dict[str, nn.Module], images: Tensor, folder: Path
) -> dict[tuple[str, tuple[float, float]], Tensor]:
    torch.save((models, images, TARGETS), folder / "case.pt")
    run_python(f"folder = {str(folder)!r}\n{LXT}")
    return torch.load(folder / "maps.pt", weights_only=True)


def our_maps(model: nn.Module, images: Tensor, preset: Preset) -> Tensor:
    passed = run(model, images, preset)
    return passed.relevance(passed.logits[range(len(TARGETS)), TARGETS])


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).logits


def as_trained(model: nn.Module) -> nn.Module:
    """Biases, norms and a head that are not at their initial values."""
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=float("norm" in name and "weight" in name), std=0.2)
    return model.double().eval()


def torchvision_vit() -> nn.Module:
    return as_trained(
        VisionTransformer(
            image_size=16, patch_size=4, num_layers=3, num_heads=3, hidden_dim=24, mlp_dim=40, num_classes=5
        )
    )


def transformers_vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=40, image_size=16, patch_size=4,
        num_labels=5, attn_implementation="eager",
    )  # fmt: skip
    return as_trained(transformers.ViTForImageClassification(config))


def test_maps_are_those_of_the_authors_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With γ where LXT has it, in modules: torch's attention projects without them, by the plain rule."""
    monkeypatch.setattr(presets, "_PLAIN", Zero())  # ours has an ε of 1e-6
    models = {"cp_lrp": torchvision_vit(), "attn_lrp": transformers_vit()}
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    peer = lxt_maps(models, images, tmp_path)
    for (name, gammas), expected in peer.items():
        if name == "cp_lrp":
            preset = replace(presets.cp_lrp(*gammas), modules={"*.self_attention": Zero()})
            found = our_maps(models[name], images, preset)
        else:
            found = our_maps(Logits(models[name]), images, presets.attn_lrp(*gammas))
        torch.testing.assert_close(found, expected, atol=1e-6 * float(expected.abs().max()), rtol=1e-5)
    assert len(peer) == 6
    maps = list(peer.values())
    assert all((a - b).abs().max() > 0.05 * b.abs().max() for i, b in enumerate(maps) for a in maps[:i])
