"""One forward pass under a preset, and the ways back through it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from heatproof.errors import UnsupportedModelError
from heatproof.relevance.capture import Capture
from heatproof.relevance.mode import Preset, RelevanceMode

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ForwardPass:
    """A model's answer to `images` `[B, C, H, W]`, kept so that relevance can go back.

    `logits` `[B, K]` and the tensors of `capture` belong to one autograd graph, which lives as long as this object.
    """

    images: Tensor
    logits: Tensor
    mode: RelevanceMode

    @property
    def capture(self) -> Capture:
        """Attention probabilities, token grid and feature maps that the pass showed."""
        return self.mode.capture

    def per_unit(
        self, score: Tensor, tensors: Sequence[Tensor], *, phase: Literal["relevance", "gradient"] = "relevance"
    ) -> list[Tensor]:
        """`c = R / x` of each tensor for the score `[B]` (or its gradient, in the gradient phase).

        Raises:
            UnsupportedOperationError: relevance met an operation without a rule (strict).
            UnsupportedModelError: a tensor has no influence on the score.
        """
        self.mode.phase.name = phase
        with torch.inference_mode(False):
            start = torch.ones_like(score)
            if phase == "relevance" and self.mode.preset.start == "one":
                start = torch.where(score == 0, torch.nan, 1 / score.detach())
            found = torch.autograd.grad(score, list(tensors), start, retain_graph=True, allow_unused=True)
        if any(c is None for c in found):
            raise UnsupportedModelError(
                "The target does not depend on what is to be explained: part of the model is detached or runs under no_grad."
            )
        return list(found)

    def relevance(self, score: Tensor) -> Tensor:
        """Relevance of each input value for the score `[B]`: `[B, C, H, W]`."""
        return self.images.detach() * self.per_unit(score, [self.images])[0]


def run(
    model: Model, images: Tensor, preset: Preset, *, both: bool = False, strict: bool = True, gradients: bool = True
) -> ForwardPass:
    """Run `model` (images -> logits) once under the rules of `preset`.

    Args:
        model: a module, or a callable with the module in its attribute `module`.
        images: `[B, C, H, W]`.
        preset: which operation gets which rule.
        both: keep the ordinary gradient beside the relevance, for methods that combine them.
        strict: an operation without a rule is an error as soon as relevance reaches it.
        gradients: False runs the model without any way back, for what is only read off.

    Example:
        >>> from heatproof.relevance import presets
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
        >>> passed = run(net, torch.rand(1, 1, 2, 2), presets.lrp_z())
        >>> relevance = passed.relevance(passed.logits[:, 0])
        >>> torch.allclose(relevance.sum(), passed.logits[0, 0])  # without biases nothing is absorbed
        True
    """
    module = model if isinstance(model, nn.Module) else getattr(model, "module", None)
    if module is None:
        raise TypeError("run needs a torch module, or a callable with the module in its attribute 'module'")
    with torch.inference_mode(False), torch.set_grad_enabled(gradients):
        leaf = images.detach().clone().requires_grad_(gradients)
        mode = RelevanceMode(module, preset, leaf, both=both, strict=strict)
        entrance = leaf * 1  # a leaf could not be written into by the model
        with mode:
            logits = model(entrance)
    return ForwardPass(leaf, logits, mode)
