"""Which tensors are gates: factors that count as constants for what they multiply.

Gates are sigmoids, and what is made of gates alone by moving, scaling and shifting them. `1 + tanh u` and `1 + erf u` are
gates too: twice a sigmoid of something, as in a GELU written out by hand.
"""

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from heatproof.relevance.first_layer import MOVES

Mark = Literal["gate", "odd sigmoid"]  # of the values f(u), or 2 f(u) − 1

_KEEP_GATES = MOVES | {"add", "sub", "mul", "div", "neg", "clamp", "interpolate"}


class Marks:
    """Known by their storage, so that views are too. What is marked is held, so that its storage stays its own."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, Mark]] = {}

    def of(self, tensor: Tensor) -> Mark | None:
        """What `tensor`, or what it is a view of, is marked as."""
        return self._known.get(tensor.untyped_storage().data_ptr(), (None, None))[1]

    def set(self, tensor: Tensor, mark: Mark | None) -> None:
        """Mark what `tensor` holds now, or forget what its storage held before."""
        storage = tensor.untyped_storage()
        if mark is None or tensor.numel() * tensor.element_size() < storage.nbytes():  # the rest is something else
            self._known.pop(storage.data_ptr(), None)
        else:
            self._known[storage.data_ptr()] = tensor.detach(), mark

    def follow(self, name: str, args: Sequence[Any], live: Sequence[Tensor], result: Any) -> None:
        """Mark the `result` of an operation that keeps gates what they are."""
        if not self._known or name not in _KEEP_GATES or not isinstance(result, Tensor):
            return
        marks = {self.of(tensor) for tensor in live}
        if marks == {"gate"} or (marks == {"odd sigmoid"} and name == "add" and _is_one(args[1])):
            self.set(result, "gate")


def _is_one(number: Any) -> bool:
    return isinstance(number, float | int) and number == 1
