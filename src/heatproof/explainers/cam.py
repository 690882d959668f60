"""Class activation maps: the last feature maps, weighted by how much the target wants them."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.errors import InputError, UnsupportedModelError, near_names
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.relevance import ForwardPass, presets, run
from heatproof.relevance.tokens import token_grid, whole_attention


@explainer("gradcam", family="cam", signed=False, needs={"spatial_features"}, paper="selvaraju2017gradcam")
def gradcam(model: Classifier, images: Tensor, targets: Targets, *, layer: str | None = None) -> Tensor:
    """Grad-CAM: the positive part of the feature maps weighted by their average gradient.

    Args:
        model: a CNN or a vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        layer: name of the module whose output is used, as in `module.named_modules()`. By default the last spatial
            feature map of a CNN, and of a transformer the image tokens after the last block's first layer norm.

    Returns:
        Maps `[B, T, h, w]` on the grid of the features.
    """
    with _output_of(model.module, layer) as outputs:
        passed = run(model, images, presets.NOTHING)
    if layer is not None and not outputs:
        raise InputError(f"The module {layer!r} does not run when the model is called: choose another layer.")
    tensor = outputs[-1] if layer is not None else _last_features(passed)
    features = _as_grid(passed, tensor.detach())
    maps = []
    for score in targets.score(passed.logits).unbind(1):
        slopes = _as_grid(passed, passed.per_unit(score, [tensor], phase="gradient")[0])
        weights = slopes.mean((1, 2), keepdim=True)
        maps.append((weights * features).sum(-1).clamp(min=0))
    return torch.stack(maps, 1)


def _last_features(passed: ForwardPass) -> Tensor:
    capture = passed.capture
    if capture.attention:
        whole_attention(passed)  # raises for windows, whose tokens do not lie on one grid
        found = capture.norms[-1]
    else:
        found = capture.feature_map
    if found is None:
        raise UnsupportedModelError(
            "Grad-CAM needs a spatial feature map, and none was seen in this model. Name a module with layer=..., or use "
            "a method for any model: lrp_epsilon, lime."
        )
    return found


def _as_grid(passed: ForwardPass, values: Tensor) -> Tensor:
    """Feature maps `[B, C, h, w]` or tokens `[B, N, D]` -> `[B, h, w, D]`, image tokens only."""
    if values.ndim == 4:
        return values.movedim(1, -1)
    if values.ndim != 3:
        raise UnsupportedModelError(
            f"Grad-CAM needs features [B, C, h, w] or tokens [B, N, D], and the layer gives {list(values.shape)}. "
            "Name another layer."
        )
    grid, prefix = token_grid(passed.capture, values.shape[1])
    return values[:, prefix:].reshape(len(values), *grid, -1)


@contextmanager
def _output_of(module: nn.Module, layer: str | None) -> Iterator[list[Tensor]]:
    """Collects what the module named `layer` returns while the context is open (nothing for None)."""
    outputs: list[Tensor] = []
    if layer is None:
        yield outputs
        return
    modules = dict(module.named_modules())
    if layer not in modules:
        raise InputError(f"The model has no module named {layer!r}. {near_names(layer, modules)[:600]}")

    thread = threading.get_ident()

    def keep(_: nn.Module, __: Any, output: Any) -> Any:
        if threading.get_ident() != thread:  # somebody else runs the same model
            return output
        first = output[0] if isinstance(output, tuple) else output
        outputs.append(first)
        copy = first.clone()  # the model may go on to write into what it gets
        return (copy, *output[1:]) if isinstance(output, tuple) else copy

    handle = modules[layer].register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()
