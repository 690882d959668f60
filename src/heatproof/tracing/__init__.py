"""See and replace the operations that a model runs."""

from heatproof.tracing.finite import first_not_finite
from heatproof.tracing.operations import Operation
from heatproof.tracing.tracer import Tracer, apart, constant, is_live, live_tensors, map_tensors

__all__ = ["Operation", "Tracer", "apart", "constant", "first_not_finite", "is_live", "live_tensors", "map_tensors"]
