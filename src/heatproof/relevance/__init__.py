"""Engine one: run any torch model under relevance rules."""

from heatproof.relevance.backward import ForwardPass, run
from heatproof.relevance.mode import Call, Preset, Rule

__all__ = ["Call", "ForwardPass", "Preset", "Rule", "run"]
