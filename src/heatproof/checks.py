"""Checks of single arguments, with messages that say what was got and what is allowed."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

from heatproof.errors import InputError


def check_choice(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise `InputError` unless `value` is one of `allowed`."""
    if not isinstance(value, str) or value not in allowed:
        raise InputError(f"{name} must be {' or '.join(map(repr, allowed))}, got {value!r}.")


def check_count(name: str, value: Any, *, high: int | None = None) -> int:
    """`value` as an int; `InputError` unless it is a whole number from 1 to `high`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not 1 <= int(value) <= (high or int(value)):
        limit = "at least 1" if high is None else f"from 1 to {high}"
        raise InputError(f"{name} must be a whole number, {limit}, got {value!r}.")
    return int(value)


def check_number(name: str, value: Any, *, low: float = 0.0, high: float = float("inf")) -> float:
    """`value` as a float; `InputError` unless it is a number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        limit = f"at least {low:g}" if high == float("inf") else f"from {low:g} to {high:g}"
        raise InputError(f"{name} must be a number, {limit}, got {value!r}.")
    return float(value)
