"""Vision transformers without some of their tokens: nothing is painted over, and the pass costs less.

The position embedding is the last place where a model needs every token: after it, tokens can be taken out of the sequence
and the rest keep their positions. It is found as the operation that it is, whatever the model's code looks like.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from heatproof.errors import InputError, UnsupportedModelError
from heatproof.tracing.operations import describe

_MOST_PREFIX_TOKENS = 16  # class, distillation and register tokens


def logits_without_tokens(forward: Callable[[Tensor], Tensor], images: Tensor, dropped: Tensor) -> Tensor:
    """What the model says when tokens of the image are taken out of its sequence.

    Args:
        forward: images `[n, C, H, W]` to logits `[n, classes]`, by a vision transformer that adds an absolute position
            embedding to the tokens of its patches.
        images: `[n, C, H, W]`.
        dropped: bool `[n, h, w]` over the grid of the patches, True = taken out, as many in each image.

    Returns:
        Logits `[n, classes]`.

    Raises:
        InputError: the images lose different numbers of tokens, or all of them in a model without a class token.
        UnsupportedModelError: the model has no such place, or cannot do with fewer tokens.
    """
    counts = dropped.flatten(1).sum(1)
    if (counts != counts[0]).any():
        raise InputError(f"Images that go together must lose as many tokens each, got {counts.tolist()}.")
    mode = _WithoutTokens(dropped)
    try:
        with mode:
            logits = forward(images)
    except RuntimeError as error:
        if not mode.done:
            raise
        raise UnsupportedModelError(
            "baseline='drop' takes tokens out of a vision transformer's sequence, and this model cannot do with fewer of "
            f"them (it attends within windows, or adds positions again later): {error}. Use another baseline."
        ) from error
    if not mode.done:
        raise UnsupportedModelError(
            "baseline='drop' takes tokens out of a vision transformer's sequence where the position embedding is added, and "
            f"this model adds none to {dropped[0].numel()} patches. Use another baseline, or the grid of its patches."
        )
    return logits


class _WithoutTokens(TorchFunctionMode):
    """While it is entered, the first sum of tokens and a position embedding loses the `dropped` tokens."""

    def __init__(self, dropped: Tensor) -> None:
        super().__init__()
        self.done = False
        self._kept = ~dropped.flatten(1)

    def __torch_function__(
        self, function: Callable[..., Any], _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if self.done or describe(function).name != "add" or not self._adds_positions(args, result):
            return result
        self.done = True
        prefix = result.shape[1] - self._kept.shape[1]
        if not prefix and not self._kept.any():
            raise InputError("baseline='drop' would leave this model without a single token: it has no class token.")
        index = self._kept.nonzero()[:, 1].view(len(result), -1, 1).expand(-1, -1, result.shape[2])
        return torch.cat([result[:, :prefix], result[:, prefix:].gather(1, index)], 1)

    def _adds_positions(self, args: tuple[Any, ...], result: Any) -> bool:
        """Whether this is `[n, N, D] + [1, N, D]`, N the patches and a few tokens before them."""
        if not isinstance(result, Tensor) or result.ndim != 3 or len(result) != len(self._kept):
            return False
        if not 0 <= result.shape[1] - self._kept.shape[1] <= _MOST_PREFIX_TOKENS:
            return False
        tokens = [arg for arg in args[:2] if isinstance(arg, Tensor) and arg.shape == result.shape]
        positions = [arg for arg in args[:2] if isinstance(arg, Tensor) and _is_table(arg, result)]
        return bool(tokens) and bool(positions)


def _is_table(tensor: Tensor, result: Tensor) -> bool:
    """Whether `tensor` is the same for every image and differs between tokens: a parameter or made of parameters."""
    return tensor.shape[-2:] == result.shape[-2:] and (tensor.ndim == 2 or tensor.shape[0] == 1)
