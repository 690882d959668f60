"""Composites of LRP rules as plain data, the way recipes and command lines write them."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from heatproof.checks import check_choice
from heatproof.errors import InputError, near_names
from heatproof.relevance import AlphaBeta, Epsilon, Flat, Gamma, Preset, WSquare, ZBox, Zero, composite, z_plus
from heatproof.relevance.linear import AnyRule
from heatproof.relevance.mode import KINDS, Start

Box = Callable[[Any, Any], tuple[Tensor, Tensor]]  # (low, high) as an option gives them -> the box of the image

RULES: dict[str, Callable[..., AnyRule]] = {
    "z": Zero,
    "epsilon": Epsilon,
    "gamma": Gamma,
    "alpha_beta": AlphaBeta,
    "z_plus": z_plus,
    "z_box": ZBox,
    "w_square": WSquare,
    "flat": Flat,
}


def composite_of(rules: Mapping[str, Any], start: Start, box: Box) -> Preset:
    """The composite that `rules` describe: a kind of layer, or a pattern of module paths -> a rule, see `rule_of`."""
    if not isinstance(rules, Mapping):
        raise InputError(f"rules must map {', '.join(KINDS)} or module patterns to rules, got {rules!r}.")
    modules = {str(place): rule_of(place, written, box) for place, written in rules.items()}
    kinds: dict[str, Any] = {kind: modules.pop(kind) for kind in KINDS if kind in modules}
    return composite("lrp", **kinds, modules=modules, start=start)


def rule_of(place: str, written: Any, box: Box) -> AnyRule:
    """The rule of the layers at `place`: its name, or a mapping with the name under `rule` and the rule's own options."""
    options = {"rule": written} if isinstance(written, str) else dict(written) if isinstance(written, Mapping) else {}
    name = options.pop("rule", None)
    if name is None:
        raise InputError(f"The rule of {place!r} must be a name or a mapping such as {{rule: gamma}}, got {written!r}.")
    if name not in RULES:
        raise InputError(f"Unknown rule {name!r} of {place!r}. {near_names(str(name), RULES)}")
    known = inspect.signature(RULES[name]).parameters
    for option in options:
        if option not in known:
            raise InputError(f"The rule {name} of {place!r} has no option {option!r}. {near_names(str(option), known)}")
    if name == "z_box":
        return ZBox(*box(options.get("low"), options.get("high")))
    if name == "epsilon":
        options.setdefault("epsilon", default_epsilon(relative=bool(options.get("relative"))))
    if "bias" in options:
        options["bias"] = takes_bias(options["bias"])
    return RULES[name](**options)


def default_epsilon(*, relative: bool) -> float:
    """ε where none is given: a share of the sample's mean |z|, or absolute."""
    return 0.25 if relative else 1e-6


def takes_bias(bias: str) -> bool:
    """Whether biases take part, as the option `bias` says."""
    check_choice("bias", bias, ("absorb", "ignore"))
    return bias == "absorb"
