"""Maps from the gradients of attention probabilities. For vision transformers."""

import torch
from torch import Tensor

from heatproof.checks import check_count
from heatproof.explainers.attention import chain, check_start, plus_identity
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.relevance import presets, run
from heatproof.relevance.tokens import attention_matrices, block_inputs, per_head, token_layout


@explainer("attention_gradcam", family="attention", signed=False, needs={"attention"}, paper="chefer2021transformer")
def attention_gradcam(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """Grad-CAM on the last attention: the class token's attention, each head weighted by its mean gradient.

    `(mean over heads of w_h A_h)⁺` with `w_h` the mean gradient, over the image tokens, of what the class token pays them:
    the baseline of Chefer, Gur and Wolf. It sees the last block only, and where all heads speak against the target the map
    is 0 everywhere. One forward pass; each target one way back to the last attention.

    Returns:
        Maps `[B, T, h, w]` on the token grid; models without a class token: the mean over the tokens they pool.
    """
    passed = run(model, images, presets.NOTHING)
    last_attention = attention_matrices(passed)[-1]
    attention = per_head(last_attention.detach(), len(images))
    maps = []
    for score, last in targets.in_turn(passed.logits):
        (found,) = passed.per_unit(score, [last_attention], phase="gradient", last=last)
        gradient = per_head(found, len(images))
        layout = token_layout(passed, gradient)
        weights = gradient[:, :, layout.pooled, layout.prefix :].mean((2, 3), keepdim=True)
        maps.append(layout.map_of((weights * attention).mean(1)).clamp(min=0))
    return torch.stack(maps, 1)


@explainer("attcat", family="attention", signed=True, needs={"attention"}, paper="qiang2022attcat")
def attcat(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """AttCAT: what each token means for the score, times the attention paid to it, summed over the blocks.

    `Σ_b ā_b ⊙ Σ_features h_b ⊙ ∂score/∂h_b` with the tokens h_b that come into block b and ā_b the attention that each
    receives, averaged over heads and over the tokens that pay it (the authors' code). Through h it follows the skip
    connections, which attention alone leaves out; but a gradient through a layer norm has no part along the norm's input, so
    where the head reads a class token the last block adds nothing, and with one block the map is 0. One forward pass; each
    target one way back.

    Returns:
        Maps `[B, T, h, w]` on the token grid.

    Raises:
        UnsupportedModelError: the blocks do not begin with a layer norm, or the model writes over their input.
    """
    passed = run(model, images, presets.NOTHING)
    matrices = attention_matrices(passed)
    tokens = block_inputs(passed)
    received = [per_head(a.detach(), len(images)).mean((1, 2)) for a in matrices]
    maps = []
    for score, last in targets.in_turn(passed.logits):
        *slopes, gradient = passed.per_unit(score, [*tokens, matrices[-1]], phase="gradient", last=last)
        layout = token_layout(passed, per_head(gradient, len(images)))
        if (layout.pooled < layout.prefix).all():
            slopes[-1] = torch.zeros_like(slopes[-1])  # of image tokens: no more than the norm's epsilon
        blocks = [a * (g * h.detach()).sum(-1) for a, g, h in zip(received, slopes, tokens, strict=True)]
        maps.append(layout.to_grid(torch.stack(blocks).sum(0)))
    return torch.stack(maps, 1)


@explainer("transition_attention", family="attention", signed=False, needs={"attention"}, paper="yuan2021explaining")
def transition_attention(
    model: Classifier, images: Tensor, targets: Targets, *, start_layer: int = 0, steps: int = 20
) -> Tensor:
    """Transition attention maps: attention as a Markov chain, weighted by integrated gradients of the last attention.

    From the class token's row `s = Ā_last` of the attention averaged over heads, each block before it makes `s ← s + s Ā_b`.
    The map is `s ⊙ mean over heads of (1/steps Σ_α ∂score(αx)/∂A_last)⁺`, α evenly from 0 to 1 with both ends. Only the last
    attention knows the target: the chain below it is the same for all. 1 + steps forward passes; each target as many ways
    back to the last attention.

    Args:
        model: any vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        start_layer: the first block that counts.
        steps: points between the image of zeros, in model-input units, and the image.

    Returns:
        Maps `[B, T, h, w]` on the token grid; models without a class token: the mean over the tokens they pool.
    """
    check_count("steps", steps)
    passed = run(model, images, presets.NOTHING)
    matrices = attention_matrices(passed)
    (found,) = passed.per_unit(passed.logits.sum(1), matrices[-1:], phase="gradient", last=True)
    layout = token_layout(passed, per_head(found, len(images)))
    *before, states = [per_head(a.detach(), len(images)).mean(1) for a in matrices]
    states = states[:, layout.pooled]
    for attention in reversed(before[check_start(start_layer, len(matrices)) :]):
        states = states + states @ attention
    feedback = _integrated_feedback(model, images, targets, layout.pooled, steps)
    return torch.stack([layout.to_grid((states * f).mean(1)) for f in feedback.unbind(1)], 1)


@explainer("bidirectional_transformer", family="attention", signed=False, needs={"attention"}, paper="chen2023beyond")
def bidirectional_transformer(
    model: Classifier, images: Tensor, targets: Targets, *, start_layer: int = 0, steps: int = 20
) -> Tensor:
    """Beyond Intuition, head-wise: heads weighted by what they are worth, times integrated gradients of the last attention.

    Perception: in each block `Ā = Σ_h I_h A_h`, I_h the mean of `|A_hᵀ ∂score/∂A_h|` over all its entries, as a share of the
    sum over heads; `P` is the product of the `I + Ā`. Feedback: `F`, the mean over heads of
    `(1/steps Σ_α ∂score(αx)/∂A_last)⁺`, α evenly from 0 to 1 with both ends. The map is the class token's row of `P ⊙ F`.
    What the values and the other layers do to a token is not in it. 1 + steps forward passes; each target as many ways back.

    Args:
        model: any vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        start_layer: the first block that counts (3 of 0..11 in the authors' code).
        steps: points between the image of zeros, in model-input units, and the image.

    Returns:
        Maps `[B, T, h, w]` on the token grid; models without a class token: the mean over the tokens they pool. NaN for an
        image on whose attention the score does not depend in some block.
    """
    check_count("steps", steps)
    passed = run(model, images, presets.NOTHING)
    matrices = attention_matrices(passed)
    perceived = []
    for score, last in targets.in_turn(passed.logits):
        gradients = [per_head(g, len(images)) for g in passed.per_unit(score, matrices, phase="gradient", last=last)]
        layout = token_layout(passed, gradients[-1])
        blocks = [_by_worth(per_head(a.detach(), len(images)), g) for a, g in zip(matrices, gradients, strict=True)]
        perceived.append(chain([plus_identity(a) for a in blocks], start_layer)[:, layout.pooled])
    feedback = _integrated_feedback(model, images, targets, layout.pooled, steps)
    return torch.stack([layout.to_grid((p * f).mean(1)) for p, f in zip(perceived, feedback.unbind(1), strict=True)], 1)


def _by_worth(attention: Tensor, gradient: Tensor) -> Tensor:
    """Heads `[B, heads, N, N]` summed with weights: the mean size of `Aᵀ G`, as a share of that of all heads."""
    worth = (attention.mT @ gradient).abs().mean((2, 3))
    shares = worth / worth.sum(1, keepdim=True)
    return torch.einsum("bh,bhnm->bnm", shares, attention)


def _integrated_feedback(model: Classifier, images: Tensor, targets: Targets, rows: Tensor, steps: int) -> Tensor:
    """The last attention's gradient, averaged on the way from zeros to the image: its positive part, mean over heads.

    Rows of the tokens `rows` `[P]` only: `[B, T, P, N]`.
    """
    total = torch.zeros((), device=images.device)
    for share in torch.linspace(0, 1, steps).tolist():
        passed = run(model, images * share, presets.NOTHING)
        last_attention = attention_matrices(passed)[-1]
        ways = (
            passed.per_unit(score, [last_attention], phase="gradient", last=last)[0]
            for score, last in targets.in_turn(passed.logits)
        )
        total = total + torch.stack([per_head(gradient, len(images))[:, :, rows] for gradient in ways], 1)
    return (total / steps).clamp(min=0).mean(2)
