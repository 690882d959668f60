"""A torch function mode that hands every operation of a model to one method."""

import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from heatproof.tracing.composites import COMPOSITES
from heatproof.tracing.operations import Operation, describe


def is_live(value: Any) -> bool:
    """Whether a value depends on the input that is explained (under a `Tracer`, only such tensors require gradients)."""
    return isinstance(value, Tensor) and value.requires_grad


def map_tensors(function: Callable[[Tensor], Any], values: Any) -> Any:
    """`function` of every tensor in nested lists, tuples and dictionaries."""
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, dict):
        return {key: map_tensors(function, value) for key, value in values.items()}
    if isinstance(values, tuple | list):
        mapped = [map_tensors(function, value) for value in values]
        if isinstance(values, tuple) and hasattr(values, "_fields"):
            return type(values)(*mapped)
        return tuple(mapped) if isinstance(values, tuple) else mapped
    return values


def live_tensors(values: Any) -> Iterator[Tensor]:
    """Every tensor that depends on the input, in nested lists, tuples and dictionaries."""
    if isinstance(values, Tensor):
        if values.requires_grad:
            yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from live_tensors(value)
    elif isinstance(values, tuple | list):
        for value in values:
            yield from live_tensors(value)


def constant(tensor: Tensor) -> Tensor:
    """The tensor cut off from parameters that ask for gradients: nothing here differentiates by a parameter."""
    return tensor.detach() if tensor.requires_grad and tensor.is_leaf else tensor


class Tracer(TorchFunctionMode):
    """While it is entered, every torch operation of this thread goes through `operation`, composite ones in their parts.

    Parameters reach the operations as constants, so what requires gradients is what depends on the input.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._paths = {id(part): path for path, part in module.named_modules()}

    def operation(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called in place of each operation; what it returns is what the model gets."""
        return operation.function(*args, **kwargs)

    def __torch_function__(
        self, function: Callable[..., Any], _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in COMPOSITES:
            with self:
                return COMPOSITES[function](*args, **kwargs)
        operation = describe(function)
        if operation.getter:
            result = function(*args, **kwargs)
            return result.detach() if is_live(result) and args[0].is_leaf else result
        return self.operation(operation, map_tensors(constant, args), map_tensors(constant, kwargs))

    def module_path(self) -> str:
        """The path of the innermost module of the model that is running now (slow: for messages and records)."""
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and id(owner) in self._paths:
                return self._paths[id(owner)] or "(the model itself)"
            frame = frame.f_back
        return "(outside the model)"
