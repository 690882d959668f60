"""The metrics: a module for each category, one short function for each metric.

The package can be called: `heatproof.metrics()` is the registry, whether or not the package of the same name has been
imported before.
"""

import sys
from collections.abc import Mapping
from types import ModuleType

from heatproof.metrics import complexity, faithfulness, localization, robustness
from heatproof.metrics.registry import METRICS, Case, Curve, Metric, metric

__all__ = ["METRICS", "Case", "Curve", "Metric", "complexity", "faithfulness", "localization", "metric", "robustness"]


class _CallablePackage(ModuleType):
    def __call__(self) -> Mapping[str, Metric]:
        """Every metric by name, see `heatproof.scoring.metrics`."""
        return METRICS


sys.modules[__name__].__class__ = _CallablePackage
