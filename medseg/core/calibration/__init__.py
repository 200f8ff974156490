"""Probabilities that mean what they say: calibrators for the logits of a trained network, and what they are fitted to.

Fit them on cases that the network was not trained on; no voxel of one case may be on both sides of fit and test. After
pruning, quantisation or adaptation to another site a network has other logits: fit anew.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
