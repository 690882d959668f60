"""Maps from attention probabilities, alone or weighted by relevance. For vision transformers."""

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from heatproof.checks import check_choice, check_number
from heatproof.errors import InputError
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.relevance import presets, run
from heatproof.relevance.tokens import TokenLayout, attention_matrices, per_head, token_layout

_FUSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda attention: attention.mean(1),
    "max": lambda attention: attention.amax(1),
    "min": lambda attention: attention.amin(1),
}  # [B, heads, N, N] -> [B, N, N]


@explainer(
    "attention",
    family="attention",
    signed=False,
    needs={"attention"},
    paper="chung2024evaluating",
    upsampling="nearest",
    class_agnostic=True,
)
def attention(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    layer: int = -1,
    head: int | None = None,
    head_fusion: str = "mean",
) -> Tensor:
    """Attention that the class token pays to each image token in one block, averaged over heads.

    It shows where the model looks in that block, not what it makes of it nor for which class. What was mixed into a token
    below that block is not told apart from the token itself.

    Formula:
        Ā[cls], with Ā the mean over heads of A_layer

    Cost:
        1 forward pass, 1 way back. That way, to the last attention, is taken for the first image of a batch alone, to see
        which tokens the head reads.

    Models:
        ViT. Attention must be over the whole image in every block.

    Args:
        model: a vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        layer: the block, counted from 0, or from the end if negative.
        head: one head in place of all, counted likewise.
        head_fusion: of all heads the `mean`, or the `max` or `min` of each entry.

    Returns:
        Maps `[B, T, h, w]` on the token grid; models without a class token: the mean over the tokens they pool.

    Checked:
        the authors' maps of a stored model, to 1e-5: tests/explainers/test_attention.py.
        softmax by hand in float64, to 1e-6: tests/explainers/test_attention.py.

    Raises:
        InputError: the block or the head does not exist, or `head` comes with a fusion of heads.

    Example:
        >>> import heatproof as hp
        >>> from transformers import ViTConfig, ViTForImageClassification
        >>> config = ViTConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
        >>> net = ViTForImageClassification(config).eval()
        >>> hp.explain(net, torch.rand(1, 3, 8, 8), method="attention", resolution="native").shape
        torch.Size([1, 2, 2])
    """
    if head is not None and head_fusion != "mean":
        raise InputError(f"head={head!r} takes one head, and head_fusion={head_fusion!r} joins all: leave one out.")

    def fuse(attention: Tensor) -> Tensor:
        if head is None:
            return _fusion(head_fusion)(attention)
        return attention[:, _of_either_end("head", head, attention[0])]

    matrices, layout = _fused_attention(model, images, fuse)
    return _for_each_target(layout.map_of(matrices[_of_either_end("layer", layer, matrices)]), targets)


