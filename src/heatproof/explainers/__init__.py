"""The explainers: a module for each family, one short function for each method."""

from heatproof.explainers import (
    attention,
    attention_gradients,
    backprop,
    cam,
    cam_probing,
    controls,
    gradient,
    legrad,
    noise,
    paths,
    perturbation,
    relevance,
)
from heatproof.explainers.registry import EXPLAINERS, Explainer, explainer

__all__ = [
    "EXPLAINERS",
    "Explainer",
    "attention",
    "attention_gradients",
    "backprop",
    "cam",
    "cam_probing",
    "controls",
    "explainer",
    "gradient",
    "legrad",
    "noise",
    "paths",
    "perturbation",
    "relevance",
]
