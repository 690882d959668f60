"""Operations without a rule that relevance met on its way back, where that is allowed: said once, by a warning."""

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from heatproof.errors import RelevanceGapWarning, UnsupportedOperationError

_gathered: ContextVar[dict[str, None] | None] = ContextVar("gathered", default=None)


def meet(gap: str, strict: bool, met: dict[str, bool]) -> None:
    """Relevance arrives at the operation that `gap` is about: an error, or a note in `met`, where True means reported."""
    if strict:
        raise UnsupportedOperationError(
            f"{gap} Use another method, or pass strict=False to send its ordinary gradient back, at the price of "
            "conservation."
        )
    met.setdefault(gap, False)


def report(met: dict[str, bool]) -> None:
    """Warn of the gaps that were not reported yet, or leave that to `one_warning` where it is open."""
    fresh = [gap for gap, reported in met.items() if not reported]
    met.update(dict.fromkeys(fresh, True))
    gathered = _gathered.get()
    if gathered is None:
        _warn(fresh)
    else:
        gathered.update(dict.fromkeys(fresh))


@contextmanager
def one_warning() -> Iterator[None]:
    """Inside, gaps are gathered, and reported together at the end: for a call with many passes."""
    gathered: dict[str, None] = {}
    token = _gathered.set(gathered)
    try:
        yield
    finally:
        _gathered.reset(token)
    _warn(gathered)


def _warn(gaps: Iterable[str]) -> None:
    if listed := "\n".join(f"* {gap}" for gap in gaps):
        warnings.warn(
            f"Relevance is not conserved: the ordinary gradient stood in for rules that are missing.\n{listed}",
            RelevanceGapWarning,
            stacklevel=levels_to_caller(),
        )


def levels_to_caller() -> int:
    """How far up the first caller outside this package is, as `warnings.warn` in the calling function counts."""
    frame, levels = sys._getframe(1), 1
    inside = (__name__.partition(".")[0], "contextlib")
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in inside:
        frame, levels = frame.f_back, levels + 1
    return levels
