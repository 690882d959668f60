"""What explainers read from a forward pass: attention probabilities, token grids, the last feature maps."""

from typing import Any

from torch import Size, Tensor


class Capture:
    """Filled by the mode while the model runs.

    `attention`: the probabilities of each self-attention in order, `[B, heads, N, N]` or `[B * heads, N, N]`, as they
    enter the product with the values; `norms`: the last layer norm's output before each of them, `[B, N, D]`;
    `grid`: (height, width) of the first convolution of the image; `feature_map`: the last `[B, C, h, w]` with h * w > 1.
    """

    def __init__(self, images: Size) -> None:
        self.attention: list[Tensor] = []
        self.norms: list[Tensor | None] = []
        self.grid: tuple[int, int] | None = None
        self.feature_map: Tensor | None = None
        self._images = images
        self._softmax: tuple[Tensor, Tensor | None] | None = None
        self._norm: Tensor | None = None

    def see(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        """Look at one operation that has run."""
        if not isinstance(result, Tensor):
            return
        if name == "softmax" and result.ndim in (3, 4) and result.shape[-1] == result.shape[-2]:
            self._softmax = result, self._norm
        elif name == "matmul" and self._softmax is not None and _same_memory(args[0], self._softmax[0]):
            self.attention.append(self._softmax[0])
            self.norms.append(self._softmax[1])
            self._softmax = None
        elif name == "layer_norm":
            self._norm = result
        elif name == "conv" and self.grid is None and args[0].shape[-2:] == self._images[-2:]:
            self.grid = (result.shape[-2], result.shape[-1])
        if result.ndim == 4 and result.is_floating_point() and result.shape[0] == self._images[0]:
            self._see_map(name, result)

    def _see_map(self, name: str, result: Tensor) -> None:
        if result.shape[2] * result.shape[3] > 1 and name not in ("softmax", "matmul"):
            self.feature_map = result


def _same_memory(left: Any, right: Tensor) -> bool:
    return isinstance(left, Tensor) and left.untyped_storage().data_ptr() == right.untyped_storage().data_ptr()
