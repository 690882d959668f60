"""Conservation, measured: what each operation does with the relevance that it is given.

Every operation of a model receives relevance, passes some on to its inputs, and lets constants (biases, shifts, position
embeddings, class tokens, masks) absorb their share. What is then missing or too much was lost or created there: a leak.

The audit reads all this off the nodes of the autograd graph on the way that relevance takes for an explanation, one
sample at a time. Nothing is put between the operations, and no tensor's layout has to be known.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from heatproof.errors import InputError, UnsupportedModelError
from heatproof.relevance import rules, shares
from heatproof.relevance.accounts import Account, Audit
from heatproof.relevance.backward import Model, run
from heatproof.relevance.constants import Edge, Names, Snapshot, base_of, edge_of, tensors_in, within_base
from heatproof.relevance.layers import Layer
from heatproof.relevance.linear import LinearRule
from heatproof.relevance.linearity import LINEAR_NODES, node_kind
from heatproof.relevance.mode import Preset, RelevanceMode
from heatproof.tracing import Operation, is_live, live_tensors


def audit(
    model: Model,
    images: Tensor,
    targets: Tensor | Sequence[int] | int | None,
    preset: Preset,
    *,
    strict: bool = True,
) -> Audit:
    """Run `model` on `images` and follow the relevance of `targets` through every operation.

    The way back is the one that explains, taken once for each sample. What a constant absorbs is computed apart from what
    goes to the inputs: from the operation run again with its inputs at zero, or by giving the layer's rule the bias as one
    more input. So `leak` is no mere remainder: it is 0 only where the three agree [bach2015pixelwise,
    montavon2019overview].

    Args:
        model: a module in evaluation mode, or a callable with the module in its attribute `module`.
        images: `[B, C, H, W]`.
        targets: the class of each image, `[B]` or one for all; None: what the model predicts.
        preset: which operation gets which rule.
        strict: an operation without a rule is an error; otherwise its ordinary gradient is taken, see `Audit.gaps`.

    Raises:
        InputError: a target is out of range, or there are not as many as images.
        UnsupportedOperationError: relevance met an operation without a rule (strict).
        UnsupportedModelError: the images have no influence on the target.

    Example:
        >>> from heatproof.relevance import presets
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(2, 1))
        >>> for parameter, value in zip(net.parameters(), ([[1.0, 3.0]], [0.5]), strict=True):
        ...     parameter.data = torch.tensor(value)
        >>> found = audit(net, torch.tensor([[[[2.0, 1.0]]]]), 0, presets.lrp_z())
        >>> found.start.item(), found.at_input.item(), found.absorbed_by()["1.bias"].item()
        (5.5, 5.0, 0.5)
        >>> found.leaks()
        []
    """
    passed = run(model, images, preset, strict=strict, engine=AuditMode)
    mode = passed.mode
    assert isinstance(mode, AuditMode)  # noqa: S101 what run was asked for
    score = passed.logits.gather(1, _targets(targets, passed.logits)[:, None])[:, 0]
    maps = []
    for sample in range(len(images)):
        mode.cursor.sample = sample
        maps.append(passed.relevance(score[sample : sample + 1])[sample])
    start = torch.ones_like(score) if preset.start == "one" else score
    undefined = (score == 0) & (preset.start == "one")
    start = start.detach().double().masked_fill(undefined, torch.nan).cpu()
    for account in mode.accounts:
        account.received[start.isnan()] = torch.nan
    return Audit(preset.name, torch.stack(maps).detach(), start, mode.accounts)


def _targets(targets: Tensor | Sequence[int] | int | None, logits: Tensor) -> Tensor:
    count, classes = logits.shape
    found = logits.argmax(1) if targets is None else torch.as_tensor(targets, device=logits.device)
    found = found.expand(count) if found.ndim == 0 else found
    if found.shape != (count,) or found.is_floating_point() or bool(((found < 0) | (found >= classes)).any()):
        raise InputError(
            f"targets must be {count} class numbers from 0 to {classes - 1}, one for each image, or a single one; "
            f"got {targets!r}."
        )
    return found.long()


@dataclass
class _Cursor:
    """The sample whose relevance is on its way now."""

    sample: int = 0


@dataclass
class _Frame:
    """An operation while it runs."""

    account: Account
    names: list[str] = field(default_factory=list)  # of constants in it
    layered: bool = False  # seen as a linear layer, whose bias is accounted for


@dataclass
class _Output:
    """What an operation made, the parts that constants have in it, and how relevance is shared with them."""

    value: Tensor
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    share: shares.Share = shares.by_value


class AuditMode(RelevanceMode):
    """The relevance engine, with an account of each operation.

    Each node of the graph that an operation made gets a hook, which notes what came and what went.
    """

    def __init__(
        self, module: nn.Module, preset: Preset, images: Tensor, *, both: bool = False, strict: bool = True
    ) -> None:
        super().__init__(module, preset, images, both=both, strict=strict)
        self.accounts: list[Account] = []
        self.cursor = _Cursor()
        self._samples = len(images)
        self._frames: list[_Frame] = []
        self._known: set[Node] = set()
        self._values: dict[Edge, Tensor | None] = {}  # None: relevance itself comes here, see ImageTrail
        self._constants = Names(module)
        self._names_of: dict[Layer, list[str]] = {}

    def begin(self, entrance: Tensor) -> None:
        """As ever; the image itself is known."""
        super().begin(entrance)
        edge = edge_of(entrance)
        self._known |= self._new_nodes([edge[0]])
        self._values[edge] = entrance.detach().clone()

    def operation(self, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operation under its rule, and open an account for it."""
        live = list(live_tensors((args, kwargs)))
        if not live:
            result = super().operation(operation, args, kwargs)
            self._constants.follow((args, kwargs), result)
            return result
        for tensor in live:
            self._see(tensor)
        snapshot, frame = Snapshot.of(operation, args, kwargs), _Frame(self._account(operation.name))
        self._frames.append(frame)
        try:
            result = super().operation(operation, args, kwargs)
        finally:
            self._frames.pop()
        self._close(frame, snapshot, result)
        return result

    def refuse(self, call: Any, result: Any, why: str) -> Any:
        """As ever, with a note of the gap."""
        self._frames[-1].account.gap = True
        return super().refuse(call, result, why)

    def through(self, layer: Layer, back: LinearRule, *more: Tensor) -> Tensor:
        """As ever, with a note of what the layer's bias absorbs and of denominators that vanish."""
        frame, cursor = self._frames[-1], self.cursor
        frame.layered, account, names = True, frame.account, [frame.names]
        self._names_of[layer] = frame.names
        if isinstance(back, rules.Merged):
            names = [self._names_of[back.before], frame.names]
        account.rule = shares.rule_name(rules.resolved(back, layer)[0])  # until its place is known

        def noted(layer: Layer, c: Tensor, z: Tensor) -> Sequence[Tensor | None]:
            rule, seen_as = rules.resolved(back, layer)
            both = seen_as is not layer
            account.rule = shares.rule_name(rule) + (" with the layer before" if both else "")
            held = [name for part in (names if both else names[-1:]) for name in part]
            account.absorb(" + ".join(held) or "constant", cursor.sample, shares.of_bias(rule, seen_as, c, z))
            account.absorb("stabilizer ε", cursor.sample, shares.of_stabilizer(rule, c, z))
            vanished, created = shares.at_vanished(rule, seen_as, c, z)
            account.vanished[cursor.sample] += vanished
            account.created_there[cursor.sample] += created
            return back(layer, c, z)

        return super().through(layer, noted, *more)

    def _close(self, frame: _Frame, snapshot: Snapshot, result: Any) -> None:
        """Find what an operation made, and the nodes that it made it with."""
        written = snapshot.written()
        made = tensors_in(result) if written is None else [base_of(written)]
        edges = [edge_of(t) if is_live(t) else None for t in made]
        nodes = self._new_nodes(edge[0] for edge in edges if edge)
        if not nodes:  # the input as it is
            return
        reached = set(_edges_from(nodes))
        parts = {} if frame.account.gap else snapshot.contributions(reached, self._constants.name)
        frame.names += parts
        if frame.layered:  # whose rule says what its bias absorbs
            parts = {}
        share = shares.BY_RULE.get(self.preset.rules.get(snapshot.operation.name), shares.by_value)
        outputs: dict[Edge, _Output] = {}
        for i, (tensor, edge) in enumerate(zip(made, edges, strict=True)):
            if edge is None:
                continue
            self._values[edge] = tensor.detach().clone()
            whole, parts_here = tensor, {name: part[i] for name, part in parts.items()}
            if is_live(base_of(tensor)) and edge_of(base_of(tensor))[0] in nodes:
                whole = base_of(tensor)  # a view of what nobody else has: a later write changes that
                parts_here = {name: within_base(part, tensor) for name, part in parts_here.items()}
            outputs[edge_of(whole)] = _Output(whole.detach().clone(), parts_here, share)
        self._watch(frame.account, nodes, outputs)

    def _account(self, operation: str) -> Account:
        rule = shares.operation_rule_name(self.preset.rules.get(operation))
        return Account.empty(operation, self.module_path(), rule, samples=self._samples)

    def _see(self, tensor: Tensor) -> None:
        """Note the value of a tensor that is about to be read.

        Nodes between it and what is known, which no operation made, get an account by their name.
        """
        if (view := self.view_of(tensor)) is not None:
            carrier = edge_of(view.carrier)
            self._known |= self._new_nodes([carrier[0]])
            self._values[carrier] = None
        edge = edge_of(tensor)
        if edge in self._values:
            return
        value, nodes = tensor.detach().clone(), self._new_nodes([edge[0]])
        self._values[edge] = value
        if nodes:
            account = self._account(node_kind(edge[0].name()))
            account.gap = any(node_kind(node.name()) not in LINEAR_NODES for node in nodes)
            self._watch(account, nodes, {edge: _Output(value)})

    def _new_nodes(self, roots: Iterable[Node]) -> set[Node]:
        found: set[Node] = set()
        stack = list(roots)
        while stack:
            node = stack.pop()
            if node not in found and node not in self._known:
                found.add(node)
                stack.extend(before for before, _ in _edges_from([node]))
        return found

    def _watch(self, account: Account, nodes: set[Node], outputs: Mapping[Edge, _Output]) -> None:
        """Let the `nodes` of an operation tell `account` what comes to its outputs and what goes to older nodes."""
        self.accounts.append(account)
        self._known |= nodes
        self._values |= {edge: output.value for edge, output in outputs.items()}
        for node in nodes:
            received = {at: output for (maker, at), output in outputs.items() if maker is node}
            leaving = {i: (to, at) for i, (to, at) in enumerate(node.next_functions) if to and to not in nodes}
            if any(edge not in self._values for edge in leaving.values()):
                raise UnsupportedModelError(
                    f"The operation {account.operation!r} in module {account.module} reads a tensor that the audit did not "
                    "see being made, so it cannot say where relevance goes. Explain without an audit."
                )
            destinations = {i: self._values[edge] for i, edge in leaving.items()}
            if received or destinations:
                node.register_hook(partial(_note, account, self.cursor, received, destinations))


def _edges_from(nodes: Iterable[Node]) -> Iterator[Edge]:
    return ((to, at) for node in nodes for to, at in node.next_functions if to is not None)


def _note(
    account: Account,
    cursor: _Cursor,
    received: Mapping[int, _Output],
    destinations: Mapping[int, Tensor | None],
    sent: Sequence[Tensor | None],
    came: Sequence[Tensor | None],
) -> None:
    """The hook of a node: `came` is c at each of its outputs, `sent` what it sends to each node before it."""
    sample = cursor.sample
    for i, output in received.items():
        c = came[i]
        if c is not None:
            account.received[sample] += shares.relevance(output.value, c).sum().cpu()
            for name, constant in output.constants.items():
                account.absorb(name, sample, output.share(constant, output.value, c))
    for i, destination in destinations.items():
        c = sent[i]
        if c is not None:
            passed = c.double() if destination is None else shares.relevance(destination, c)
            account.passed[sample] += passed.sum().cpu()
            account.size[sample] += passed.abs().sum().cpu()
