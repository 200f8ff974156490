"""Medical-image segmentation on MONAI: volumes in, masks a person can trust out.

Sub-packages load on first use, so `import medseg` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg import bundles, cli, data, engines, inferers, metrics, report

__version__ = "0.1.0"
__all__ = ["__version__", "bundles", "cli", "data", "engines", "inferers", "metrics", "report"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return importlib.import_module(f"medseg.{name}")
    raise AttributeError(f"module 'medseg' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
