"""Which operations need no rule: those whose every autograd node is linear in the input, or only moves values."""

from collections.abc import Container, Iterable
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.nn.modules._functions import BackwardHookFunction

# Closed lists: an operation made of anything else needs a rule. Products, quotients and matrix products are not here,
# because they are linear only where one operand is constant; the rules for them see to that.

# Each number of the result is one number of the input, or one of several that wins and takes all, times a constant.
# Activations are here where their gradient is their rule, f(x)/x.
MOVING_NODES = frozenset(
    """
    Neg View UnsafeView ReshapeAlias Alias Transpose T Permute Expand Squeeze Unsqueeze Movedim Unfold Unflatten AsStrided
    Select Slice Index IndexSelect Gather Take Cat Stack Split SplitWithSizes UnsafeSplit Unbind Clone ToCopy Contiguous
    CopySlices Copy CopyBackwards Zero Fill Uniform Normal Exponential
    Scatter MaskedFill MaskedScatter MaskedSelect Where Repeat Roll Flip Rot90 Diagonal Tril Triu BlockDiag ChannelShuffle
    IndexCopy IndexFill SelectScatter SliceScatter NanToNum Im2Col
    ConstantPadNd ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D ReplicationPad3D
    PixelShuffle PixelUnshuffle UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D
    UpsampleNearestExact1D UpsampleNearestExact2D UpsampleNearestExact3D
    MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D AdaptiveMaxPool3D MaxUnpool2D MaxUnpool3D
    Maximum Minimum Max Min Amax Amin Aminmax Topk Sort Median Kthvalue
    Relu Threshold LeakyRelu PreluKernel RreluWithNoise Abs
    """.split()
)
LINEAR_NODES = MOVING_NODES | frozenset(
    """
    Add Sub RSub Rsub Sum Mean Cumsum Trace Col2Im IndexPut IndexAdd ScatterAdd
    AvgPool2D AvgPool3D AdaptiveAvgPool1D AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D
    UpsampleLinear1D UpsampleBilinear2D UpsampleBicubic2D UpsampleBilinear2DAa UpsampleBicubic2DAa UpsampleTrilinear3D
    """.split()
)

_MODULE_HOOK = BackwardHookFunction._backward_cls  # the identity, round a module with backward hooks


def node_kind(name: str) -> str:
    """The kind of an autograd node by its name: `AddBackward0` is `Add`."""
    name = name.rpartition("::")[2]  # torch::autograd::CopySlices
    kind, found, _ = name.partition("Backward")
    return kind if found and kind else name


def _is_among(node: Any, allowed: Container[str]) -> bool:
    if isinstance(node, BackwardCFunction):  # written in Python, where a name says nothing
        return isinstance(node, _MODULE_HOOK)
    return node_kind(node.name()) in allowed


def reaches(tensor: Tensor, nodes: Container[object]) -> bool:
    """Whether one of the autograd `nodes` lies behind `tensor`."""
    seen, stack = set(), [tensor.grad_fn]
    while stack:
        node = stack.pop()
        if node in nodes:
            return True
        if node is not None and node not in seen:
            seen.add(node)
            stack.extend(parent for parent, _ in node.next_functions)
    return False


def nonlinear_nodes(
    results: Iterable[Tensor], inputs: Iterable[object], allowed: Container[str] = LINEAR_NODES
) -> list[str]:
    """The autograd nodes between `inputs` (autograd nodes) and `results` that are not on the closed list `allowed`."""
    seen = set(inputs)
    stack = [tensor.grad_fn for tensor in results]
    unknown = []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if not _is_among(node, allowed):
            unknown.append(node.name())
        stack.extend(parent for parent, _ in node.next_functions)
    return unknown
