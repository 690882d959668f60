"""Attention matrices and what their tokens stand for."""

import math
from dataclasses import dataclass

from torch import Tensor

from heatproof.errors import UnsupportedModelError
from heatproof.relevance.backward import ForwardPass
from heatproof.relevance.capture import Capture

_MOST_PREFIX_TOKENS = 16  # class, distillation and register tokens
_INSTEAD = (
    "Use lrp_epsilon or lime, or gradcam with layer=... naming a module whose output is [B, C, h, w] or [B, N, D]."
)


@dataclass(frozen=True)
class TokenLayout:
    """Where the image is among the tokens, and which tokens the head reads.

    The image tokens come last, as a `grid` (height, width); `prefix` tokens (class, distillation, registers) stand before
    them. `pooled` int64 `[P]` are the tokens whose values reach the head: the class token, or all in a mean-pooling model.
    """

    grid: tuple[int, int]
    prefix: int
    pooled: Tensor

    def to_grid(self, values: Tensor) -> Tensor:
        """Values of all tokens `[B, N, ...]` -> those of the image tokens `[B, h, w, ...]`."""
        return values[:, self.prefix :].reshape(len(values), *self.grid, *values.shape[2:])

    def map_of(self, influence: Tensor) -> Tensor:
        """Influence of each token on each token, `[B, N, N]` -> that of the image tokens on what is read, `[B, h, w]`."""
        return self.to_grid(influence[:, self.pooled].mean(1))


def attention_matrices(passed: ForwardPass) -> list[Tensor]:
    """The attention probabilities of every block in order, as they stand in the pass's graph.

    `[B, heads, N, N]`, or `[B * heads, N, N]` where the model folds heads into the batch: see `per_head`. Where heads are
    mixed after the softmax (talking heads) these are the probabilities before it.

    Raises:
        UnsupportedModelError: the model has no self-attention over the whole image in every block.
    """
    blocks = whole_attention(passed)
    tokens = blocks[0].shape[-1]
    if others := {a.shape[-1] for a in passed.capture.pooling} - {tokens}:  # attention pooling looks at the blocks' own
        raise UnsupportedModelError(
            f"This method needs the same tokens in every block, and in this model blocks over {tokens} tokens are followed "
            f"by attention over {max(others)} tokens whose queries are others (class attention). {_INSTEAD}"
        )
    return blocks


def self_attention(passed: ForwardPass) -> list[Tensor]:
    """The probabilities of every self-attention in order, over the whole image, within windows or at several scales.

    Raises:
        UnsupportedModelError: there is none.
    """
    if not passed.capture.attention:
        raise UnsupportedModelError(
            "This method needs self-attention, and the model ran none. Use a vision transformer, or a method that works "
            "for any model: gradcam, lrp_epsilon, lime."
        )
    return passed.capture.attention


def whole_attention(passed: ForwardPass) -> list[Tensor]:
    """The probabilities of every self-attention in order, see `attention_matrices`; more may follow from other queries.

    Raises:
        UnsupportedModelError: there is none, or not over the whole image.
    """
    captured = self_attention(passed)
    if not attends_to_whole_image(passed):
        raise UnsupportedModelError(
            "This method needs attention over the whole image in every block, and this model attends within windows or "
            f"over several scales. {_INSTEAD}"
        )
    return captured


def attends_to_whole_image(passed: ForwardPass) -> bool:
    """Whether every self-attention is over all tokens of the image, not within windows or at several scales."""
    batch = len(passed.images)
    sizes = {(a.ndim, a.shape[0], a.shape[-1]) for a in passed.capture.attention}
    whole = all((ndim, count) == (4, batch) or (ndim == 3 and count % batch == 0) for ndim, count, _ in sizes)
    return whole and len({tokens for *_, tokens in sizes}) <= 1


def block_inputs(passed: ForwardPass) -> list[Tensor]:
    """The tokens `[B, N, D]` that come into each block, before its first layer norm, as they stand in the pass's graph.

    Raises:
        UnsupportedModelError: a block does not begin with a norm of its own, or its input is written over in place.
    """
    streams = passed.capture.streams
    found = [stream for stream in streams if stream is not None]
    if any(tokens._version != version for tokens, version in found):
        raise UnsupportedModelError(
            "The model writes in place over the tokens that come into a block (x += branch); this method needs them as they "
            f"were. Write x = x + branch. {_INSTEAD}"
        )
    if len({id(tokens) for tokens, _ in found}) < len(streams):
        raise UnsupportedModelError(
            "This method needs the tokens before the layer norm that begins each block, and in this model attention comes "
            f"without one of its own. {_INSTEAD}"
        )
    return [tokens for tokens, _ in found]


def per_head(attention: Tensor, batch: int) -> Tensor:
    """`[B, heads, N, N]` of an attention tensor in either form."""
    return attention if attention.ndim == 4 else attention.reshape(batch, -1, *attention.shape[1:])


def token_layout(passed: ForwardPass, gradient: Tensor) -> TokenLayout:
    """The layout of a transformer, from one pass and the gradient of any logit by its last attention `[B, heads, N, N]`.

    After the last attention only the tokens that the head reads still matter, so only their rows have a gradient.
    """
    grid, prefix = token_grid(passed.capture, gradient.shape[-1])
    pooled = (gradient != 0).any(-1).flatten(0, 1).any(0).nonzero()[:, 0]
    return TokenLayout(grid, prefix, pooled)


def token_grid(capture: Capture, tokens: int) -> tuple[tuple[int, int], int]:
    """The grid (height, width) of the image tokens and the number of tokens before them.

    Raises:
        UnsupportedModelError: `tokens` are not a grid of patches with a few tokens before it.
    """
    fitting = [grid for grid in capture.grids if 0 <= tokens - grid[0] * grid[1] <= _MOST_PREFIX_TOKENS]
    if not fitting and not capture.grids:
        fitting = _squares(tokens)
    if not fitting:
        raise UnsupportedModelError(
            f"How the model's {tokens} tokens lie on the image cannot be told (grids of its convolutions: "
            f"{capture.grids}). Use a method that works for any model: gradcam with layer=..., lrp_epsilon, lime."
        )
    height, width = max(fitting, key=math.prod)  # the one that leaves the fewest tokens before it
    return (height, width), tokens - height * width


def _squares(tokens: int) -> list[tuple[int, int]]:
    """The grids that `tokens` of a model without convolutions can be: squares that leave a few tokens before them."""
    sides = [math.isqrt(tokens - prefix) for prefix in range(min(_MOST_PREFIX_TOKENS + 1, tokens))]
    return [(side, side) for prefix, side in enumerate(sides) if side > 1 and side * side == tokens - prefix]
