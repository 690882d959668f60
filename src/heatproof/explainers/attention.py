"""Maps from attention probabilities, alone or weighted by relevance. For vision transformers."""

from collections.abc import Sequence

import torch
from torch import Tensor

from heatproof.errors import InputError
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.relevance import presets, run
from heatproof.relevance.tokens import TokenLayout, attention_matrices, per_head, token_layout


@explainer(
    "attention",
    family="attention",
    signed=False,
    needs={"attention"},
    paper="chung2024evaluating",
    upsampling="nearest",
)
def attention(model: Classifier, images: Tensor, targets: Targets, *, layer: int = -1) -> Tensor:
    """Attention that the class token pays to each image token in one block, averaged over heads.

    The same map for every target. `layer` counts blocks from 0, or from the end if negative.

    Returns:
        Maps `[B, T, h, w]` on the token grid; models without a class token: the mean over the tokens they pool.
    """
    matrices, layout = _mean_attention(model, images)
    if not -len(matrices) <= layer < len(matrices):
        raise InputError(f"layer must lie in {-len(matrices)}..{len(matrices) - 1} for this model, got {layer}.")
    return _for_each_target(layout.map_of(matrices[layer]), targets)


@explainer("attention_rollout", family="attention", signed=False, needs={"attention"}, paper="abnar2020quantifying")
def attention_rollout(model: Classifier, images: Tensor, targets: Targets, *, start_layer: int = 0) -> Tensor:
    """Attention followed through the blocks: the product of `I + mean over heads`, rows normalised.

    The same map for every target. `start_layer` is the first block that counts.

    Returns:
        Maps `[B, T, h, w]` on the token grid.
    """
    matrices, layout = _mean_attention(model, images)
    with_residual = [a + torch.eye(a.shape[-1], device=a.device, dtype=torch.float32) for a in matrices]
    rows = [a / a.sum(-1, keepdim=True) for a in with_residual]
    return _for_each_target(layout.map_of(_chain(rows, start_layer)), targets)


@explainer("transformer_lrp", family="attention", signed=False, needs={"attention"}, paper="chefer2021transformer")
def transformer_lrp(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    strict: bool,
    start_layer: int = 0,
    normalize_rows: bool = False,
) -> Tensor:
    """Attention weighted by its gradient and its relevance, followed through the blocks (Chefer, Gur and Wolf).

    In each block `Ā = I + mean over heads of (G ⊙ R)⁺` with the gradient G and the relevance R of the attention for the
    target; the map is the class token's row of the product of the Ā.

    Args:
        model: any vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        start_layer: the first block that counts (1 in the authors' segmentation experiments).
        normalize_rows: divide each row of Ā by its sum, a variant in use elsewhere.

    Returns:
        Maps `[B, T, h, w]` on the token grid; models without a class token: the mean over the tokens they pool.
    """
    passed = run(model, images, presets.transformer_attention(), both=True, strict=strict)
    matrices = attention_matrices(passed)
    maps = []
    for score, last in targets.in_turn(passed.logits):
        gradients = passed.per_unit(score, matrices, phase="gradient")
        layout = token_layout(passed, per_head(gradients[-1], len(images)))
        relevance = passed.per_unit(score, matrices, last=last)
        weighted = [
            _mean_positive(per_head(g * a.detach() * c, len(images)))
            for g, a, c in zip(gradients, matrices, relevance, strict=True)
        ]
        if normalize_rows:
            weighted = [a / a.sum(-1, keepdim=True) for a in weighted]
        maps.append(layout.map_of(_chain(weighted, start_layer)))
    return torch.stack(maps, 1)


@explainer("generic_attention", family="attention", signed=False, needs={"attention"}, paper="chefer2021generic")
def generic_attention(model: Classifier, images: Tensor, targets: Targets, *, start_layer: int = 0) -> Tensor:
    """Attention weighted by its own gradient, followed through the blocks (Chefer, Gur and Wolf's generic method).

    In each block `Ā = I + mean over heads of (G ⊙ A)⁺` with the attention A and its gradient G for the target; the map is
    the class token's row of the product of the Ā. `start_layer` is the first block that counts.

    Returns:
        Maps `[B, T, h, w]` on the token grid; models without a class token: the mean over the tokens they pool.
    """
    passed = run(model, images, presets.NOTHING)
    matrices = attention_matrices(passed)
    maps = []
    for score, last in targets.in_turn(passed.logits):
        gradients = passed.per_unit(score, matrices, phase="gradient", last=last)
        layout = token_layout(passed, per_head(gradients[-1], len(images)))
        weighted = [
            _mean_positive(per_head(g * a.detach(), len(images))) for g, a in zip(gradients, matrices, strict=True)
        ]
        maps.append(layout.map_of(_chain(weighted, start_layer)))
    return torch.stack(maps, 1)


def _mean_positive(weighted: Tensor) -> Tensor:
    """`I + mean over heads of the positive part`, `[B, N, N]`."""
    return weighted.clamp(min=0).mean(1) + torch.eye(weighted.shape[-1], device=weighted.device, dtype=torch.float32)


def _chain(matrices: Sequence[Tensor], start_layer: int) -> Tensor:
    """`C = A_last ··· A_start`."""
    if not 0 <= start_layer < len(matrices):
        raise InputError(f"start_layer must lie in 0..{len(matrices) - 1} for this model, got {start_layer}.")
    product = matrices[start_layer]
    for matrix in matrices[start_layer + 1 :]:
        product = matrix @ product
    return product


def _mean_attention(model: Classifier, images: Tensor) -> tuple[list[Tensor], TokenLayout]:
    """Attention of every block averaged over heads, `[B, N, N]` each, and the layout of the tokens.

    The layout needs a gradient, for which one image is enough: the others run without.
    """
    first = run(model, images[:1], presets.NOTHING)
    last = attention_matrices(first)[-1]
    gradient = first.per_unit(first.logits.sum(1), [last], phase="gradient", last=True)[0]
    layout = token_layout(first, per_head(gradient, 1))
    passes = [first]
    if len(images) > 1:
        passes.append(run(model, images[1:], presets.NOTHING, gradients=False))
    blocks = zip(*(attention_matrices(passed) for passed in passes), strict=True)
    counts = [len(passed.images) for passed in passes]
    return [
        torch.cat([per_head(a.detach(), n).mean(1) for a, n in zip(block, counts, strict=True)]) for block in blocks
    ], layout


def _for_each_target(maps: Tensor, targets: Targets) -> Tensor:
    return maps[:, None].expand(-1, targets.count, -1, -1)
