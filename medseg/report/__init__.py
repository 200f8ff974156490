"""Statistics, pictures and run reports about masks."""

from __future__ import annotations

from medseg.report._picture import label_colour
from medseg.report.adaptation import draw_adaptation
from medseg.report.mip import draw_mip_preview
from medseg.report.preview import draw_preview
from medseg.report.run_report import RunReport
from medseg.report.sample_contours import draw_sample_contours
from medseg.report.sample_weights import draw_sample_weights, summarise_sample_weights
from medseg.report.scaling import draw_annotation_budget, draw_extrapolation
from medseg.report.schedule import draw_schedule
from medseg.report.statistics import label_statistics, write_statistics
from medseg.report.topology import draw_topology
from medseg.report.volume_spread import volume_spread

__all__ = [
    "RunReport",
    "draw_adaptation",
    "draw_annotation_budget",
    "draw_extrapolation",
    "draw_mip_preview",
    "draw_preview",
    "draw_sample_contours",
    "draw_sample_weights",
    "draw_schedule",
    "draw_topology",
    "label_colour",
    "label_statistics",
    "summarise_sample_weights",
    "volume_spread",
    "write_statistics",
]
