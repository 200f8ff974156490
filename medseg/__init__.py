"""Medical-image segmentation on MONAI: volumes in, masks a person can trust out.

Sub-packages load on first use, so `import medseg` stays light.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "bundles",
        "cli",
        "data",
        "engines",
        "inferers",
        "losses",
        "metrics",
        "networks",
        "report",
        "topology",
        "transforms",
    ],
)
