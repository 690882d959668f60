"""Does the model's output change where the map says that it should? A module for each way to ask."""

from heatproof.metrics.faithfulness.cohort import sufficiency
from heatproof.metrics.faithfulness.correlations import (
    faithfulness_correlation,
    faithfulness_estimate,
    monotonicity_correlation,
    sensitivity_n,
)
from heatproof.metrics.faithfulness.curves import deletion, insertion, lerf, monotonicity_arya, road, srg
from heatproof.metrics.faithfulness.perturbations import infidelity
from heatproof.metrics.faithfulness.regions import irof, region_perturbation, selectivity

__all__ = [
    "deletion",
    "faithfulness_correlation",
    "faithfulness_estimate",
    "infidelity",
    "insertion",
    "irof",
    "lerf",
    "monotonicity_arya",
    "monotonicity_correlation",
    "region_perturbation",
    "road",
    "selectivity",
    "sensitivity_n",
    "srg",
    "sufficiency",
]
