"""A torch function mode that hands every operation of a model to one method."""

import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """The tensor cut off from parameters that ask for gradients: nothing here differentiates by a parameter.

    A view that was taken without gradients is a leaf to torch, too; it stays what it is, so that torch refuses writes into
    it, which would change what depends on the input unseen.
    """
    if not (tensor.requires_grad and tensor.is_leaf):
        return tensor
    return tensor.detach() if tensor._base is None or not tensor._base.requires_grad else tensor


def _positional(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with the operands in their places, where the model names them (`torch.add(input=x, other=y)`)."""
    if not args and "input" in kwargs:
        args, kwargs = (kwargs["input"],), {key: value for key, value in kwargs.items() if key != "input"}
    if len(args) == 1 and "other" in kwargs:
        args, kwargs = (*args, kwargs["other"]), {key: value for key, value in kwargs.items() if key != "other"}
    return args, kwargs


class _Nesting(threading.local):
    """How many `apart` are open in this thread."""

    level = 0


_nesting = _Nesting()


@contextmanager
def apart() -> Iterator[None]:
    """Inside, tracers that were entered before see nothing: for work of its own within a model that is traced."""
    _nesting.level += 1
    try:
        yield
    finally:
        _nesting.level -= 1


class Tracer(TorchFunctionMode):
    """While it is entered, every torch operation of this thread goes through `operation`, composite ones in their parts.

    Parameters reach the operations as constants, so what requires gradients is what depends on the input.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._paths = {id(part): path for path, part in module.named_modules()}
        self._level = 0

    def __enter__(self) -> "Tracer":
        self._level = _nesting.level
        return super().__enter__()  # type: ignore[no-any-return, no-untyped-call]

    def operation(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Called in place of each operation; what it returns is what the model gets."""
        return operation.function(*args, **kwargs)

    def __torch_function__(
        self, function: Callable[..., Any], _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._level != _nesting.level:
            return function(*args, **kwargs)
        operation = describe(function)
        if operation.getter:
            result = function(*args, **kwargs)
            if not is_live(result):
                return result
            return result.detach() if args[0].is_leaf else self.operation(operation, args, kwargs)
        args, kwargs = _positional(map_tensors(constant, args), map_tensors(constant, kwargs))
        if kwargs.get("out") is not None and next(live_tensors((args, kwargs)), None) is not None:
            return self._into(function, args, kwargs)
        if operation.name in COMPOSITES:
            with self:
                result = COMPOSITES[operation.name](*args, **kwargs)
                if result is not NotImplemented:
                    return args[0].copy_(result) if operation.inplace else result
        return self.operation(operation, args, kwargs)

    def _into(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A function with `out=`, which autograd does not take: its value, then written there."""
        outs = kwargs["out"]
        with self:
            values = function(*args, **{key: value for key, value in kwargs.items() if key != "out"})
            pairs = [(outs, values)] if isinstance(outs, Tensor) else list(zip(outs, values, strict=True))
            for out, value in pairs:
                (out if out.shape == value.shape else out.resize_(value.shape)).copy_(value)
        return outs

    def module_path(self) -> str:
        """The path of the innermost module of the model that is running now (slow: for messages and records)."""
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None:
            owner = frame.f_locals.get("self")
            if isinstance(owner, nn.Module) and id(owner) in self._paths:
                return self._paths[id(owner)] or "(the model itself)"
            frame = frame.f_back
        return "(outside the model)"
