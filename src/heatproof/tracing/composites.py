"""Functions that dispatch once and hide what they run, written out so that their parts are seen.

Each is called under the tracer, which then sees the parts. The values are those of torch up to rounding.
"""

import math
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`softmax(q kᵀ · scale + mask) v` as torch defines it, in separate steps.

    As there, a causal mask and one of the caller's own hold together, and a row that may look nowhere is 0.
    """
    if enable_gqa:
        key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
        value = value.repeat_interleave(query.shape[-3] // value.shape[-3], -3)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    nowhere = torch.zeros((), dtype=torch.bool, device=scores.device)
    if attn_mask is not None:
        hidden = attn_mask.logical_not() if attn_mask.dtype == torch.bool else attn_mask == -math.inf
        nowhere = hidden.all(-1, keepdim=True)
        scores = scores.masked_fill(hidden, -math.inf) if attn_mask.dtype == torch.bool else scores + attn_mask
    if is_causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        nowhere = nowhere if attn_mask is None else (hidden | later).all(-1, keepdim=True)
        scores = scores.masked_fill(later, -math.inf)
    if not nowhere.any():
        return _dropout(scores.softmax(-1), dropout_p) @ value
    return _dropout(scores.masked_fill(nowhere, 0.0).softmax(-1).masked_fill(nowhere, 0.0), dropout_p) @ value


def _dropout(weights: Tensor, p: float) -> Tensor:
    return F.dropout(weights, p) if p > 0 else weights


def addmm(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Any:
    """`beta · bias + alpha · left right`; a dense layer with a constant bias stays whole."""
    if beta == alpha == 1 and not bias.requires_grad:
        return NotImplemented
    return _weighted_sum(bias, beta, left @ right, alpha)


def baddbmm(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """`beta · bias + alpha · left right`, of matrices in a batch or of a matrix and a vector."""
    return _weighted_sum(bias, beta, left @ right, alpha)


def addbmm(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """`beta · bias + alpha · Σ left right` over the batch axis."""
    return _weighted_sum(bias, beta, (left @ right).sum(0), alpha)


def addr(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """`beta · bias + alpha · left rightᵀ` of two vectors."""
    return _weighted_sum(bias, beta, outer(left, right), alpha)


def _weighted_sum(left: Tensor, of_left: float, right: Tensor, of_right: float) -> Tensor:
    right = right if of_right == 1 else right * of_right
    if of_left == 0:  # torch then does not look at it, not even at NaN
        return right
    return (left if of_left == 1 else left * of_left) + right


def addcmul(bias: Tensor, left: Tensor, right: Tensor, *, value: float = 1) -> Tensor:
    """`bias + value · left · right`."""
    return _weighted_sum(bias, 1, left * right, value)


def addcdiv(bias: Tensor, numerator: Tensor, divisor: Tensor, *, value: float = 1) -> Tensor:
    """`bias + value · numerator / divisor`."""
    return _weighted_sum(bias, 1, numerator / divisor, value)


def lerp(start: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    """`(1 − weight) start + weight end`."""
    return start * (1 - weight) + end * weight


def rsub(x: Tensor, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    """`other − alpha · x`."""
    difference: Tensor = other - (x if alpha == 1 else x * alpha)
    return difference


def diff(x: Tensor, n: int = 1, dim: int = -1, prepend: Tensor | None = None, append: Tensor | None = None) -> Tensor:
    """The n-th difference of neighbours along an axis."""
    if prepend is not None or append is not None:
        x = torch.cat([part for part in (prepend, x, append) if part is not None], dim)
    for _ in range(n):
        x = x.narrow(dim, 1, x.shape[dim] - 1) - x.narrow(dim, 0, x.shape[dim] - 1)
    return x


def index_add(x: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: float = 1) -> Any:
    """`x` with `alpha · source` added at places along an axis."""
    return NotImplemented if alpha == 1 else x.index_add(dim, index, source * alpha)


def einsum(equation: Any, *operands: Any) -> Any:
    """A sum of products in which the factors that do not depend on the input are first made into one."""
    if not isinstance(equation, str) or "..." in equation:
        return NotImplemented
    tensors = list(operands[0]) if len(operands) == 1 and isinstance(operands[0], list | tuple) else list(operands)
    given, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow:
        result = "".join(sorted(letter for letter in set(given) - {","} if given.count(letter) == 1))
    terms = list(zip(given.split(","), tensors, strict=True))
    live = [term for term in terms if term[1].requires_grad]
    fixed = [term for term in terms if not term[1].requires_grad]
    if len(live) != 1 or len(fixed) < 2:
        return NotImplemented
    letters, inputs = ",".join(subscripts for subscripts, _ in fixed), live[0][0]
    needed = "".join(sorted(set(letters) & set(inputs + result)))
    weight = torch.einsum(f"{letters}->{needed}", *(tensor for _, tensor in fixed))
    return torch.einsum(f"{inputs},{needed}->{result}", live[0][1], weight)


def outer(left: Tensor, right: Tensor) -> Tensor:
    """All products of two vectors' numbers."""
    return left[:, None] * right


