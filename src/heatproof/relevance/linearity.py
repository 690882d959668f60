"""Which operations need no rule: those whose every autograd node is linear in the input, or only moves values."""

from collections.abc import Iterable

from torch import Tensor

# A closed list: an operation made of anything else needs a rule. Products, quotients and matrix products are not here,
# because they are linear only where one operand is constant; the rules for them see to that.
LINEAR_NODES = frozenset(
    """
    Add Sub RSub Neg Sum Mean Cumsum
    View UnsafeView ReshapeAlias Alias Transpose T Permute Expand Squeeze Unsqueeze Movedim Unfold Unflatten AsStrided
    Select Slice Index IndexSelect Gather Take Cat Stack Split SplitWithSizes UnsafeSplit Unbind Clone ToCopy Contiguous
    CopySlices Copy CopyBackwards IndexPut Scatter MaskedFill Where Repeat Roll Flip Rot90 Diagonal Tril Triu
    ConstantPadNd ReflectionPad1D ReflectionPad2D ReplicationPad1D ReplicationPad2D PixelShuffle PixelUnshuffle
    AvgPool2D AvgPool3D AdaptiveAvgPool1D AdaptiveAvgPool2D AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D
    MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D AdaptiveMaxPool3D
    UpsampleNearest1D UpsampleNearest2D UpsampleLinear1D UpsampleBilinear2D UpsampleBicubic2D
    UpsampleBilinear2DAa UpsampleBicubic2DAa
    NativeBatchNorm CudnnBatchNorm MiopenBatchNorm
    Relu Threshold LeakyRelu
    """.split()
)
# ReLU and leaky ReLU are here because their gradient is their rule, f(x)/x.


def _node_kind(name: str) -> str:
    kind, found, _ = name.partition("Backward")
    return kind if found and kind else name


def nonlinear_nodes(results: Iterable[Tensor], inputs: Iterable[object]) -> list[str]:
    """The autograd nodes between `inputs` (autograd nodes) and `results` that are not on the closed list."""
    seen = set(inputs)
    stack = [tensor.grad_fn for tensor in results]
    unknown = []
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if _node_kind(node.name()) not in LINEAR_NODES:
            unknown.append(node.name())
        stack.extend(parent for parent, _ in node.next_functions)
    return unknown
