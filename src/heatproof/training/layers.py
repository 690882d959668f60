"""Which parameters of a network are trained, and how fast each: freezing, depth, and groups for the optimiser."""

import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from heatproof.errors import InputError, near_names
from heatproof.training.options import BACKBONE, Options

_NUMBERED = re.compile(r"\d$")


def head_of(module: nn.Module, outputs: int) -> str:
    """The name of the head: the last layer with parameters, as the network registers them, with that many outputs.

    Raises:
        InputError: the last layer has another number of outputs, so that the head is not known.

    >>> head_of(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), outputs=2)
    '2'
    """
    name, weight = [item for item in module.named_parameters() if item[1].ndim > 1][-1]
    if len(weight) != outputs:
        raise InputError(
            f"freeze='{BACKBONE}' trains the head alone, but the last layer of {type(module).__name__}, "
            f"{name!r}, has {len(weight)} outputs for {outputs} classes. Name what is frozen, with * for any text."
        )
    return name.rpartition(".")[0]


def is_frozen(name: str, module: nn.Module, freeze: str | Sequence[str], outputs: int) -> bool:
    """Whether `freeze` covers the parameter or the layer `name`: by its own name or by that of a module around it."""
    if freeze == BACKBONE:
        head = head_of(module, outputs)
        return not f"{name}.".startswith(f"{head}.")
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for pattern in freeze)


@contextmanager
def frozen(module: nn.Module, freeze: str | Sequence[str], outputs: int) -> Iterator[None]:
    """Inside, the parameters that `freeze` covers need no gradient; afterwards everything is as it was before.

    Raises:
        InputError: a pattern that covers nothing (with the near names), or nothing left to train.
    """
    names = [name for name, _ in module.named_parameters()]
    for pattern in () if freeze == BACKBONE else freeze:
        if not any(is_frozen(name, module, [pattern], outputs) for name in names):
            around = {name for name, _ in module.named_modules() if name}
            near = near_names(pattern, {*around, *names}).partition(" Known:")[0]  # all would be hundreds
            raise InputError(
                f"freeze: {pattern!r} covers no parameter. {near if '?' in near else ''} "
                "The names are those of module.named_modules() and named_parameters()."
            )
    before = {name: p.requires_grad for name, p in module.named_parameters()}
    try:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(before[name] and not is_frozen(name, module, freeze, outputs))
        if not any(p.requires_grad for p in module.parameters()):
            raise InputError(
                "No parameter of the model may be trained: freeze fewer, or set requires_grad on those that shall be."
            )
        yield
    finally:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(before[name])


def frozen_batch_norms(module: nn.Module, freeze: str | Sequence[str], outputs: int) -> list[_BatchNorm]:
    """The batch norms none of whose parameters is trained: their running statistics must stay as well."""
    found = []
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm):
            own = [p.requires_grad for p in layer.parameters()]
            if not any(own) if own else is_frozen(name, module, freeze, outputs):
                found.append(layer)
    return found


def depths(module: nn.Module) -> dict[str, int]:
    """The depth of every parameter, from 0 (next to the image) upwards.

    The blocks of the network are its outermost numbered modules that hold others (`blocks.3`, `encoder.layer.3`,
    `denseblock2`, `layer4`), one depth each; what comes before the first has depth 0, what comes between two belongs to
    the former, and what comes after the last is one deeper, together with the head (`bao2022beit`). A network without
    blocks has a depth for every layer. Before and after are the order in which the network registers its modules.

    >>> depths(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2)))
    {'0.weight': 0, '0.bias': 0, '3.weight': 1, '3.bias': 1}
    """
    names = [name for name, _ in module.named_parameters()]
    blocks = [_block(name, module) for name in names]
    if not any(blocks):
        layers = [name.rpartition(".")[0] for name in names]
        order = {layer: depth for depth, layer in enumerate(dict.fromkeys(layers))}
        return {name: order[layer] for name, layer in zip(names, layers, strict=True)}
    order = {block: depth for depth, block in enumerate(dict.fromkeys(filter(None, blocks)), start=1)}
    last = max(number for number, block in enumerate(blocks) if block)
    found, depth = {}, 0
    for number, (name, block) in enumerate(zip(names, blocks, strict=True)):
        depth = order[block] if block else depth if number < last else len(order) + 1
        found[name] = depth
    return found


def _block(name: str, module: nn.Module) -> str:
    """The outermost numbered module around a parameter that holds modules of its own; '' where there is none."""
    steps = name.split(".")[:-1]
    for length in range(1, len(steps) + 1):
        path = ".".join(steps[:length])
        if _NUMBERED.search(steps[length - 1]) and any(True for _ in module.get_submodule(path).children()):
            return path
    return ""


def parameter_groups(module: nn.Module, options: Options) -> list[dict[str, Any]]:
    """What is trained, for a `torch.optim` optimiser: one group for each learning rate and weight decay.

    A parameter at depth d of D has the rate `lr · layer_decay ** (D - d)` (`bao2022beit`). The weights of layers are
    decayed; norms, biases, tokens and position embeddings are not. `top_lr` is the rate before the schedule.

    Raises:
        InputError: a layer decay where all that is trained has one depth.
    """
    depth = depths(module)
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    deepest = max(depth.values())
    if options.layer_decay < 1 and len({depth[name] for name, _ in trained}) == 1:
        raise InputError(
            f"layer_decay={options.layer_decay:g} has no effect: all that is trained of {type(module).__name__} has one "
            "depth. Freeze less, or leave layer_decay at 1."
        )
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trained:
        rate = options.lr * math.pow(options.layer_decay, deepest - depth[name])
        decay = options.weight_decay if parameter.ndim > 1 and name.endswith("weight") else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "top_lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
