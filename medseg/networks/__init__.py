"""Networks for bundles and trainers, built with `spatial_dims, in_channels, out_channels` as MONAI's are.

Names load on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
