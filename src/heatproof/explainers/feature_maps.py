"""The feature maps that class activation maps are made of, on the grid of the image whatever the model's layout."""

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.errors import InputError, UnsupportedModelError, near_names
from heatproof.models import Classifier
from heatproof.relevance import ForwardPass, presets, run
from heatproof.relevance.capture import Capture
from heatproof.relevance.tokens import attends_to_whole_image, token_grid

# without any of these, what came as [B, C, H, W] still has its channels first
_REORDERING = frozenset(("permute", "transpose", "movedim", "moveaxis", "T", "mT", "einsum", "tensordot"))


@dataclass(frozen=True)
class FeaturePass:
    """A forward pass and the features it made, `tensor`, as the model has them; see `run_to_features`."""

    passed: ForwardPass
    tensor: Tensor

    @property
    def features(self) -> Tensor:
        """The features of the image's cells, `[B, h, w, D]`."""
        return _as_grid(self.passed, self.tensor.detach())

    def slopes(self, score: Tensor, *, last: bool) -> Tensor:
        """The gradient of the score `[B]` by the features, `[B, h, w, D]`; `last` as in `ForwardPass.per_unit`."""
        return _as_grid(self.passed, self.passed.per_unit(score, [self.tensor], phase="gradient", last=last)[0])


def run_to_features(model: Classifier, images: Tensor, layer: str | None) -> FeaturePass:
    """Run `model` on images `[B, C, H, W]`, keeping what the module `layer` returns.

    By default (None): of a CNN the last spatial feature map; of a vision transformer the image tokens after the last
    block's first layer norm; of one that attends within windows (Swin) the last grid of features, after the final norm.

    Raises:
        InputError: no module has that name, or it does not run.
        UnsupportedModelError: there are no features, or they do not lie on a grid of the image.
    """
    with _output_of(model.module, layer) as outputs:
        passed = run(model, images, presets.NOTHING)
    if layer is not None and not outputs:
        raise InputError(f"The module {layer!r} does not run when the model is called: choose another layer.")
    return FeaturePass(passed, outputs[-1] if layer is not None else _last_features(passed))


def principal_component(values: Tensor, guide: Tensor | None = None) -> Tensor:
    """Values `[B, h, w, D]` projected on the first principal component of each sample's cells, `[B, h, w]`.

    The cells are centred. A component has no sign of its own: it gets the one that makes the projection rise with `guide`
    `[B, h, w]`, or without a guide the one that makes the cell farthest from the mean positive.
    """
    flat = values.flatten(1, 2)
    centred = flat - flat.mean(1, keepdim=True)
    defined = centred.isfinite().all(2).all(1)[:, None]
    left, sizes, _ = torch.linalg.svd(torch.where(defined[:, :, None], centred, 0), full_matrices=False)
    projected = left[:, :, 0] * sizes[:, :1]
    if guide is None:
        side = projected.gather(1, projected.abs().argmax(1, keepdim=True))
    else:
        side = (projected * guide.flatten(1)).sum(1, keepdim=True)
    signed = torch.where(side < 0, -projected, projected)
    return torch.where(defined, signed, torch.nan).view(values.shape[:3])


def precise(values: Tensor) -> Tensor:
    """At least in single precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _last_features(passed: ForwardPass) -> Tensor:
    capture = passed.capture
    whole = bool(capture.attention) and attends_to_whole_image(passed)
    found = capture.norms[-1] if whole else capture.feature_map
    if found is None:
        raise UnsupportedModelError(
            "A class activation map needs a spatial feature map, and none was seen in this model. Name a module with "
            "layer=..., or use a method for any model: lrp_epsilon, lime."
        )
    tokens = capture.tokens
    if not capture.attention or whole or tokens is None:
        return found
    cells = _as_grid(passed, found.detach()).shape[1:3]
    return tokens if tokens.shape[1] == math.prod(cells) else found  # of windows: the same grid, in a row


def _as_grid(passed: ForwardPass, values: Tensor) -> Tensor:
    """Feature maps in either layout or tokens `[B, N, D]` -> `[B, h, w, D]`, image tokens only."""
    if values.ndim not in (3, 4) or len(values) != len(passed.images):
        raise UnsupportedModelError(
            f"A class activation map needs features [B, C, h, w] or [B, h, w, C] or tokens [B, N, D] of "
            f"{len(passed.images)} images, and the layer gives {list(values.shape)}. Name another layer."
        )
    if values.ndim == 4:
        return values if _channels_last(passed, values.shape) else values.movedim(1, -1)
    merged = _merged_grid(passed.capture, values.shape[1])
    grid, prefix = (merged, 0) if merged else token_grid(passed.capture, values.shape[1])
    return values[:, prefix:].reshape(len(values), *grid, -1)


def _merged_grid(capture: Capture, tokens: int) -> tuple[int, int] | None:
    """The grid of `tokens` that were made by merging two by two cells of a convolution's grid, once or several times."""
    for grid in capture.grids:
        while math.prod(grid) > max(tokens, 1):
            grid = -(-grid[0] // 2), -(-grid[1] // 2)  # noqa: PLW2901 the same cells, merged
        if math.prod(grid) == tokens:
            return grid
    return None


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
