"""The feature maps that class activation maps are made of, on the grid of the image whatever the model's layout."""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Size, Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

from heatproof.errors import InputError, UnsupportedModelError, near_names
from heatproof.models import Classifier
from heatproof.relevance import ForwardPass, presets, run
from heatproof.relevance.capture import Capture
from heatproof.relevance.mode import RelevanceMode
from heatproof.relevance.tokens import attends_to_whole_image, token_grid
from heatproof.tracing import Operation, Tracer

AsGrid = Callable[[Tensor], Tensor]  # features as the model has them -> a view of the image's cells, [n, h, w, D]

_FACTORS = (0.9, 1.0, 1.1)
# without any of these, what came as [B, C, H, W] still has its channels first
_REORDERING = frozenset(("permute", "transpose", "movedim", "moveaxis", "T", "mT", "einsum", "tensordot"))


@dataclass(frozen=True)
class FeatureSite:
    """Where `module` makes its features, so that they can be others in further passes.

    They are what the `number`-th of its `count` operations that make tensors gives, of this `shape` for each image; `layer`
    as in `run_to_features`.
    """

    module: nn.Module
    layer: str | None
    number: int
    count: int
    shape: Size
    as_grid: AsGrid

    @contextmanager
    def without_channels(self, channels: Tensor) -> Iterator[None]:
        """Inside, the module goes on with features that lack a channel: those of n images, or of one, `channels` `[n]`.

        It is 0 on the cells of the image; other tokens are left as they are. No way back leads through. What stands beside
        the features of one image is the same for all n, so it goes on with them wherever the model's operations broadcast.

        Raises:
            UnsupportedModelError: the module did not run as it did when the features were found.
        """

        def change(features: Tensor) -> Tensor:
            changed = features.expand(len(channels), *self.shape).clone()
            self.as_grid(changed)[torch.arange(len(channels), device=channels.device), :, :, channels] = 0
            return changed

        with _output_of(self.module, self.layer), _Changing(self, change) as mode:
            yield
        if not mode.done or mode.count != self.count:
            raise _runs_otherwise()


@dataclass(frozen=True)
class FeaturePass:
    """A forward pass, the features it made, `tensor`, as the model has them, and their `site`; see `run_to_features`."""

    passed: ForwardPass
    tensor: Tensor
    site: FeatureSite

    @property
    def features(self) -> Tensor:
        """The features of the image's cells, `[B, h, w, D]`."""
        return self.site.as_grid(self.tensor.detach())

    def slopes(self, score: Tensor, *, last: bool) -> Tensor:
        """The gradient of the score `[B]` by the features, `[B, h, w, D]`; `last` as in `ForwardPass.per_unit`."""
        return self.site.as_grid(self.passed.per_unit(score, [self.tensor], phase="gradient", last=last)[0])


def run_to_features(model: Classifier, images: Tensor, layer: str | None) -> FeaturePass:
    """Run `model` on images `[B, C, H, W]`, keeping what the module `layer` returns.

    By default (None): of a CNN the last spatial feature map; of a vision transformer the image tokens after the last
    block's first layer norm; of one that attends within windows (Swin) the last grid of features, after the final norm.

    Raises:
        InputError: no module has that name, or it does not run.
        UnsupportedModelError: there are no features, or they do not lie on a grid of the image.
    """
    with _output_of(model.module, layer) as outputs:
        passed = run(model, images, presets.NOTHING, engine=_Numbering)
    if layer is not None and not outputs:
        raise InputError(f"The module {layer!r} does not run when the model is called: choose another layer.")
    tensor, copy = outputs[-1] if layer is not None else (_last_features(passed),) * 2
    assert isinstance(passed.mode, _Numbering)  # noqa: S101 the engine that was asked for
    number, count = passed.mode.numbers.get(copy, 0), passed.mode.count
    site = FeatureSite(model.module, layer, number, count, tensor.shape[1:], _as_grid(passed, tensor.shape))
    return FeaturePass(passed, tensor, site)


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


def joined(weighted: Tensor, *, eigen_smooth: bool) -> Tensor:
    """Weighted features `[B, h, w, D]` summed over channels, `[B, h, w]`, or their first component along that sum."""
    total = weighted.sum(-1)
    return principal_component(weighted, guide=total) if eigen_smooth else total


