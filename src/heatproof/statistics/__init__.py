"""Numbers in, numbers out: intervals that know which images belong to one patient."""

from heatproof.statistics.intervals import Interval, patient_bootstrap, patient_bootstrap_statistic

__all__ = ["Interval", "patient_bootstrap", "patient_bootstrap_statistic"]
