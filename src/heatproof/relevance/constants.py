"""What constants (biases, running means, position embeddings, masks) contribute to an operation's value."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from heatproof.tracing import Operation, is_live, live_tensors, map_tensors

Edge = tuple[Node, int]  # where a tensor hangs in the graph: the node that made it, and which of its outputs it is


class Names:
    """Names of constants: of a parameter or buffer, of those it was computed from, or just "constant"."""

    def __init__(self, module: nn.Module) -> None:
        self._kept: list[Tensor] = []  # so that no storage is used again
        self._names: dict[int, str] = {}
        for name, tensor in (*module.named_buffers(), *module.named_parameters()):
            self._names[_storage(tensor)] = name

    def name(self, tensor: Tensor) -> str:
        """How to call a constant."""
        return self._names.get(_storage(tensor), "constant")

    def follow(self, arguments: Any, result: Any) -> None:
        """Call what an operation on constants makes by their names."""
        sources = dict.fromkeys(self._names[_storage(t)] for t in tensors_in(arguments) if _storage(t) in self._names)
        for tensor in tensors_in(result):
            if sources and _storage(tensor) not in self._names:
                self._kept.append(tensor)
                self._names[_storage(tensor)] = " + ".join(sources)


@dataclass
class Snapshot:
    """An operation before it runs: `edges` of its live arguments, copies of constants it may write into, both by id."""

    operation: Operation
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    edges: dict[int, Edge]
    copies: dict[int, Tensor]
    versions: list[tuple[Tensor, int]]

    @classmethod
    def of(cls, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "Snapshot":
        """The operation, about to run."""
        found = tensors_in((args, kwargs))
        writes = operation.inplace or operation.flag is not None or operation.name == "setitem"
        copies = {id(t): t.clone() for t in map(base_of, found[:1]) if writes and not is_live(t)}
        edges = {id(t): edge_of(t) for t in live_tensors((args, kwargs))}
        return cls(operation, (args, kwargs), edges, copies, [(t, t._version) for t in found])

    def written(self) -> Tensor | None:
        """The argument that has been written into since, if any."""
        return next((t for t, version in self.versions if t._version != version), None)

    def contributions(self, reached: set[Edge], name: Callable[[Tensor], str]) -> dict[str, list[Tensor]]:
        """What each constant contributes to each of the operation's outputs, by name.

        The operation runs again with zero in the place of the inputs that relevance goes to (`reached`). A constant's part
        is what setting it to zero too takes away, one after the other: all of them add up to the value found first.
        """
        parts: dict[str, list[Tensor]] = {}
        zeroed: set[int] = set()
        remaining = self._value(reached, zeroed)
        for constant, _ in self.versions:
            if not any(bool(t.any()) for t in remaining):
                break
            if id(constant) in self.edges or not constant.is_floating_point():
                continue
            zeroed.add(id(constant))
            value = self._value(reached, zeroed)
            taken = [torch.where(a == b, 0, a - b) for a, b in zip(remaining, value, strict=True)]  # -inf stays 0
            _add(parts, name(constant), taken)
            remaining = value
        _add(parts, "constant", remaining)
        return parts

    def _value(self, reached: set[Edge], zeroed: set[int]) -> list[Tensor]:
        """The outputs with zero for inputs that are `reached` and for `zeroed` constants; whole bases of what is written."""
        written = self.written()
        whole = None if written is None else self._stand_in_base(written, zeroed)

        def stand_in(tensor: Tensor) -> Tensor:
            if whole is not None and tensor is written:
                return whole if written._base is None else _same_part(written, whole)
            gone = id(tensor) in zeroed or self.edges.get(id(tensor)) in reached
            return torch.zeros_like(tensor) if gone else tensor.detach()

        args, kwargs = map_tensors(stand_in, self.arguments)
        with torch.no_grad():
            if whole is None:
                return tensors_in(self.operation.pure(*args, **kwargs))
            self.operation.function(*args, **kwargs)
        return [whole]

    def _stand_in_base(self, written: Tensor, zeroed: set[int]) -> Tensor:
        """What `written` shows, as it was where it is a constant, and zero where not; in the same layout."""
        base, copy = base_of(written), self.copies.get(id(base_of(written)))
        blank = _zeros_laid_out_like(base)
        return blank if copy is None or id(written) in zeroed else blank.copy_(copy)


def within_base(values: Tensor, view: Tensor) -> Tensor:
    """What a view's base would be if the view held `values`, and all else were 0."""
    whole = _zeros_laid_out_like(base_of(view))
    _same_part(view, whole).copy_(values)
    return whole


def _zeros_laid_out_like(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).zero_()


def _same_part(view: Tensor, base: Tensor) -> Tensor:
    return base.as_strided(view.shape, view.stride(), view.storage_offset() - base_of(view).storage_offset())


def _add(parts: dict[str, list[Tensor]], name: str, part: Sequence[Tensor]) -> None:
    if any(bool(t.any()) for t in part):
        parts[name] = [a + b for a, b in zip(parts[name], part, strict=True)] if name in parts else list(part)


def edge_of(tensor: Tensor) -> Edge:
    """Where a live tensor hangs in the graph now."""
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def base_of(tensor: Tensor) -> Tensor:
    """What a tensor is a view of, or itself."""
    return tensor if tensor._base is None else tensor._base


def tensors_in(values: Any) -> list[Tensor]:
    """Every tensor in nested lists, tuples and dictionaries."""
    found: list[Tensor] = []
    map_tensors(found.append, values)
    return found


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
