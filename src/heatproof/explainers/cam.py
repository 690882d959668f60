"""Class activation maps: the last feature maps, weighted by how much the target wants them."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.errors import InputError, UnsupportedModelError, near_names
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.relevance import ForwardPass, presets, run
from heatproof.relevance.tokens import token_grid, whole_attention

# without any of these, what came as [B, C, H, W] still has its channels first
_REORDERING = frozenset(("permute", "transpose", "movedim", "moveaxis", "T", "mT", "einsum", "tensordot"))


@explainer("gradcam", family="cam", signed=False, needs={"spatial_features"}, paper="selvaraju2017gradcam")
def gradcam(model: Classifier, images: Tensor, targets: Targets, *, layer: str | None = None) -> Tensor:
    """Grad-CAM: the positive part of the feature maps weighted by their average gradient.

    Args:
        model: a CNN or a vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        layer: name of the module whose output is used, as in `module.named_modules()`: `[B, C, h, w]`, `[B, h, w, C]`
            or tokens `[B, N, D]`. By default the last spatial feature map of a CNN, and of a transformer the image tokens
            after the last block's first layer norm.

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
    for score, last in targets.in_turn(passed.logits):
        slopes = _as_grid(passed, passed.per_unit(score, [tensor], phase="gradient", last=last)[0])
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
    """Feature maps in either layout or tokens `[B, N, D]` -> `[B, h, w, D]`, image tokens only."""
    if values.ndim not in (3, 4) or len(values) != len(passed.images):
        raise UnsupportedModelError(
            f"Grad-CAM needs features [B, C, h, w] or [B, h, w, C] or tokens [B, N, D] of {len(passed.images)} images, and "
            f"the layer gives {list(values.shape)}. Name another layer."
        )
    if values.ndim == 4:
        return values if _channels_last(passed, values.shape) else values.movedim(1, -1)
    grid, prefix = token_grid(passed.capture, values.shape[1])
    return values[:, prefix:].reshape(len(values), *grid, -1)


def _channels_last(passed: ForwardPass, shape: Sequence[int]) -> bool:
    """Whether features are `[B, h, w, C]` rather than `[B, C, h, w]`: which of both makes a grid of the image."""
    if not _REORDERING & passed.mode.ran.keys():
        return False
    first, last = (_is_grid(passed, *sides) for sides in (shape[2:], shape[1:3]))
    if first == last:
        raise UnsupportedModelError(
            f"Whether the features {list(shape)} are [B, C, h, w] or [B, h, w, C] cannot be told from their shape: "
            f"{'both' if first else 'neither'} would be a grid of images of {list(passed.images.shape[2:])} pixels. Name "
            "another layer."
        )
    return last


def _is_grid(passed: ForwardPass, height: int, width: int) -> bool:
    """Whether a convolution gave such a grid, or one stride along both sides, up to a cell, makes it of the image."""
    if (height, width) in passed.capture.grids:
        return True
    sides = list(zip(passed.images.shape[2:], (height, width), strict=True))
    least = max(pixels / (cells + 1) for pixels, cells in sides)
    return all(least * (cells - 1) < pixels for pixels, cells in sides)


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
