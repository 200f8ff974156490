"""Statistics, pictures and run reports about masks."""

from __future__ import annotations

from medseg.report.run_report import RunReport
from medseg.report.statistics import label_statistics, write_statistics

__all__ = ["RunReport", "label_statistics", "write_statistics"]
