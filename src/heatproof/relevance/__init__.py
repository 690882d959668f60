"""Engine one: run any torch model under relevance rules."""

from heatproof.relevance.backward import ForwardPass, run
from heatproof.relevance.linear import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, Zero, z_plus
from heatproof.relevance.mode import Call, Preset, Rule
from heatproof.relevance.presets import composite

__all__ = [
    "AlphaBeta",
    "Call",
    "Epsilon",
    "Flat",
    "ForwardPass",
    "Gamma",
    "Preset",
    "Rule",
    "WSquare",
    "ZBox",
    "Zero",
    "composite",
    "run",
    "z_plus",
]
