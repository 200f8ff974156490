"""Operations on tensors that have a PyTorch reference and, for CUDA tensors, a Triton kernel of the same result.

One function an operation, for every device; `dispatch.py` says how a backend is chosen. Nothing here imports triton
before a Triton kernel runs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