def multi_dot(tensors: Sequence[Tensor]) -> Tensor:
    """A product of matrices, one after the other."""
    product, *others = tensors
    for other in others:
        product = product @ other
    return product


def vecdot(left: Tensor, right: Tensor, *, dim: int = -1) -> Tensor:
    """The scalar product along an axis."""
    return (left * right).sum(dim)


def bilinear(left: Tensor, right: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`leftᵀ W right + bias` for each matrix of the weight."""
    product = torch.einsum("...i,kij,...j->...k", left, weight, right)
    return product if bias is None else product + bias


def cosine_similarity(left: Tensor, right: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The scalar product along an axis over the product of both lengths."""
    length: Tensor = left.norm(dim=dim).clamp_min(eps) * right.norm(dim=dim).clamp_min(eps)
    return (left * right).sum(dim) / length


def var_mean(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Variance and mean, apart."""
    return _with_mean(x, x.var(*args, **kwargs), *args, **kwargs)


def std_mean(x: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """Standard deviation and mean, apart."""
    return _with_mean(x, x.std(*args, **kwargs), *args, **kwargs)


def _with_mean(x: Tensor, spread: Tensor, dim: Any = None, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
    axes = None if isinstance(dim, bool) else dim  # var_mean(x, unbiased)
    return spread, x.mean(axes, keepdim=spread.ndim == x.ndim)


_DISPATCH_TESTS = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")


def _opened(function: Callable[..., Any]) -> Callable[..., Any]:
    """A copy of a function of `torch.nn.functional` that does not dispatch as a whole.

    Its own test of whether anybody overrides it always says no; torch itself is untouched.
    """
    nobody = dict.fromkeys(_DISPATCH_TESTS, lambda *_: False)
    names = {**function.__globals__, **nobody}
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_PARTS = (
    scaled_dot_product_attention, addmm, baddbmm, addbmm, addr, addcmul, addcdiv, lerp, rsub, diff, index_add, einsum,
    outer, bilinear, cosine_similarity, var_mean, std_mean,
)  # fmt: skip
_OPENED = (
    F.multi_head_attention_forward, F.normalize, F.local_response_norm, F.softmin,
    F.lp_pool1d, F.lp_pool2d, F.lp_pool3d,
)  # fmt: skip

COMPOSITES: dict[str, Callable[..., Any]] = {
    **{function.__name__: function for function in _PARTS},
    **{function.__name__: _opened(function) for function in _OPENED},
    "addmv": baddbmm,
    "linalg_multi_dot": multi_dot,
    "linalg_vecdot": vecdot,
}
"""By the operation's name: what it is made of. `NotImplemented` as a value leaves the operation whole."""
