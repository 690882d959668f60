"""The explainers: a module for each family, one short function for each method."""

from heatproof.explainers import (
    attention,
    attention_gradients,
    backprop,
    cam,
    cam_probing,
    controls,
    full_gradient,
    gradient,
    legrad,
    noise,
    paths,
    perturbation,
    relevance,
    transformer_relevance,
    vit_cx,
)
from heatproof.explainers.registry import EXPLAINERS, Explainer, explainer
from heatproof.registry import load_plugins

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
    "full_gradient",
    "gradient",
    "legrad",
    "noise",
    "paths",
    "perturbation",
    "relevance",
    "transformer_relevance",
    "vit_cx",
]

load_plugins("heatproof.explainers")  # which may import from here what stands above
