"""Segmentation metrics in millimetres, with an explicit rule for empty masks.

Names load on first use: the array functions need NumPy and SciPy alone, while the metric classes bring MONAI.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
