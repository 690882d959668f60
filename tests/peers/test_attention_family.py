"""The attention family on unmodified models of timm, transformers, torchvision and MONAI."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import heatproof as hp
from heatproof.errors import UnsupportedModelError
from support import matrix
from support.matrix import MODELS

METHODS = ("attention_gradcam", "attcat", "transition_attention", "bidirectional_transformer", "legrad")
STEPS = {"transition_attention": {"steps": 3}, "bidirectional_transformer": {"steps": 3}}
TARGETS = [1, 0]
WHOLE = [name for name, entry in MODELS.items() if entry.attention == "whole"]
NO_BLOCKS = ("odd-",)  # attention in modules of its own, the rest of a block in the model's forward


@pytest.mark.parametrize("name", WHOLE)
def test_every_transformer_of_the_matrix_is_served_or_refused_with_a_reason(name: str) -> None:
    entry = MODELS[name]
    for package in entry.needs:
        if not matrix.installed(package):
            pytest.skip(f"{name} needs {package}, which is not installed")
    model = hp.Classifier(matrix.build(name), image_size=entry.size, mean=[0.5] * 3, std=[0.125] * 3)
    images = torch.randn(2, 3, entry.size, entry.size)
    refused = {}
    for method in METHODS:
        try:
            maps = hp.explain(model, images, TARGETS, method=method, resolution="native", **STEPS.get(method, {}))
        except UnsupportedModelError as error:
            refused[method] = str(error)
            continue
        assert maps.isfinite().all(), method
        assert (maps.abs().amax((1, 2)) > 0).any() or method == "attention_gradcam", method
    assert set(refused) <= {"legrad", "attcat"}, refused
    assert not refused or name.startswith(NO_BLOCKS), refused


class Hooked:
    """Attention, the tokens before and after each block of a timm transformer, kept by hooks on its modules."""

    def __init__(self, model: nn.Module, image: Tensor) -> None:
        self.model, self.attention, self.before, self.after = model, list[Tensor](), list[Tensor](), list[Tensor]()
        handles = []
        for block in model.blocks:
            handles.append(block.attn.attn_drop.register_forward_hook(lambda *seen: self.attention.append(seen[2])))
            handles.append(block.register_forward_hook(lambda *seen: self.before.append(seen[1][0])))
            handles.append(block.register_forward_hook(lambda *seen: self.after.append(seen[2])))
        self.logits = model(image)
        for handle in handles:
            handle.remove()

    def legrad(self, target: int) -> Tensor:
        total = 0
        for attention, tokens in zip(self.attention, self.after, strict=True):
            score = self.model.forward_head(self.model.norm(tokens))[0, target]
            total = total + torch.autograd.grad(score, attention, retain_graph=True)[0].clamp(min=0).mean((0, 1, 2))
        return total

    def attcat(self, target: int) -> Tensor:
        slopes = torch.autograd.grad(self.logits[0, target], self.before)
        terms = [
            (g * h).sum(-1)[0] * a.mean((0, 1, 2)) for g, h, a in zip(slopes, self.before, self.attention, strict=True)
        ]
        return torch.stack(terms).sum(0)


KINDS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # tokens before those of the image
    "class token": (matrix.timm_vit, 1),
    "registers": (partial(matrix.timm_vit, reg_tokens=4), 5),
    "mean pooling": (partial(matrix.timm_vit, global_pool="avg", class_token=False), 0),
    "mean pooling beside a class token": (partial(matrix.timm_vit, global_pool="avg"), 1),
    "distillation token": (matrix.timm_deit, 2),
    "layer scale": (partial(matrix.timm_vit, qk_norm=True, init_values=0.1), 1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["legrad", "attcat"])
def test_timm_models_give_what_hooks_on_their_modules_give(kind: str, method: str) -> None:
    build, prefix = KINDS[kind]
    model, images = matrix.as_if_trained(build()).double(), torch.randn(2, 3, 32, 32).double()
    found = hp.explain(model, images, TARGETS, method=method, resolution="native").double()
    for block in model.blocks:
        block.attn.fused_attn = False
    for n, target in enumerate(TARGETS):
        expected = getattr(Hooked(model, images[n : n + 1]), method)(target)[prefix:].view(4, 4).detach()
        torch.testing.assert_close(found[n], expected, rtol=0, atol=1e-3 * float(expected.abs().max()))
