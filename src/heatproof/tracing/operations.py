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
    **dict.fromkeys(("multiply",), "mul"),
    **dict.fromkeys(("true_divide", "truediv", "divide"), "div"),
    **dict.fromkeys(("subtract",), "sub"),
    **dict.fromkeys(("negative",), "neg"),
    **dict.fromkeys(("absolute",), "abs"),
    **dict.fromkeys(("clip", "clamp_min", "clamp_max"), "clamp"),
    **dict.fromkeys(("mm", "bmm", "mv", "dot", "vdot"), "matmul"),
    **dict.fromkeys(("ger",), "outer"),
    **dict.fromkeys(("concat", "concatenate"), "cat"),
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), "conv"),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), "conv_transpose"),
    **dict.fromkeys(("special_softmax", "_softmax"), "softmax"),
    **dict.fromkeys(("special_expit",), "sigmoid"),
    **dict.fromkeys(("special_erf",), "erf"),
    **dict.fromkeys(("special_expm1",), "expm1"),
    **dict.fromkeys(("special_log1p",), "log1p"),
    **dict.fromkeys(("special_sinc",), "sinc"),
    **dict.fromkeys(("arctan",), "atan"),
    **dict.fromkeys(("arcsinh",), "asinh"),
    **dict.fromkeys(("swapaxes", "swapdims"), "transpose"),
    "_threshold": "threshold",
}

# in place by name, but they write no values: they change what the tensor itself says of itself
_RELABELLING = frozenset(
    """
    squeeze_ unsqueeze_ transpose_ t_ swapaxes_ swapdims_ as_strided_ resize_ resize_as_ set_ requires_grad_ detach_
    share_memory_ rename_ apply_ map_ map2_
    """.split()
)
# in place, whatever the tensor held before
_OVERWRITING = frozenset(
    """
    zero_ fill_ copy_ uniform_ normal_ random_ bernoulli_ exponential_ cauchy_ log_normal_ geometric_
    """.split()
)


@dataclass(frozen=True)
class Operation:
    """One torch function under its standard name.

    `pure` computes the same value and changes nothing in place. `inplace` says that the function itself writes into its
    first argument; `flag` names its parameter that asks for that. `reflected` is `2 / x` as torch sees it, with x first;
    `getter` is attribute access, by the attribute's name (`x.shape`, `x.T`).
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
    qualified = getattr(getattr(function, "overloadpacket", function), "_qualified_op_name", "aten::")
    if not qualified.startswith("aten::"):  # somebody's own operation, whatever it is called
        return Operation(qualified, function, function)
    name = getattr(function, "__name__", str(function)).partition(".")[0]  # torch.ops has "relu.default"
    if name == "__get__":
        return Operation(function.__self__.__name__, function, function, getter=True)  # type: ignore[attr-defined]
    if name in ("__set__", "__delete__") or name in _RELABELLING:
        return Operation(name, function, function)
    pure, inplace, reflected = function, False, False
    if name.startswith("__") and name.endswith("__"):
        name = name[2:-2]
        if hasattr(torch.Tensor, f"__{name[1:]}__"):  # __iadd__ and __radd__ beside __add__
            inplace, reflected = name[0] == "i", name[0] == "r"
            name = name[1:] if inplace or reflected else name
        if inplace:
            pure = getattr(torch.Tensor, f"__{name}__")
    elif name.endswith("_") and not name.startswith("_"):
        pure, inplace, name = _pure_twin(function, name), True, name[:-1]
    return Operation(
        _SYNONYMS.get(name, name), function, pure, inplace=inplace, reflected=reflected, flag=_inplace_flag(function)
    )


def _pure_twin(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """What computes the value of an in-place function and writes nowhere that matters."""
    if name in _OVERWRITING:
        return lambda tensor, *args, **kwargs: function(torch.empty_like(tensor), *args, **kwargs)
    for home in (torch.Tensor, torch, F):
        if hasattr(home, name[:-1]):
            return getattr(home, name[:-1])  # type: ignore[no-any-return]
    return lambda tensor, *args, **kwargs: function(tensor.clone(), *args, **kwargs)


def _inplace_flag(function: Callable[..., Any]) -> inspect.Signature | None:
    if not inspect.isfunction(function):
        return None
    signature = inspect.signature(function, follow_wrapped=False)  # Tensor's operators wrap functions without one
    return signature if "inplace" in signature.parameters else None
