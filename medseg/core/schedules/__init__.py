"""Learning-rate schedules: closed forms of the number of optimizer steps taken, as PyTorch's `LRScheduler`.

Step them once an optimizer step (not once a micro-batch of an accumulated gradient, and not where a gradient scaler
skipped the step). The factor multiplies each group's own initial rate, so that layer-wise rates stay.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
