from .betti_matching import BettiMatchingLoss
from .dice_betti_matching import DiceBettiMatchingLoss, warm_up_factor

__all__ = ["BettiMatchingLoss", "DiceBettiMatchingLoss", "warm_up_factor"]
