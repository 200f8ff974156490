"""Cubical persistence of images: barcodes, Betti numbers and the induced (Betti) matching of two images.

Names load on first use, because Numba takes a moment to import.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
