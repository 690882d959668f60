"""The metrics: a module for each category, one short function for each metric.

The package can be called: `heatproof.metrics()` is the registry, whether or not the package of the same name has been
imported before.
"""

import sys
from collections.abc import Mapping
from types import ModuleType

from heatproof.metrics import (
    axiomatic,
    complexity,
    faithfulness,
    localization,
    mosaics,
    randomization,
    robustness,
    stability,
)
from heatproof.metrics.registry import METRICS, Case, Curve, Metric, metric

__all__ = [
    "METRICS",
    "Case",
    "Curve",
    "Metric",
    "axiomatic",
    "complexity",
    "faithfulness",
    "localization",
    "metric",
    "mosaics",
    "randomization",
    "robustness",
    "stability",
]


class _CallablePackage(ModuleType):
    def __call__(self) -> Mapping[str, Metric]:
        """Every metric by name, see `heatproof.scoring.metrics`."""
        return METRICS


sys.modules[__name__].__class__ = _CallablePackage
