"""Serve other libraries: Heatproof's explainers in the calling conventions of Quantus and captum.

Nothing here imports those libraries.
"""

from heatproof.interop.peers import captum_explanation_func, quantus_explain_func

__all__ = ["captum_explanation_func", "quantus_explain_func"]
