"""Engine 2: what does the model say when these pixels are replaced? Masked forward passes, for explainers and metrics."""

from heatproof.probing.baselines import BASELINES, Baseline, make_baseline, options_of_rows
from heatproof.probing.masks import (
    Masks,
    NestedSubsetMasks,
    Ranking,
    RankMasks,
    SegmentMasks,
    SoftMasks,
    SubsetMasks,
    WindowMasks,
    rank_pixels,
)
from heatproof.probing.microbatch import MicroBatch, measure_batch_size
from heatproof.probing.precision import Precision, bf16_supported, check_precision
from heatproof.probing.probe import BoundProbe, bind
from heatproof.probing.randomness import SampleRandom, content_keys

__all__ = [
    "BASELINES",
    "Baseline",
    "BoundProbe",
    "Masks",
    "MicroBatch",
    "NestedSubsetMasks",
    "Precision",
    "RankMasks",
    "Ranking",
    "SampleRandom",
    "SegmentMasks",
    "SoftMasks",
    "SubsetMasks",
    "WindowMasks",
    "bf16_supported",
    "bind",
    "check_precision",
    "content_keys",
    "make_baseline",
    "measure_batch_size",
    "options_of_rows",
    "rank_pixels",
]
