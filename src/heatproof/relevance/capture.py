"""What explainers read from a forward pass: attention probabilities, token grids, the last feature maps."""

from collections.abc import Iterator
from typing import Any

from torch import Size, Tensor

_NORMS = ("layer_norm", "rms_norm")
_PRODUCTS = ("matmul", "einsum")


class Capture:
    """Filled by the mode while the model runs.

    An attention is a softmax over its last axis whose value, or what dropout, a mask or a mixing of heads made of it, is
    multiplied with the values. `attention`: the probabilities of each self-attention in order, `[B, heads, N, N]` or
    `[B * heads, N, N]`; `norms`: the last layer norm's output `[B, N, D]` before each of them; `streams`: that
    norm's input with the version it had; `pooling`: those of attentions whose queries are not the tokens themselves,
    `[B, heads, Q, N]`; `grids`: (height, width) of what each
    convolution gave; `feature_map`: the last `[B, C, h, w]` or `[B, h, w, C]` with h * w > 1; `tokens`: the last layer
    norm's output `[B, N, D]` after it.
    """

    def __init__(self, images: Size) -> None:
        self.attention: list[Tensor] = []
        self.norms: list[Tensor | None] = []
        self.streams: list[tuple[Tensor, int] | None] = []
        self.pooling: list[Tensor] = []
        self.grids: list[tuple[int, int]] = []
        self.tokens: Tensor | None = None
        self.feature_map: Tensor | None = None
        self._batch = images[0]
        self._stream: tuple[Tensor, int] | None = None  # of the last layer norm
        self._softmax: Tensor | None = None  # one whose product with the values has not come yet
        self._made_of_it: list[Tensor] = []
        self._norm: Tensor | None = None

    def see(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """Look at one operation that has run."""
        if not isinstance(result, Tensor):
            return
        if name == "softmax":
            self._softmax = result if result.ndim in (3, 4, 5) and _over_last_axis(args, kwargs) else None
            self._made_of_it = [result]
        elif self._softmax is not None:
            self._follow(self._softmax, name, args, result)
        if name in _NORMS and result.ndim == 3 and len(result) == self._batch:
            self._norm = self.tokens = result
            self._stream = next(((tensor, tensor._version) for tensor in _tensors(args)), None)
        elif name == "conv" and result.ndim == 4 and len(result) == self._batch:
            self.grids.append((result.shape[-2], result.shape[-1]))
        if result.ndim == 4 and result.is_floating_point() and len(result) == self._batch:
            self._see_map(name, result)

    def _follow(self, softmax: Tensor, name: str, args: tuple[Any, ...], result: Tensor) -> None:
        operands = list(_tensors(args))
        others = [tensor for tensor in operands if not any(_same_memory(tensor, made) for made in self._made_of_it)]
        if len(others) == len(operands):
            return
        if name in _PRODUCTS and any(tensor.ndim >= 3 for tensor in others):  # a matrix of two axes mixes the heads
            if softmax.shape[-1] == softmax.shape[-2]:
                self.attention.append(softmax)
                self.norms.append(self._norm)
                self.streams.append(self._stream)
            else:
                self.pooling.append(softmax)
            self._softmax, self._made_of_it = None, []
        elif result.numel() == softmax.numel():
            self._made_of_it.append(result)

    def _see_map(self, name: str, result: Tensor) -> None:
        _, first, second, third = result.shape
        several_cells = second * third > 1 and first * second > 1  # whether channels come first or last
        if several_cells and name not in ("softmax", "matmul"):
            self.feature_map, self.tokens = result, None


def _over_last_axis(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    return dim in (-1, args[0].ndim - 1)


def _tensors(args: tuple[Any, ...]) -> Iterator[Tensor]:
    """The operands, which einsum may be given as a list."""
    for arg in args:
        yield from (item for item in (arg if isinstance(arg, list | tuple) else (arg,)) if isinstance(item, Tensor))


def _same_memory(left: Tensor, right: Tensor) -> bool:
    return left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()
