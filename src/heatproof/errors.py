"""The errors a caller can expect. A message says what was wrong, what came, what is allowed and what to do next."""

import difflib
from collections.abc import Iterable


class HeatproofError(Exception):
    """Base of every error that Heatproof raises on purpose."""


class InputError(HeatproofError, ValueError):
    """An argument, a recipe or a file is not what it must be."""


class ImageError(InputError):
    """A file cannot be read as an image or a mask."""


class StorageError(HeatproofError):
    """Something cannot be written: the disk is full, or read-only. What was finished before is kept."""


class UnsupportedModelError(HeatproofError):
    """The method cannot exist for this model (attention maps of a DenseNet, say)."""


class UnsupportedOperationError(UnsupportedModelError):
    """The model runs a non-linear operation for which the relevance engine has no rule."""


class RelevanceGapWarning(UserWarning):
    """Relevance went through operations without a rule, as `strict=False` allows: their ordinary gradient was used."""


class EmptyMapWarning(UserWarning):
    """Maps are zero everywhere: nothing among the features speaks for the target, and what speaks against it is cut off."""


def near_names(name: str, allowed: Iterable[str]) -> str:
    """The tail of an unknown-name message: the names most like `name`, then all of them.

    >>> near_names("gradcm", ["gradcam", "lime"])
    "Did you mean 'gradcam'? Known: gradcam, lime."
    """
    known = sorted(allowed)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, near))}? " if near else ""
    return f"{hint}Known: {', '.join(known) or 'none'}."
