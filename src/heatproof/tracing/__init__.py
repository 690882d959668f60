"""See and replace the operations that a model runs."""

from heatproof.tracing.operations import Operation
from heatproof.tracing.tracer import Tracer, constant, is_live, live_tensors, map_tensors

__all__ = ["Operation", "Tracer", "constant", "is_live", "live_tensors", "map_tensors"]
