"""Where a model's values stop being finite."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from heatproof.tracing.operations import Operation
from heatproof.tracing.tracer import Tracer


def first_not_finite(module: nn.Module, images: Tensor, model: Callable[[Tensor], Any] | None = None) -> str | None:
    """Which parameter of `module`, or else which operation on `images`, is the first to be NaN or infinite.

    An operation counts that makes such a value of finite ones (a mask of −∞ does not); where there is none, the first with a
    NaN. None where all is well. `model` is what runs, the module itself by default.

    Example:
        >>> first_not_finite(nn.Sequential(nn.Linear(1, 1), nn.Tanh()), torch.tensor([[torch.nan]]))
        "the operation 'linear' in module 0"
        >>> first_not_finite(nn.Sequential(nn.Linear(1, 1), nn.Tanh()), torch.ones(1, 1)) is None
        True
    """
    for name, values in module.named_parameters():
        if not torch.isfinite(values).all():
            return f"the parameter {name!r}"
    watch = _Watch(module)
    with torch.no_grad(), watch:
        (model or module)(images)
    return watch.origin or watch.first_nan


class _Watch(Tracer):
    """Notes the first operation that makes something not finite of finite values, and the first that returns a NaN."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        self.origin: str | None = None
        self.first_nan: str | None = None

    def operation(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation as it is, and look at its values."""
        before = all(torch.isfinite(value).all() for value in _numbers((args, kwargs)))
        result = super().operation(operation, args, kwargs)
        if "empty" not in operation.name:  # memory that waits to be written may hold anything
            self._look(operation, before, list(_numbers(result)))
        return result

    def _look(self, operation: Operation, finite_before: bool, results: list[Tensor]) -> None:
        where = f"the operation {operation.name!r} in module {self.module_path()}"
        if self.origin is None and finite_before and not all(torch.isfinite(value).all() for value in results):
            self.origin = where
        if self.first_nan is None and any(value.isnan().any() for value in results):
            self.first_nan = where


def _numbers(values: Any) -> Iterator[Tensor]:
    """Every floating-point number and tensor in nested lists, tuples and dictionaries."""
    if isinstance(values, Tensor):
        if values.is_floating_point() or values.is_complex():
            yield values
    elif isinstance(values, float):
        yield torch.tensor(values)
    elif isinstance(values, dict):
        for value in values.values():
            yield from _numbers(value)
    elif isinstance(values, tuple | list):
        for value in values:
            yield from _numbers(value)
