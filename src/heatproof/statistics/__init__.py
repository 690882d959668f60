"""Numbers in, numbers out: intervals, tests and ranks that know which images belong to one patient."""

from heatproof.statistics.comparison import SignFlipTest, compare, holm, sign_flip_test
from heatproof.statistics.intervals import (
    Interval,
    interval_of_draws,
    patient_bootstrap,
    patient_bootstrap_columns,
    patient_bootstrap_statistic,
    wilson,
)
from heatproof.statistics.ranking import Ranks, ranks
from heatproof.statistics.resampling import drawn_counts

__all__ = [
    "Interval",
    "Ranks",
    "SignFlipTest",
    "compare",
    "drawn_counts",
    "holm",
    "interval_of_draws",
    "patient_bootstrap",
    "patient_bootstrap_columns",
    "patient_bootstrap_statistic",
    "ranks",
    "sign_flip_test",
    "wilson",
]
