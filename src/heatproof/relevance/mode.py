"""Run any torch model under relevance rules.

What flows back is `c = R / x`, relevance per unit of activation, so every linear operation is right with its ordinary
gradient, and the relevance of any tensor is `x * c`.
"""

import weakref
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from heatproof.errors import InputError
from heatproof.relevance import routing
from heatproof.relevance.capture import Capture
from heatproof.relevance.first_layer import ImageTrail, ImageView
from heatproof.relevance.layers import Layer
from heatproof.relevance.linear import AnyRule, FirstRule, LinearRule
from heatproof.relevance.linearity import nonlinear_nodes
from heatproof.tracing import Operation, Tracer, live_tensors, map_tensors

Start = Literal["logit", "one"]


@dataclass
class Call:
    """One operation about to run: what a rule sees."""

    operation: Operation
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    mode: "RelevanceMode"

    def run(self, *args: Any) -> Any:
        """The operation's value, never in place; with its own arguments where no others are given."""
        return self.operation.pure(*(args or self.args), **self.kwargs)

    def scale(self, tensor: Tensor, factor: Tensor | float) -> Tensor:
        """`tensor`, whose relevance per unit of activation is multiplied by `factor` on the way back."""
        return routing.scale(tensor, factor, self.mode.phase)

    def route(self, inputs: Sequence[Tensor], backward: Callable[[Tensor, Tensor], Sequence[Tensor | None]]) -> Tensor:
        """The operation's value, whose relevance goes back to `inputs` as `backward(c, value)` says."""
        with torch.set_grad_enabled(self.mode.both):  # its own gradient is recorded only where it will be asked for
            value = self.run()
        kept = self.mode.keep(value)
        return routing.route(value, inputs, lambda c: backward(c, kept), self.mode.phase)

    def keep(self, tensor: Tensor) -> Tensor:
        """See `RelevanceMode.keep`."""
        return self.mode.keep(tensor)


Rule = Callable[[Call], Any]


@dataclass(frozen=True)
class Preset:
    """Rules by operation name; an operation without one must be linear. `start` is R at the target: its logit, or 1.

    Weighted layers (dense layers, convolutions) can have another rule by their place. `modules` names rules for layers by
    the path of their module, as patterns of `fnmatch`, the first match wins; `first` is the rule of layers that see the
    image itself, see `first_layer`, `last` that of layers which no other weighted layer follows.
    """

    name: str
    rules: Mapping[str, Rule] = field(default_factory=dict)
    start: Start = "logit"
    first: AnyRule | None = None
    last: LinearRule | None = None
    modules: Mapping[str, AnyRule] = field(default_factory=dict)

    @property
    def first_rules(self) -> list[FirstRule]:
        """The rules that hand relevance to the image directly."""
        return [rule for rule in (self.first, *self.modules.values()) if isinstance(rule, FirstRule)]

    def limits(self) -> tuple[Tensor, ...]:
        """The box of the image that the first layers' rule looks at, or nothing.

        Raises:
            InputError: two rules have boxes of their own.
        """
        boxes = [rule.limits for rule in self.first_rules if rule.limits]
        if len(boxes) > 1:
            raise InputError(f"The preset {self.name!r} has {len(boxes)} rules with a box for the image: use one.")
        return boxes[0] if boxes else ()

    def rule_for(self, layer: Layer, usual: LinearRule) -> AnyRule:
        """The rule of a weighted layer by its place, or the `usual` one of its kind."""
        for pattern, rule in self.modules.items():
            if fnmatchcase(layer.path, pattern):
                return rule
        if layer.view is not None and self.first is not None:
            return self.first
        return self.last if layer.last and self.last is not None else usual


