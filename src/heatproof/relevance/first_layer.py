"""The image on its way to the first layers, for rules that hand relevance to the pixels directly.

A first layer is every linear layer or convolution whose input is the image after moving its values (reshape, slice, pad) or
channel-wise affine operations only.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from heatproof.tracing import Operation, live_tensors, map_tensors

MOVES = frozenset(
    """
    reshape reshape_as view view_as flatten unflatten ravel permute transpose t T mT swapaxes swapdims movedim moveaxis
    squeeze unsqueeze contiguous clone to type type_as float double half expand expand_as broadcast_to repeat tile cat concat
    concatenate stack pad getitem select narrow unfold roll flip rot90 pixel_unshuffle
    """.split()
)
AFFINE = frozenset(("add", "sub", "mul", "div", "batch_norm"))


@dataclass(frozen=True)
class ImageView:
    """The image, moved and rescaled.

    Relevance given to `carrier` arrives at the pixels that the values came from. `limits` are the least and the largest
    value that each can have, or empty. `version` tells when the tensor has been written into since.
    """

    carrier: Tensor
    limits: tuple[Tensor, ...]
    version: int


class ImageTrail:
    """Follows the image through the model.

    `direct`, `[B, C, H, W]`, collects the relevance that first layers hand to the pixels. `limits` (least and largest
    values, or nothing) broadcast to the images.
    """

    def __init__(self, images: Tensor, limits: tuple[Tensor, ...]) -> None:
        self.direct = torch.zeros_like(images).requires_grad_()
        self._limits = tuple(limit.to(images).expand_as(images) for limit in limits)
        self._views = WeakTensorKeyDictionary()

    def start(self, entrance: Tensor) -> None:
        """`entrance` is the image itself."""
        self._views[entrance] = ImageView(self.direct, self._limits, entrance._version)

    def view_of(self, tensor: Tensor) -> ImageView | None:
        """What `tensor` shows of the image; None where it is no mere view of it."""
        view: ImageView | None = self._views.get(tensor)
        return view if view is not None and view.version == tensor._version else None

    def follow(self, operation: Operation, args: Any, kwargs: Any) -> Callable[[Any], None]:
        """Called before an operation; the function returned takes its result."""
        live = list(live_tensors((args, kwargs)))
        views = {id(tensor): view for tensor in live if (view := self.view_of(tensor)) is not None}
        moves = operation.name in MOVES
        affine = operation.name in AFFINE and len(live) == 1
        if len(views) < len({id(tensor) for tensor in live}) or not (moves or affine):
            return lambda _: None

        def run(part: Callable[[ImageView], Tensor]) -> Tensor:
            replaced = map_tensors(lambda t: part(views[id(t)]) if id(t) in views else t, (args, kwargs))
            return operation.pure(*replaced[0], **replaced[1])  # type: ignore[no-any-return]

        def note(result: Any) -> None:
            if not isinstance(result, Tensor):
                return
            limits = tuple(run(functools.partial(_limit, end=end)) for end in range(len(self._limits)))
            if limits:  # a negative factor turns them round
                limits = torch.minimum(*limits), torch.maximum(*limits)
            carrier = run(lambda view: view.carrier) if moves else views[id(live[0])].carrier.expand_as(result)
            self._views[result] = ImageView(carrier, limits, result._version)

        return note


def _limit(view: ImageView, end: int) -> Tensor:
    return view.limits[end]
