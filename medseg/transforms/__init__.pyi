from .bin_sample_id import BinSampleIdd
from .label_mip import LabelMIP, LabelMIPd
from .paired_views import PairedViewsd
from .rand_flip_shift_rotate import RandFlipShiftRotate, RandFlipShiftRotated
from .zone_distance import ZoneDistance, ZoneDistanced

__all__ = [
    "BinSampleIdd",
    "LabelMIP",
    "LabelMIPd",
    "PairedViewsd",
    "RandFlipShiftRotate",
    "RandFlipShiftRotated",
    "ZoneDistance",
    "ZoneDistanced",
]
