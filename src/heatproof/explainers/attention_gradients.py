"""Maps from the gradients of attention probabilities. For vision transformers."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from heatproof.checks import check_choice, check_count
from heatproof.errors import UnsupportedModelError
from heatproof.explainers.attention import chain, check_start, plus_identity
from heatproof.explainers.registry import explainer
from heatproof.models import Classifier, Targets
from heatproof.relevance import presets, run
from heatproof.relevance.mode import RelevanceMode
from heatproof.relevance.tokens import TokenLayout, attention_matrices, block_inputs, per_head, token_layout
from heatproof.tracing import Operation, map_tensors

Perception = Literal["heads", "tokens"]

_REARRANGING = frozenset(
    """
    transpose permute movedim moveaxis reshape view flatten unflatten squeeze unsqueeze contiguous clone dropout to T mT
    """.split()
)


@explainer("attention_gradcam", family="attention", signed=False, needs={"attention"}, paper="chefer2021transformer")
def attention_gradcam(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """Grad-CAM on the last attention: the class token's attention, each head weighted by its mean gradient.

    The baseline of Chefer, Gur and Wolf. It sees the last block only, where tokens no longer stand for their own patch
    alone, and where all heads speak against the target the map is 0 everywhere.

    Formula:
        (mean over heads of w_h A_h[cls])⁺, A of the last block, w_h the mean of G_h[cls] over the image tokens

    Cost:
        1 forward pass, T ways back. All of them end at the last attention.

    Models:
        ViT. Attention must be over the whole image in every block.

    Returns:
        Maps `[B, T, h, w]` on the token grid; models without a class token: the mean over the tokens they pool.

    Checked:
        the authors' formula in float64, to 1e-5: tests/explainers/test_attention_gradients.py.
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


