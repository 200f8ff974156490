"""Scaling laws: fit a few cheap runs, predict the expensive one with an interval, and know when not to.

Every law has `fit(x, y)`, whose result has `predict(x, interval=0.9)`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
