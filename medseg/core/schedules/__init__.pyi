from .closed_form import schedule_factors
from .infinite import InfiniteLR
from .linear_decay import LinearDecayLR
from .polynomial import PolyLR
from .refined import GradNormRecorder, TabulatedLR, refine_schedule
from .warm_up import WarmUpLR
from .wsd import WSDLR
from .wsd_s import WSDSLR

__all__ = [  # noqa: RUF022 - plain order, as everywhere; ruff would take WSDLR for a constant
    "GradNormRecorder",
    "InfiniteLR",
    "LinearDecayLR",
    "PolyLR",
    "TabulatedLR",
    "WSDLR",
    "WSDSLR",
    "WarmUpLR",
    "refine_schedule",
    "schedule_factors",
]
