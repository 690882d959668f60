"""Names for the functions that torch dispatches: `x += y`, `x.add_(y)` and `torch.add(x, y)` are all `add`."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

# torch's own synonyms; everything else goes by its own name
_SYNONYMS = {
    "multiply": "mul",
    "true_divide": "div",
    "truediv": "div",
    "divide": "div",
    "subtract": "sub",
    "mm": "matmul",
    "bmm": "matmul",
    "conv1d": "conv",
    "conv2d": "conv",
    "conv3d": "conv",
    "conv_transpose1d": "conv_transpose",
    "conv_transpose2d": "conv_transpose",
    "conv_transpose3d": "conv_transpose",
}


@dataclass(frozen=True)
class Operation:
    """One torch function under its standard name.

    `pure` computes the same value and changes nothing in place. `inplace` says that the function itself writes into its
    first argument; `flag` names its parameter that asks for that. `reflected` is `2 / x` as torch sees it, with x first;
    `getter` is attribute access (`x.shape`, `x.T`).
    """

    name: str
    function: Callable[..., Any]
    pure: Callable[..., Any]
    inplace: bool = False
    reflected: bool = False
    getter: bool = False
    flag: inspect.Signature | None = None

    def split_flag(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any], bool]:
        """The arguments with `inplace` switched off, and whether the call writes into its first argument."""
        if self.flag is None:
            return args, kwargs, self.inplace
        bound = self.flag.bind(*args, **kwargs)
        inplace = bool(bound.arguments.get("inplace", False))
        if inplace:
            bound.arguments["inplace"] = False
        return bound.args, bound.kwargs, inplace


@functools.cache
def describe(function: Callable[..., Any]) -> Operation:
    """The operation that a dispatched torch function is.

    >>> describe(torch.Tensor.__iadd__).name, describe(torch.Tensor.add_).inplace, describe(torch.bmm).name
    ('add', True, 'matmul')
    """
    name = getattr(function, "__name__", str(function))
    if name in ("__get__", "__set__", "__delete__"):
        return Operation(name, function, function, getter=name == "__get__")
    pure, inplace, reflected = function, False, False
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
        if hasattr(torch.Tensor, f"__{name[1:]}__"):  # __iadd__ and __radd__ beside __add__
            inplace, reflected = name[0] == "i", name[0] == "r"
            name = name[1:] if inplace or reflected else name
        if inplace:
            pure = getattr(torch.Tensor, f"__{name}__")
    elif name.endswith("_") and not name.startswith("_"):
        name, inplace = name[:-1], True
        pure = next((getattr(home, name) for home in (torch.Tensor, torch, F) if hasattr(home, name)), function)
        inplace = pure is not function
    return Operation(
        _SYNONYMS.get(name, name), function, pure, inplace=inplace, reflected=reflected, flag=_inplace_flag(function)
    )


def _inplace_flag(function: Callable[..., Any]) -> inspect.Signature | None:
    if not inspect.isfunction(function):
        return None
    signature = inspect.signature(function)
    return signature if "inplace" in signature.parameters else None
