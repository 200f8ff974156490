"""Transforms for training and inference, each as array class and as dictionary class (`X`, `Xd`), as in MONAI."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
