"""Engine one: run any torch model under relevance rules."""

from heatproof.relevance.accounts import Account, Audit
from heatproof.relevance.auditing import audit
from heatproof.relevance.backward import ForwardPass, run
from heatproof.relevance.linear import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, Zero, z_plus
from heatproof.relevance.mode import Call, Preset, Rule
from heatproof.relevance.presets import composite

__all__ = [
    "Account",
    "AlphaBeta",
    "Audit",
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
    "audit",
    "composite",
    "run",
    "z_plus",
]