@explainer("attcat", family="attention", signed=True, needs={"attention"}, paper="qiang2022attcat", linear=True)
def attcat(model: Classifier, images: Tensor, targets: Targets) -> Tensor:
    """AttCAT: what each token means for the score, times the attention paid to it, summed over the blocks.

    Through the tokens it follows the skip connections, which attention alone leaves out. But a gradient through a layer norm
    has no part along the norm's input, so where the head reads a class token the last block adds nothing, and with one block
    the map is 0.

    Formula:
        Σ_b ā_b ⊙ Σ_features h_b ⊙ ∂f/∂h_b
        h_b: the tokens that come into block b
        ā_b: the attention that each receives, averaged over heads and over the tokens that pay it (as in the authors' code)

    Cost:
        1 forward pass, T ways back. All of them end at the first block.

    Models:
        ViT. Each block must begin with a layer norm and must not write over its input.

    Returns:
        Maps `[B, T, h, w]` on the token grid.

    Checked:
        the authors' formula in float64, to 1e-5: tests/explainers/test_attention_gradients.py.
        hooks on the modules of timm's models, to 1e-3: tests/peers/test_attention_family.py.

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

    Only the last attention knows the target: the chain below it is the same for all, and what values and other layers do to
    a token is not in it.

    Formula:
        s ⊙ (mean over heads of (1/steps Σ_α ∂f(αx)/∂A_last)⁺)[cls], α evenly from 0 to 1 with both ends
        s: from Ā_last[cls], each block b before it makes s ← s + s Ā_b, Ā_b the mean over heads of A_b

    Cost:
        1 + steps forward passes, 1 + steps · T ways back. All of them end at the last attention.

    Models:
        ViT. Attention must be over the whole image in every block.

    Args:
        model: a vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        start_layer: the first block that counts.
        steps: points between the image of zeros, in model-input units, and the image.

    Returns:
        Maps `[B, T, h, w]` on the token grid; models without a class token: the mean over the tokens they pool.

    Checked:
        the authors' formula in float64, to 1e-5: tests/explainers/test_attention_gradients.py.
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
    model: Classifier,
    images: Tensor,
    targets: Targets,
    *,
    start_layer: int = 0,
    steps: int = 20,
    perception: Perception = "heads",
) -> Tensor:
    """Beyond Intuition: attention weighted by head or by token, times integrated gradients of the last attention.

    It tells which tokens were paid attention to by the heads that matter for the score (head-wise), or brought much into the
    block that attended to them (token-wise, the same for every target up to the last attention). What the other layers do to
    a token is not in it.

    Formula:
        (P ⊙ F)[cls], P the product of the I + Ā over blocks (perception)
        head-wise: Ā = Σ_h I_h A_h, I_h the mean of |A_hᵀ G_h| over all its entries, as a share of the sum over heads
        token-wise: Ā = mean over heads of A_h · diag(‖v_j W‖ / ‖z_j‖), z_j the tokens that come into the block, v_j their
        values, all heads together, W the weights of the dense layer behind the attention
        F = mean over heads of (1/steps Σ_α ∂f(αx)/∂A_last)⁺, α evenly from 0 to 1 with both ends (feedback)

    Cost:
        1 + steps forward passes, (1 + steps) · T ways back. Token-wise 1 + steps · T ways back.

    Models:
        ViT. Attention must be over the whole image in every block; token-wise, blocks must begin with a layer norm.

    Args:
        model: a vision transformer.
        images: `[B, C, H, W]`.
        targets: `[B, T]`.
        start_layer: the first block that counts (head-wise 3 of 0..11 in the authors' code, token-wise 5).
        steps: points between the image of zeros, in model-input units, and the image.
        perception: `heads`, the head-wise form, or `tokens`, the token-wise one.

    Returns:
        Maps `[B, T, h, w]` on the token grid; models without a class token: the mean over the tokens they pool. NaN for an
        image on whose attention the score does not depend in some block (head-wise).

    Checked:
        the authors' formula in float64, to 1e-5: tests/explainers/test_attention_gradients.py.
        the authors' token-wise formula in float64, to 1e-5: tests/explainers/test_token_perception.py.

    Raises:
        UnsupportedModelError: token-wise, the values do not go straight from the attention to a dense layer, the blocks do
            not begin with a layer norm, or the model writes over their input.
    """
    check_count("steps", steps)
    check_choice("perception", perception, get_args(Perception))
    perceive = _by_heads if perception == "heads" else _by_tokens
    perceived, layout = perceive(model, images, targets, start_layer)
    feedback = _integrated_feedback(model, images, targets, layout.pooled, steps)
    return torch.stack([layout.to_grid(found) for found in (perceived * feedback).mean(2).unbind(1)], 1)


def _by_heads(model: Classifier, images: Tensor, targets: Targets, start_layer: int) -> tuple[Tensor, TokenLayout]:
    """Attention through the blocks, heads weighted by their worth for each target: `[B, T, P, N]` of the pooled tokens."""
    passed = run(model, images, presets.NOTHING)
    matrices = attention_matrices(passed)
    perceived = []
    for score, last in targets.in_turn(passed.logits):
        gradients = [per_head(g, len(images)) for g in passed.per_unit(score, matrices, phase="gradient", last=last)]
        layout = token_layout(passed, gradients[-1])
        blocks = [_by_worth(per_head(a.detach(), len(images)), g) for a, g in zip(matrices, gradients, strict=True)]
        perceived.append(chain([plus_identity(a) for a in blocks], start_layer)[:, layout.pooled])
    return torch.stack(perceived, 1), layout


def _by_worth(attention: Tensor, gradient: Tensor) -> Tensor:
    """Heads `[B, heads, N, N]` summed with weights: the mean size of `Aᵀ G`, as a share of that of all heads."""
    worth = (attention.mT @ gradient).abs().mean((2, 3))
    shares = worth / worth.sum(1, keepdim=True)
    return torch.einsum("bh,bhnm->bnm", shares, attention)


def _by_tokens(model: Classifier, images: Tensor, _: Targets, start_layer: int) -> tuple[Tensor, TokenLayout]:
    """Attention through the blocks, tokens weighted by what they bring in: `[B, 1, P, N]` of the pooled tokens."""
    passed = run(model, images, presets.NOTHING, engine=_ProjectedValues)
    matrices = attention_matrices(passed)
    (found,) = passed.per_unit(passed.logits.sum(1), matrices[-1:], phase="gradient", last=True)
    layout = token_layout(passed, per_head(found, len(images)))
    tokens = [z.detach() for z in block_inputs(passed)]
    assert isinstance(passed.mode, _ProjectedValues)  # noqa: S101 the engine that was asked for
    weights = [v.norm(dim=2) / z.norm(dim=2) for v, z in zip(passed.mode.of_blocks(tokens), tokens, strict=True)]
    blocks = [per_head(a.detach(), len(images)).mean(1) * w[:, None] for a, w in zip(matrices, weights, strict=True)]
    return chain([plus_identity(a) for a in blocks], start_layer)[:, None, layout.pooled], layout


class _ProjectedValues(RelevanceMode):
    """Notes what the dense layer behind each attention, without its bias, would make of the values alone.

    What is done to the mixture of the values is done to the values, too: they are the mixture under the identity in place
    of the attention.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._found: list[Tensor | None] = []  # one for each attention, None before the dense layer
        self._mixture: Tensor | None = None  # where the model is with it, None when it is done
        self._values: Tensor | None = None  # what the values would be there

    def of_blocks(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """The projected values `[B, N, D]` of blocks into which `tokens` of that shape came.

        Raises:
            UnsupportedModelError: in a block, they are not what a dense layer makes of the attention's result, rearranged.
        """
        found = [v for v, z in zip(self._found, tokens, strict=True) if v is not None and v.shape == z.shape]
        if len(found) < len(tokens):
            raise UnsupportedModelError(
                "perception='tokens' follows the values from the attention to the dense layer behind it, and in this model "
                "something else is done to them in between. Use perception='heads'."
            )
        return found

    def operation(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As ever, and once more on the values where it works on their mixture."""
        attentions = len(self.capture.attention)
        result = super().operation(operation, args, kwargs)
        if len(self.capture.attention) > attentions:
            self._found.append(None)
            self._mixture = result
            self._values = self._again(operation, map_tensors(self._unmixed(), args), kwargs)
        elif isinstance(result, Tensor) and self._mixture is not None and args[0] is self._mixture:
            self._mixture = result
            if operation.name == "linear" and self._found[-1] is None:
                self._values = self._found[-1] = self._again(operation, (self._values, args[1]), {})
            elif operation.name in _REARRANGING:
                self._values = self._again(operation, (self._values, *args[1:]), kwargs)
                self._found[-1] = None if self._found[-1] is None else self._values
            else:
                self._mixture = None
        return result

    def _unmixed(self) -> Callable[[Tensor], Tensor]:
        """Puts the identity in the place of the attention, which has the first operand of its shape."""
        shape, waiting = self.capture.attention[-1].shape[-2:], iter((True,))

        def identity(operand: Tensor) -> Tensor:
            if operand.shape[-2:] != shape or not next(waiting, False):
                return operand
            return torch.eye(shape[0], dtype=operand.dtype, device=operand.device).expand_as(operand)

        return identity

    @staticmethod
    def _again(operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            return operation.pure(*args, **kwargs)  # type: ignore[no-any-return]


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
