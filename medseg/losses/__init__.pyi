from .betti_matching import BettiMatchingLoss
from .deep_supervision import DeepSupervisionLoss
from .dice_betti_matching import DiceBettiMatchingLoss, warm_up_factor
from .focal_tversky import FocalTverskyLoss
from .mip import MIPLoss
from .seg_with_mip import SegWithMIPLoss

__all__ = [
    "BettiMatchingLoss",
    "DeepSupervisionLoss",
    "DiceBettiMatchingLoss",
    "FocalTverskyLoss",
    "MIPLoss",
    "SegWithMIPLoss",
    "warm_up_factor",
]
