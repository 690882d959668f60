"""The explainers: a module for each family, one short function for each method."""

from heatproof.explainers import attention, cam, controls, gradient, perturbation, relevance
from heatproof.explainers.registry import EXPLAINERS, Explainer, explainer

__all__ = [
    "EXPLAINERS",
    "Explainer",
    "attention",
    "cam",
    "controls",
    "explainer",
    "gradient",
    "perturbation",
    "relevance",
]
