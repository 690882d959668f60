"""Heatproof: heatmaps, with proof.

Names are imported on first use, so that `import heatproof` (and the command line's help) does not import torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name -> module that defines it
_PUBLIC = {
    "Classifier": "heatproof.models",
    "load_classifier": "heatproof.models.sources",
    "save_checkpoint": "heatproof.models.checkpoint",
    "explain": "heatproof.explanation",
    "methods": "heatproof.explanation",
    "score": "heatproof.scoring",
    "score_many": "heatproof.scoring",
    "curve": "heatproof.scoring",
    "chance": "heatproof.metrics.chance",
    "metrics": "heatproof.scoring",
    "show": "heatproof.images.display",
    "overlay": "heatproof.images.display",
    "gallery": "heatproof.report.sheet",
    "fit": "heatproof.training.fit",
    "run_study": "heatproof.study.runner",
    "load_run": "heatproof.study.store",
}

__all__ = [*_PUBLIC, "__version__"]  # noqa: PLE0604

if TYPE_CHECKING:
    from heatproof.explanation import explain, methods
    from heatproof.images.display import overlay, show
    from heatproof.metrics.chance import chance
    from heatproof.models import Classifier
    from heatproof.models.checkpoint import save_checkpoint
    from heatproof.models.sources import load_classifier
    from heatproof.report.sheet import gallery
    from heatproof.scoring import curve, metrics, score, score_many
    from heatproof.study.runner import run_study
    from heatproof.study.store import load_run
    from heatproof.training.fit import fit


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'heatproof' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
