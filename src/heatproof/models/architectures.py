"""From the `source` of a checkpoint back to its network."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from heatproof.errors import InputError, near_names
from heatproof.models.huggingface import build_hf
from heatproof.models.monai_networks import build_monai
from heatproof.models.request import seeded

_BUILDERS: dict[str, Callable[[Mapping[str, Any]], nn.Module]] = {"transformers": build_hf, "monai": build_monai}


def build_architecture(source: Mapping[str, Any]) -> nn.Module:
    """The network that `source` (of a `Classifier` made by `load_classifier`) describes, with random weights.

    Raises:
        InputError: an unknown library, or a description that it cannot build.
    """
    library = str(source.get("library"))
    if library not in _BUILDERS:
        raise InputError(
            f"The checkpoint's network is of an unknown library {library!r}. {near_names(library, _BUILDERS)}"
        )
    with seeded(0):  # the weights are replaced: only the caller's random state matters
        return _BUILDERS[library](source)
