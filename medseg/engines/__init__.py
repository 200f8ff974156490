"""What runs: prediction over cases, evaluation, training and its handlers.

Names load on first use, so that a verb pays only for what it needs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
