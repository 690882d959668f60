"""Run any torch model under relevance rules.

What flows back is `c = R / x`, relevance per unit of activation, so every linear operation is right with its ordinary
gradient, and the relevance of any tensor is `x * c`.
"""

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.utils.weak import WeakTensorKeyDictionary

from heatproof.errors import InputError, UnsupportedModelError, near_names
from heatproof.relevance import gaps, routing
from heatproof.relevance.capture import Capture
from heatproof.relevance.first_layer import ImageTrail, ImageView
from heatproof.relevance.keeping import Keeper
from heatproof.relevance.layers import Layer
from heatproof.relevance.linear import AnyRule, FirstRule, LinearRule, is_pointwise
from heatproof.relevance.linearity import LINEAR_NODES, MOVING_NODES, nonlinear_nodes, reaches
from heatproof.relevance.marks import Marks
from heatproof.relevance.supported import RECOMPUTES, drops_at_random
from heatproof.tracing import Operation, Tracer, is_live, live_tensors, map_tensors

Start = Literal["logit", "one"]
KINDS = ("dense", "conv", "sums", "norm", "first", "last")  # of layers, for which a composite has rules

_DIFFERENTIATE = ("backward", "grad")
_LEAVE_TORCH = ("numpy", "array")
_REFUSED_WRITES = ("is being modified inplace", "used in an in-place operation")  # torch's own words
_SAVE_NO_INPUT = ("relu", "add", "sub")  # for their own gradient, so that they may work in place


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
        self.ran: Counter[str] = Counter()  # operations on what depends on the image
        self.gaps: list[str] = []  # operations without a rule that ran
        self._seen: set[Any] = set()  # autograd nodes of the operations so far
        self.met: dict[str, bool] = {}  # those that relevance went back through, and whether that was reported
        follows_image = preset.first is not None or preset.first_rules
        self.trail = ImageTrail(images, preset.limits()) if follows_image else None
        self._layers = WeakTensorKeyDictionary()  # by what they made
        self._weighted_paths: set[str] = set()
        self.marks = Marks()
        self.keeper = Keeper()

    def operation(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation under its rule, in the model's stead."""
        try:
            return self._followed(operation, args, kwargs)
        except RuntimeError as error:
            if not any(words in str(error) for words in _REFUSED_WRITES):
                raise
            raise UnsupportedModelError(
                f"The model writes in place into a part of a tensor ({operation.name!r} in module {self.module_path()}), "
                "which torch allows without gradients only: the part was made by chunk, split or unbind, or under "
                "no_grad. Write into a copy, part.clone(), or take the part by slicing: x[:, :n]."
            ) from error

    def _followed(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        live = list(live_tensors((args, kwargs)))
        self._check_followable(operation.name, live)
        if drops_at_random(operation.name, args, kwargs):
            raise UnsupportedModelError(
                f"The model drops values at random although it is in evaluation mode ({operation.name!r} in module "
                f"{self.module_path()}), so that no two answers are the same. Let that depend on the mode: "
                "F.dropout(x, p, self.training), scaled_dot_product_attention(..., dropout_p=p if self.training else 0.0)."
            )
        if any(tensor.grad_fn not in self._seen for tensor in live):
            followed = map_tensors(self._look_behind, (args, kwargs))
            live = list(live_tensors(followed))
            args, kwargs = followed if live else (args, kwargs)  # a graph that is not of the image goes on as it is
        read = [self._recalled(layer, tensor) for tensor in live if (layer := self._layers.get(tensor)) is not None]
        if live:
            self.ran[operation.name] += 1
        inplace = bool(args) and (operation.inplace or operation.name == "setitem")  # what is named is a new parameter
        if not live:
            if inplace:  # perhaps into what a live tensor shows, too
                self._before_write(args[0])
            result = operation.function(*args, **kwargs)
        elif operation.name == "setitem":
            self._before_write(args[0])
            result = operation.function(*args)
        else:
            args, kwargs, inplace = operation.split_flag(args, kwargs)
            note_view = self.trail.follow(operation, args, kwargs) if self.trail is not None else None
            result = self._replaced(Call(operation, args, kwargs, self), live, inplace)
            if note_view is not None:
                note_view(result)
        made = [tensor.grad_fn for tensor in live_tensors(result)] if live else []
        if inplace:  # into a view: what it is a view of has a new past, too
            made += [tensor.grad_fn for tensor in live_tensors([args[0], args[0]._base])]
        if made:  # a question about its shape is no use
            self._seen.update(made)
        changed = inplace or operation.name.endswith("_")  # into another shape
        same = any(result is tensor for tensor in live) and not changed
        if made and not same:  # handing it through is no use either
            for layer in read:
                layer.uses += 1
        self.capture.see(operation.name, args, kwargs, result)
        return result

    def _replaced(self, call: Call, live: Sequence[Tensor], inplace: bool) -> Any:
        """The operation's value under its rule, written into its first argument if it works in place."""
        name = call.operation.name
        if inplace and name in _SAVE_NO_INPUT and name not in self.preset.rules:
            self._before_write(call.args[0], relu=name == "relu")
            return call.args[0].relu_() if name == "relu" else call.operation.function(*call.args, **call.kwargs)
        result = self._value(call)
        self.marks.follow(name, call.args, live, result)
        return self._write(call.args[0], result) if inplace else result

    def _value(self, call: Call) -> Any:
        rule = self.preset.rules.get(call.operation.name)
        if rule is not None and torch.is_grad_enabled():  # else nothing goes back
            return rule(call)
        before = {tensor.grad_fn for tensor in live_tensors((call.args, call.kwargs))}
        result = call.run()
        sums_have_a_rule = "sum" in self.preset.rules  # a sum that hides in another operation would be left out
        allowed = MOVING_NODES if sums_have_a_rule else LINEAR_NODES
        unknown = nonlinear_nodes(live_tensors(result), before, allowed) if self.preset.rules else []
        if not unknown:
            return result
        what = "does more than move values" if sums_have_a_rule else "is not linear in the image"
        return self.refuse(call, result, f"runs {', '.join(sorted(set(unknown)))}, which {what},")

    def refuse(self, call: Call, result: Any, why: str) -> Any:
        """`result`, with an error for relevance that would go back through it (a note in `met` when not strict)."""
        met = self._note_gap(f"The operation {call.operation.name!r} in module {self.module_path()} {why}")
        return map_tensors(lambda t: routing.watch(t, met, self.phase) if t.requires_grad else t, result)

    def _check_followable(self, name: str, live: Sequence[Tensor]) -> None:
        if not self.keeper.is_asked():
            raise UnsupportedModelError(RECOMPUTES)
        if peek_interpreter_stack() is not None or name in _DIFFERENTIATE or (live and name in _LEAVE_TORCH):
            within = "differentiates, compiles or uses torch.func within its forward pass"
            raise UnsupportedModelError(
                f"The model {'leaves torch' if name in _LEAVE_TORCH else within} ({name!r} in module {self.module_path()}), "
                "where nothing can be followed. Write that part in torch operations, or use a method that only runs the "
                "model: lime."
            )

    def _look_behind(self, tensor: Tensor) -> Tensor:
        """`tensor`, noting what lies between it and the operations seen: functions that torch does not dispatch.

        It is a constant where it does not come from the image.
        """
        if not is_live(tensor) or tensor.grad_fn in self._seen:
            return tensor
        if not reaches(tensor, self._seen):
            return tensor.detach()
        hidden = sorted(set(nonlinear_nodes([tensor], self._seen)))
        self._seen.add(tensor.grad_fn)
        if "CheckpointFunctionBackward" in hidden:
            raise UnsupportedModelError(RECOMPUTES)
        if hidden and self.preset.rules:
            met = self._note_gap(
                f"The model ran {', '.join(hidden[:5])} out of sight, before module {self.module_path()} went on (a custom "
                "autograd.Function, a compiled or scripted function),"
            )
            phase = self.phase
            tensor.register_hook(lambda _: met() if phase.name == "relevance" else None)
        return tensor

    def begin(self, entrance: Tensor) -> None:
        """Before the forward pass, which gets `entrance`, the image."""
        self._seen.add(entrance.grad_fn)
        if self.trail is not None:
            self.trail.start(entrance)

    def finish(self, logits: Tensor) -> None:
        """After the forward pass, which gave `logits`."""
        self._look_behind(logits)
        self._seen.clear()
        self.check_patterns()
        if self.preset.last is not None:
            self.mark_last(logits)

    def _note_gap(self, what: str) -> Callable[[], None]:
        """What is to be called when relevance meets the gap."""
        gap = f"{what} and the preset {self.preset.name!r} has no rule for it."
        self.gaps.append(gap)
        return functools.partial(gaps.meet, gap, self.strict, self.met)  # without the mode, which owns the graph

    def through(self, layer: Layer, back: LinearRule, *more: Tensor) -> Tensor:
        """The value of a linear layer; relevance goes back by `back` to its targets and to `more`."""
        targets = [*layer.targets, *more]
        rest = [None] * (len(targets) - len(layer.inputs))
        value = routing.route(
            layer.z,
            targets,
            lambda c: back(layer, c, layer.z),
            self.phase,
            gradient=lambda c: [*layer.transposed(c), *rest],
        )
        layer.output, layer.pointwise, self._layers[value] = self.keep(layer.z), is_pointwise(back), layer
        return value

    def view_of(self, tensor: Tensor) -> ImageView | None:
        """What `tensor` shows of the image, where the preset has a rule of its own for first layers."""
        return None if self.trail is None else self.trail.view_of(tensor)

    def remember(self, value: Tensor, layer: Layer) -> Tensor:
        """`value`, known from now on as made by the weighted `layer`."""
        layer.weighted = True
        self._weighted_paths.add(layer.path)
        if self.preset.last is not None:
            value.grad_fn.layer = layer  # type: ignore[union-attr]
        return value

    def check_patterns(self) -> None:
        """Raise `InputError` where a pattern of the preset names no module that ran a weighted layer."""
        for pattern in self.preset.modules:
            if not any(fnmatchcase(path, pattern) for path in self._weighted_paths):
                raise InputError(
                    f"The preset {self.preset.name!r} has a rule for {pattern!r}, which is no kind of layer and matches no "
                    f"module with a dense layer or convolution. {near_names(pattern, {*KINDS, *self._weighted_paths})}"
                )

    def merged(self, value: Tensor, layer: Layer) -> Tensor:
        """`value`, made by a norm that can be seen as part of `layer`, which is the norm's input with the norm applied."""
        if self.preset.last is not None:
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

    def _recalled(self, layer: Layer, value: Tensor) -> Layer:
        """`layer`, which is about to be read, with z where it was forgotten."""
        if layer.output is None:
            layer.recall(self.keep(value))
        return layer

    def made_by(self, tensor: Tensor) -> Layer | None:
        """The weighted layer that `tensor` was remembered for."""
        layer: Layer | None = self._layers.get(tensor)
        return layer if layer is not None and layer.weighted else None

    def keep(self, tensor: Tensor) -> Tensor:
        """The tensor's present value for the way back, safe from later writes in place."""
        return self.keeper.keep(tensor)

    def _before_write(self, target: Tensor, *, relu: bool = False) -> None:
        """Nothing that is known of `target`'s values will be true any more.

        Except where they go through a ReLU before anything reads them: no relevance comes back to those that change.
        """
        layer = self._layers.get(target)
        may_follow = relu and layer is not None and layer.pointwise and not layer.uses
        self.keeper.before_write(target, spare=layer.output if may_follow else None)
        self.marks.set(target, None)
        self._layers.pop(target, None)

    def _write(self, target: Tensor, value: Tensor) -> Tensor:
        mark, layer = self.marks.of(value), self._layers.get(value)
        self._before_write(target)
        routing.write(target, value)
        self.marks.set(target, mark)
        self.keeper.move(value, target)
        if layer is not None:
            self._layers[target] = layer
        return target


def unsupported(call: Call) -> Any:
    """A rule for operations that a preset does not cover: relevance through them is an error."""
    return call.mode.refuse(call, call.run(), "is not covered by this preset's rules")
