from .bin_sample_id import BinSampleIdd
from .label_mip import LabelMIP, LabelMIPd
from .paired_views import PairedViewsd

__all__ = [
    "BinSampleIdd",
    "LabelMIP",
    "LabelMIPd",
    "PairedViewsd",
]