class RelevanceMode(Tracer):
    """Replaces operations by their rules while it is entered, and captures what explainers read.

    `both` keeps the ordinary gradient beside the relevance; `phase` then chooses between them on the way back.
    """

    def __init__(
        self, module: nn.Module, preset: Preset, images: Tensor, *, both: bool = False, strict: bool = True
    ) -> None:
        super().__init__(module)
        self.preset, self.both, self.strict = preset, both, strict
        self.phase = routing.Phase()
        self.capture = Capture(images.shape)
        self.gaps: list[str] = []
        follows_image = preset.first is not None or preset.first_rules
        self.trail = ImageTrail(images, preset.limits()) if follows_image else None
        self._layers = WeakTensorKeyDictionary()
        self._gates: list[Tensor] = []
        self._kept: defaultdict[int, list[weakref.ref[Tensor]]] = defaultdict(list)

    def operation(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation under its rule, in the model's stead."""
        live = list(live_tensors((args, kwargs)))
        read = [layer for tensor in live if (layer := self.made_by(tensor)) is not None]
        if not live:
            result = operation.function(*args, **kwargs)
        elif operation.name == "setitem":
            result = self._set_item(operation, args)
        else:
            args, kwargs, inplace = operation.split_flag(args, kwargs)
            note_view = self.trail.follow(operation, args, kwargs) if self.trail is not None else None
            result = self._value(Call(operation, args, kwargs, self))
            if inplace:
                result = self._write(args[0], result)
            if note_view is not None:
                note_view(result)
        if next(live_tensors(result), None) is not None:  # a question about its shape is no use
            for layer in read:
                layer.uses += 1
        self.capture.see(operation.name, args, result)
        return result

    def _value(self, call: Call) -> Any:
        rule = self.preset.rules.get(call.operation.name)
        if rule is not None:
            return rule(call)
        before = {tensor.grad_fn for tensor in live_tensors((call.args, call.kwargs))}
        result = call.run()
        unknown = nonlinear_nodes(live_tensors(result), before) if self.preset.rules else []
        if not unknown:
            return result
        return self.refuse(call, result, f"runs {', '.join(sorted(set(unknown)))}, which is not linear in the image,")

    def refuse(self, call: Call, result: Any, why: str) -> Any:
        """`result`, with an error for relevance that would go back through it (a note in `gaps` when not strict)."""
        message = (
            f"The operation {call.operation.name!r} in module {self.module_path()} {why} and the preset "
            f"{self.preset.name!r} has no rule for it. Use another method, or pass strict=False to send its ordinary "
            "gradient back, at the price of conservation."
        )
        self.gaps.append(message)
        if not self.strict:
            return result
        return map_tensors(lambda t: routing.refuse(t, message, self.phase) if t.requires_grad else t, result)

    def through(self, layer: Layer, back: LinearRule, *more: Tensor) -> Tensor:
        """The value of a linear layer; relevance goes back by `back` to its targets and to `more`."""
        kept = self.keep(layer.output)
        targets = [*layer.targets, *more]
        rest = [None] * (len(targets) - len(layer.inputs))
        return routing.route(
            layer.output,
            targets,
            lambda c: back(layer, c, kept),
            self.phase,
            gradient=lambda c: [*layer.transposed(c), *rest],
        )

    def view_of(self, tensor: Tensor) -> ImageView | None:
        """What `tensor` shows of the image, where the preset has a rule of its own for first layers."""
        return None if self.trail is None else self.trail.view_of(tensor)

    def remember(self, value: Tensor, layer: Layer) -> Tensor:
        """`value`, known from now on as made by the weighted `layer`."""
        self._layers[value] = layer
        value.grad_fn.layer = layer  # type: ignore[union-attr]
        return value

    def merged(self, value: Tensor, layer: Layer) -> Tensor:
        """`value`, made by a norm that can be seen as part of `layer`, which is the norm's input with the norm applied."""
        value.grad_fn.merged = layer  # type: ignore[union-attr]
        return value

    def mark_last(self, logits: Tensor) -> None:
        """Tell the weighted layers which no other weighted layer follows on the way to the logits."""
        seen, stack = set(), [logits.grad_fn]
        while stack:
            node = stack.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if (layer := getattr(node, "layer", None)) is not None:
                layer.last = True
            elif (layer := getattr(node, "merged", None)) is not None:
                layer.last = True
                stack.append(node.next_functions[0][0])  # the norm's input
            else:
                stack.extend(before for before, _ in node.next_functions)

    def made_by(self, tensor: Tensor) -> Layer | None:
        """The layer that `tensor` was remembered for."""
        layer: Layer | None = self._layers.get(tensor)
        return layer

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor's present value for the way back, safe from later writes in place."""
        alias = tensor.detach()
        self._kept[alias.untyped_storage().data_ptr()].append(weakref.ref(alias))
        return alias

    def _save_kept(self, target: Tensor) -> None:
        """Before a write into `target`: give what was kept of its storage a storage of its own."""
        for reference in self._kept.pop(target.untyped_storage().data_ptr(), []):
            alias = reference()
            if alias is not None:
                alias.data = alias.data.clone()

    def _write(self, target: Tensor, value: Tensor) -> Tensor:
        self._save_kept(target)
        return target.copy_(value)

    def _set_item(self, operation: Operation, args: tuple[Any, ...]) -> Any:
        self._save_kept(args[0])
        return operation.function(*args)

    def mark_gate(self, gate: Tensor) -> None:
        """Remember `gate` (kept, so that its storage stays its own) as a factor between 0 and 1."""
        self._gates.append(gate.detach())

    def is_gate(self, tensor: Tensor) -> bool:
        """Whether `tensor` is a marked gate or a view of one."""
        place = tensor.untyped_storage().data_ptr()
        return any(gate.untyped_storage().data_ptr() == place for gate in self._gates)


def unsupported(call: Call) -> Any:
    """A rule for operations that a preset does not cover: relevance through them is an error."""
    return call.mode.refuse(call, call.run(), "is not covered by this preset's rules")