def over_versions(maps_of: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """The mean of the maps of `images` as they are and mirrored, darker and brighter."""
    versions = [images * factor for factor in _FACTORS]
    maps = [maps_of(version) + maps_of(version.flip(-1)).flip(-1) for version in versions]
    return torch.stack(maps).sum(0) / (2 * len(_FACTORS))


def visible(channels: Tensor, size: Sequence[int]) -> Tensor:
    """What each channel of `[B, D, h, w]` shows of images of `size` (H, W): enlarged bilinearly and scaled to 0..1.

    `[B, D, H, W]`; a constant channel shows nothing, 0.
    """
    enlarged = F.interpolate(channels, tuple(size), mode="bilinear", align_corners=False)
    telling = channels.amax((2, 3), keepdim=True) > channels.amin((2, 3), keepdim=True)  # which rounding does not blur
    return torch.where(telling, to_unit_range(enlarged, (2, 3)), 0.0)


def to_unit_range(values: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Values scaled to 0..1 over `axes`, 0 where they are constant."""
    low, high = values.amin(axes, keepdim=True), values.amax(axes, keepdim=True)
    return torch.where(high > low, (values - low) / (high - low), 0.0)


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
    cells = _as_grid(passed, found.shape)(found.detach()).shape[1:3]
    return tokens if tokens.shape[1] == math.prod(cells) else found  # of windows: the same grid, in a row


def _as_grid(passed: ForwardPass, shape: Size) -> AsGrid:
    """How features of this shape, maps in either layout or tokens `[B, N, D]`, lie on the image."""
    if len(shape) not in (3, 4) or shape[0] != len(passed.images):
        raise UnsupportedModelError(
            f"A class activation map needs features [B, C, h, w] or [B, h, w, C] or tokens [B, N, D] of "
            f"{len(passed.images)} images, and the layer gives {list(shape)}. Name another layer."
        )
    if len(shape) == 4:
        axes = (0, 1, 2, 3) if _channels_last(passed, shape) else (0, 2, 3, 1)
        return lambda values: values.permute(axes)
    merged = _merged_grid(passed.capture, shape[1])
    grid, prefix = (merged, 0) if merged else token_grid(passed.capture, shape[1])
    return lambda values: values[:, prefix:].unflatten(1, grid)


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


class _Numbering(RelevanceMode):
    """Numbers the operations that make tensors, so that they can be found again in another pass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.count = 0
        self.numbers = WeakTensorKeyDictionary()  # by what they made, or were the last to write into

    def operation(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As ever, with a number."""
        result = super().operation(operation, args, kwargs)
        if _makes_a_tensor(operation, result):
            self.count += 1
            self.numbers[result] = self.count
        return result


class _Changing(Tracer):
    """While it is entered, the model goes on with `change` of what it makes at `site`, perhaps of more images."""

    def __init__(self, site: FeatureSite, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__(site.module)
        self.count, self.done = 0, False
        self._site, self._change = site, change
        self._stale: Tensor | None = None  # what was written in place, where what came of it does not fit in

    def __enter__(self) -> "_Changing":
        super().__enter__()
        return self

    def operation(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operation's value, or what is made of it."""
        if self._stale is not None and any(tensor is self._stale for tensor in _operands(args)):
            raise _runs_otherwise()
        result = super().operation(operation, args, kwargs)
        if not _makes_a_tensor(operation, result):
            return result
        self.count += 1
        if self.count != self._site.number:
            return result
        if result.shape[1:] != self._site.shape:
            raise _runs_otherwise()
        self.done, changed = True, self._change(result)
        *_, inplace = operation.split_flag(args, kwargs)
        if inplace and len(changed) == len(result):
            return result.copy_(changed)
        self._stale = result if inplace else None
        return changed


def _operands(args: tuple[Any, ...]) -> Iterator[Any]:
    """The arguments, and what is in lists of them."""
    for arg in args:
        yield from arg if isinstance(arg, list | tuple) else (arg,)


def _makes_a_tensor(operation: Operation, result: Any) -> bool:
    """Attributes such as `x.T` are seen only where there is a way back, and do not count."""
    return isinstance(result, Tensor) and not operation.getter


def _runs_otherwise() -> UnsupportedModelError:
    return UnsupportedModelError(
        "The features of this model cannot be found again in another pass, to be changed: it does not run the same "
        "operations each time, or makes them out of sight. Use a method that leaves them as they are: gradcam, scorecam."
    )


@contextmanager
def _output_of(module: nn.Module, layer: str | None) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collects what the module named `layer` returns while the context is open, each with the copy that goes on.

    Nothing for None.
    """
    outputs: list[tuple[Tensor, Tensor]] = []
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
        copy = first.clone()  # the model may go on to write into what it gets
        outputs.append((first, copy))
        return (copy, *output[1:]) if isinstance(output, tuple) else copy

    handle = modules[layer].register_forward_hook(keep)
    try:
        yield outputs
    finally:
        handle.remove()
