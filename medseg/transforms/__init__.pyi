from .bin_sample_id import BinSampleIdd
from .label_mip import LabelMIP, LabelMIPd
from .paired_views import PairedViewsd
from .prostate_roi import ProstateROI, ProstateROId
from .rand_flip_shift_rotate import RandFlipShiftRotate, RandFlipShiftRotated
from .shape_resample import ShapeBasedResampleToMatch, ShapeBasedResampleToMatchd
from .temperature_scaled import TemperatureScaled, TemperatureScaledd
from .zone_augmentation import RandShapeAffined
from .zone_distance import ZoneDistance, ZoneDistanced
from .zone_post_process import ZonePostProcess, ZonePostProcessd

__all__ = [
    "BinSampleIdd",
    "LabelMIP",
    "LabelMIPd",
    "PairedViewsd",
    "ProstateROI",
    "ProstateROId",
    "RandFlipShiftRotate",
    "RandFlipShiftRotated",
    "RandShapeAffined",
    "ShapeBasedResampleToMatch",
    "ShapeBasedResampleToMatchd",
    "TemperatureScaled",
    "TemperatureScaledd",
    "ZoneDistance",
    "ZoneDistanced",
    "ZonePostProcess",
    "ZonePostProcessd",
]