@explainer(
    "attention_rollout",
    family="attention",
    signed=False,
    needs={"attention"},
    paper="abnar2020quantifying",
    class_agnostic=True,
)
def attention_rollout(
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    start_layer: int = 0,
    head_fusion: str = "mean",
    discard_ratio: float = 0.0,
) -> Tensor:
    """Attention followed through the blocks: the product of `I + mean over heads`, rows normalised.

    It shows from where values could have come. Heads and blocks count alike, whatever they carry, and values and gradients
    not at all.

    Formula:
        C[cls], with C = Â_last ··· Â_start and Â_b = (I + Ā_b) / row sums, Ā_b the mean over heads of A_b

    Cost:
        1 forward pass, 1 way back. That way, to the last attention, is taken for the first image of a batch alone, to see
        which tokens the head reads.

    Models:
        ViT. Attention must be over the whole image in every block.

    Args:
        model: a vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        start_layer: the first block that counts.
        head_fusion: of all heads the `mean`, or the `max` or `min` of each entry.
        discard_ratio: the share of each Ā_b that is set to 0, its lowest entries, from 0 to 1 (0.9 is in wide use with
            fused heads). What the class token pays to itself is kept.

    Returns:
        Maps `[B, T, h, w]` on the token grid; models without a class token: the mean over the tokens they pool.

    Checked:
        the authors' maps of a stored model, to 1e-5: tests/explainers/test_attention.py.
        a float64 replica entry by entry, to 1e-5: tests/explainers/test_attention.py.
    """
    check_number("discard_ratio", discard_ratio, high=1.0)
    matrices, layout = _fused_attention(model, images, _fusion(head_fusion))
    kept = layout.pooled[layout.pooled < layout.prefix]
    sums = [plus_identity(_without_lowest(a, discard_ratio, kept)) for a in matrices]
    return _for_each_target(layout.map_of(chain([a / a.sum(-1, keepdim=True) for a in sums], start_layer)), targets)


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

    Of each head it keeps what raises the target, as far as both its slope and what flowed through it say so. What speaks
    against the target is cut off in every block, and the values that attention moves count only through the relevance.

    Formula:
        C[cls], with C = Ā_last ··· Ā_start and Ā_b = I + mean over heads of (G_b ⊙ R_b)⁺
        R_b: the relevance of A_b by z⁺ without biases, products halved, sums by the ratio rule

    Cost:
        1 forward pass, 2 · T ways back. All of them end at the first attention.

    Models:
        ViT. Attention must be over the whole image in every block.

    Args:
        model: a vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        strict: an operation without a rule is an error.
        start_layer: the first block that counts (1 in the authors' segmentation experiments).
        normalize_rows: divide each row of Ā by its sum, a variant in use elsewhere.

    Returns:
        Maps `[B, T, h, w]` on the token grid; models without a class token: the mean over the tokens they pool.

    Checked:
        the authors' maps of a stored model, to 1e-5: tests/explainers/test_attention.py.
        the authors' maps on timm's model, to 1e-5: tests/peers/test_timm.py.
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
        maps.append(layout.map_of(chain(weighted, start_layer)))
    return torch.stack(maps, 1)


@explainer("generic_attention", family="attention", signed=False, needs={"attention"}, paper="chefer2021generic")
def generic_attention(model: Classifier, images: Tensor, targets: Targets, *, start_layer: int = 0) -> Tensor:
    """Attention weighted by its own gradient, followed through the blocks (Chefer, Gur and Wolf's generic method).

    As `transformer_lrp` with the attention itself in the place of its relevance, so that no rules are needed. A head that
    passes much on without a slope of its own counts for nothing.

    Formula:
        C[cls], with C = Ā_last ··· Ā_start and Ā_b = I + mean over heads of (G_b ⊙ A_b)⁺

    Cost:
        1 forward pass, T ways back. All of them end at the first attention.

    Models:
        ViT. Attention must be over the whole image in every block.

    Args:
        model: a vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        start_layer: the first block that counts.

    Returns:
        Maps `[B, T, h, w]` on the token grid; models without a class token: the mean over the tokens they pool.

    Checked:
        the authors' formula in float64, to 1e-6: tests/explainers/test_attention.py.
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
        maps.append(layout.map_of(chain(weighted, start_layer)))
    return torch.stack(maps, 1)


def plus_identity(attention: Tensor) -> Tensor:
    """`I + A` of `[B, N, N]`: what a block's residual adds."""
    return attention + torch.eye(attention.shape[-1], device=attention.device, dtype=torch.float32)


def chain(matrices: Sequence[Tensor], start_layer: int) -> Tensor:
    """`C = A_last ··· A_start`."""
    product, *following = matrices[check_start(start_layer, len(matrices)) :]
    for matrix in following:
        product = matrix @ product
    return product


def check_start(start_layer: Any, blocks: int) -> int:
    """`start_layer`, which must count one of the model's blocks from 0."""
    return _position("start_layer", start_layer, 0, blocks - 1)


def _of_either_end(name: str, value: Any, items: Sequence[Any] | Tensor) -> int:
    """`value`, which must count one of the items from 0 or, if negative, from the end."""
    return _position(name, value, -len(items), len(items) - 1)


def _position(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral) or not low <= int(value) <= high:
        raise InputError(f"{name} must lie in {low}..{high} for this model, got {value!r}.")
    return int(value)


def _fusion(head_fusion: str) -> Callable[[Tensor], Tensor]:
    check_choice("head_fusion", head_fusion, list(_FUSIONS))
    return _FUSIONS[head_fusion]


def _mean_positive(weighted: Tensor) -> Tensor:
    """`I + mean over heads of the positive part`, `[B, N, N]`."""
    return plus_identity(weighted.clamp(min=0).mean(1))


def _without_lowest(attention: Tensor, ratio: float, kept: Tensor) -> Tensor:
    """`[B, N, N]` with the lowest share of each matrix set to 0, but for what the tokens `kept` pay to themselves."""
    flat = attention.flatten(1)
    lowest = flat.topk(int(flat.shape[1] * ratio), largest=False).indices
    left = flat.scatter(1, lowest, 0.0).view_as(attention)
    left[:, kept, kept] = attention[:, kept, kept]
    return left


def _fused_attention(
    model: Classifier, images: Tensor, fuse: Callable[[Tensor], Tensor]
) -> tuple[list[Tensor], TokenLayout]:
    """Attention of every block with its heads fused, `[B, N, N]` each, and the layout of the tokens.

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
        torch.cat([fuse(per_head(a.detach(), n)) for a, n in zip(block, counts, strict=True)]) for block in blocks
    ], layout


def _for_each_target(maps: Tensor, targets: Targets) -> Tensor:
    return maps[:, None].expand(-1, targets.count, -1, -1)
