"""The report of a run: one folder of tables, figures and every case, which opens from disk."""

from heatproof.report.html import build_report

__all__ = ["build_report"]
