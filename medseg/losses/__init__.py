"""Losses for training; they take logits or probabilities (B, C, spatial...) with MONAI's flags, in 2D and 3D.

Names load on first use, because some losses bring compilers of their own.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
