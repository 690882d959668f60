"""One forward pass under a preset, and the ways back through it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heatproof.errors import InputError, UnsupportedModelError
from heatproof.relevance import gaps
from heatproof.relevance.capture import Capture
from heatproof.relevance.mode import Preset, RelevanceMode
from heatproof.relevance.routing import Way
from heatproof.relevance.shares import operation_rule_name
from heatproof.relevance.supported import check_supported
from heatproof.tracing import apart

Model = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Met:
    """One kind of operation that a forward pass met: its name, the rule that it has, and how often it ran."""

    operation: str
    rule: str
    count: int


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

    @property
    def operations(self) -> list[Met]:
        """The operations on what depends on the image, the most frequent first.

        >>> from heatproof.relevance import presets
        >>> passed = run(nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.ReLU()), torch.rand(1, 1, 2, 2), presets.lrp_z())
        >>> [(met.operation, met.rule, met.count) for met in passed.operations]
        [('flatten', 'ordinary gradient', 1), ('linear', 'split_evenly', 1), ('relu', 'ordinary gradient', 1)]
        """
        rules = self.mode.preset.rules
        return [Met(name, operation_rule_name(rules.get(name)), count) for name, count in self.mode.ran.most_common()]

    def per_unit(
        self, score: Tensor, tensors: Sequence[Tensor], *, phase: Way = "relevance", last: bool = False
    ) -> list[Tensor]:
        """`c = R / x` of each tensor for the score `[B]` (or its gradient, in the gradient phase).

        After the `last` way back nothing more can be asked: what the pass kept is freed as soon as it is done with, which
        saves time, too.

        Raises:
            InputError: the last way back was already taken.
            UnsupportedOperationError: relevance met an operation without a rule (strict).
            UnsupportedModelError: a tensor has no influence on the score.
        """
        found = self._way_back(score, tensors, phase, last)
        if any(c is None for c in found):
            raise _without_influence()
        return [c for c in found if c is not None]

    def relevance(self, score: Tensor, *, last: bool = False) -> Tensor:
        """Relevance of each input value for the score `[B]`: `[B, C, H, W]`; `last` as in `per_unit`."""
        if self.mode.trail is None or not self.mode.preset.first_rules:
            return self.images.detach() * self.per_unit(score, [self.images], last=last)[0]
        c, direct = self._way_back(score, [self.images, self.mode.trail.direct], "relevance", last)
        if direct is None:
            raise UnsupportedModelError(
                f"{self.mode.preset.name} has a rule of its own for the first layers, and none was found: a dense layer or "
                "convolution whose input is the image, moved or rescaled at most. Use lrp_zplus or lrp_epsilon."
            )
        return direct if c is None else direct + self.images.detach() * c

    def _way_back(self, score: Tensor, tensors: Sequence[Tensor], phase: Way, last: bool) -> Sequence[Tensor | None]:
        if self.mode.phase.last:
            raise InputError(
                "This forward pass was freed with its last way back: run the model again, or leave out last."
            )
        self.mode.phase.name, self.mode.phase.last = phase, last
        from_one = phase == "relevance" and self.mode.preset.start == "one"
        if score.grad_fn is None:
            raise _without_influence()
        with apart(), torch.inference_mode(False):
            start = torch.where(score == 0, 0.0, 1 / score.detach()) if from_one else torch.ones_like(score)
            found = torch.autograd.grad(score, list(tensors), start, retain_graph=not last, allow_unused=True)
        gaps.report(self.mode.met)
        undefined = score == 0
        if not from_one or not undefined.any():
            return found
        return [None if c is None else _undefined_at(undefined, c) for c in found]


def _without_influence() -> UnsupportedModelError:
    return UnsupportedModelError(
        "The target does not depend on what is to be explained: part of the model is detached, runs under no_grad, goes "
        "through integers (argmax) or is constant. Take that out, or use a method that only runs the model: lime."
    )


def _undefined_at(rows: Tensor, c: Tensor) -> Tensor:
    """`c` with NaN for the samples at `rows` (bool `[B]`); its first axis may fold the batch with heads."""
    of_each = rows.repeat_interleave(len(c) // len(rows))
    return c.masked_fill(of_each.view(-1, *[1] * (c.ndim - 1)), torch.nan)


def run(
    model: Model,
    images: Tensor,
    preset: Preset,
    *,
    both: bool = False,
    strict: bool = True,
    gradients: bool = True,
    engine: type[RelevanceMode] = RelevanceMode,
) -> ForwardPass:
    """Run `model` (images -> logits) once under the rules of `preset`.

    Args:
        model: a module, or a callable with the module in its attribute `module`.
        images: `[B, C, H, W]`.
        preset: which operation gets which rule.
        both: keep the ordinary gradient beside the relevance, for methods that combine them.
        strict: an operation without a rule is an error as soon as relevance reaches it.
        gradients: False runs the model without any way back, for what is only read off.
        engine: the mode, or a kind of it that watches (see `audit`).

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
    check_supported(module)
    with apart(), torch.inference_mode(False), torch.set_grad_enabled(gradients):
        leaf = images.detach().clone().requires_grad_(gradients)
        mode = engine(module, preset, leaf, both=both, strict=strict)
        entrance = leaf * 1  # a leaf could not be written into by the model
        mode.begin(entrance)
        with mode.keeper.for_gradients(), mode:
            logits = model(entrance)
        mode.finish(logits)
    return ForwardPass(leaf, logits, mode)
