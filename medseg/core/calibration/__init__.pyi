from ._inputs import CalibrationWarning
from .correctness import correctness_loss
from .h_calibration import h_calibration_loss
from .mixture import TemperatureMixture
from .temperature import Calibrator, TemperatureCalibrator, mix_temperatures
from .voxel_sampling import near_boundary, sample_voxels

__all__ = [
    "CalibrationWarning",
    "Calibrator",
    "TemperatureCalibrator",
    "TemperatureMixture",
    "correctness_loss",
    "h_calibration_loss",
    "mix_temperatures",
    "near_boundary",
    "sample_voxels",
]
