"""Values that the way back needs, safe from the model's own writes in place."""

import weakref
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from heatproof.errors import UnsupportedModelError
from heatproof.relevance.supported import RECOMPUTES


class Keeper:
    """Lends aliases of tensors; before a write into their storage, they get one of their own.

    So nothing is copied that nobody writes into. It holds no tensor itself.
    """

    def __init__(self) -> None:
        self._aliases: defaultdict[int, list[weakref.ref[Tensor]]] = defaultdict(list)

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor's present value."""
        alias = tensor.detach()
        self._aliases[alias.untyped_storage().data_ptr()].append(weakref.ref(alias))
        return alias

    def before_write(self, target: Tensor, *, spare: Tensor | None = None) -> None:
        """To be called before a write into `target`, which the alias `spare` may follow."""
        storage = target.untyped_storage().data_ptr()
        copies: dict[Any, Tensor] = {}
        for reference in self._aliases.pop(storage, []):
            alias = reference()
            if alias is None:
                continue
            if alias is spare:
                self._aliases[storage].append(reference)
                continue
            if _place(alias) not in copies:
                copies[_place(alias)] = alias.data.clone()
            alias.data = copies[_place(alias)]

    def move(self, source: Tensor, target: Tensor) -> None:
        """What is kept of `source` is kept as `target` from now on, which holds the same numbers."""
        if source.dtype != target.dtype:
            return
        references = self._aliases.pop(source.untyped_storage().data_ptr(), [])
        for reference in references:
            alias = reference()
            if alias is not None and _place(alias) == _place(source):
                alias.data = target.detach()
                self._aliases[target.untyped_storage().data_ptr()].append(reference)
            elif alias is not None:
                self._aliases[source.untyped_storage().data_ptr()].append(reference)

    @contextmanager
    def for_gradients(self) -> Iterator[None]:
        """Inside, what torch saves for ordinary gradients is kept likewise (it would refuse to use what was changed).

        Raises:
            UnsupportedModelError: somebody else swaps what is saved, or torch.func is used, which allows no such hooks.
        """
        hooks = _hooks()
        if hooks is not None and not isinstance(getattr(hooks[0], "__self__", None), Keeper):
            raise UnsupportedModelError(RECOMPUTES)
        if torch._C._autograd._saved_tensors_hooks_get_disabled_error_message() is not None:
            yield
            return
        try:
            with torch.autograd.graph.saved_tensors_hooks(self.keep, _itself):
                yield
        except RuntimeError as error:
            if "saved tensor hooks" not in str(error):
                raise
            raise UnsupportedModelError(
                "The model differentiates or transforms within its forward pass (torch.func), where nothing can be "
                "followed. Write that part in torch operations, or use a method that only runs the model: lime."
            ) from error

    def is_asked(self) -> bool:
        """Whether it still is this keeper that torch asks, and no hooks of the model's own."""
        hooks = _hooks()
        return hooks is None or hooks[0] == self.keep


def _place(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype


def _hooks() -> tuple[Any, Any] | None:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _itself(tensor: Tensor) -> Tensor:
    return tensor
