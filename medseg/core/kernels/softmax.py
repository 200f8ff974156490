"""Softmax over the classes of a finished volume, in place: the last step of blended windows before labels are taken.

    z_k(v) <- exp(z_k(v) - max) / sum over k of exp(z_k(v) - max)

PyTorch's own needs a second volume or, in place, five walks through all classes; a compiled loop on a CPU in float32
takes one, a row of voxels at a time, and so does a Triton kernel on a GPU. Adding a window to the blend before that
stays PyTorch's `addcmul_`, which reads the answer once and reads and writes the sum once: nothing is left to save.
"""

from __future__ import annotations

import torch
from torch import Tensor

from medseg.core.kernels.dispatch import choose_backend, wants_torch

SUPPORTED = (torch.float32, torch.float16, torch.bfloat16)


def softmax_(logits: Tensor, *, backend: str = "auto") -> Tensor:
    """Softmax over the first axis in place, so that no second copy of all classes is made. Not differentiable.

    Args:
        logits: (K, spatial...), any float type and strides.
        backend: "auto", "torch" or "triton", see `medseg.core.kernels.choose_backend`; "auto" takes compiled loops on a
            CPU in float32.

    Returns:
        The same tensor, now with probabilities.

    Raises:
        ValueError: an unknown backend, or one that cannot take this tensor.
        ImportError: `backend="triton"`, and triton is not installed.

    Example:
        >>> softmax_(torch.zeros(2, 3))
        tensor([[0.5000, 0.5000, 0.5000],
                [0.5000, 0.5000, 0.5000]])
    """
    kernel = choose_backend(backend, logits, SUPPORTED)
    fits = type(logits) is Tensor and 2 <= logits.ndim <= 4 and not logits.requires_grad
    if kernel == "triton" and (fits or backend == "triton"):
        from medseg.core.kernels import softmax_triton

        softmax_triton.run(logits)
        return logits
    plain = logits.device.type == "cpu" and logits.dtype == torch.float32 and logits.stride(-1) == 1
    if plain and fits and not wants_torch(backend):
        from medseg.core.kernels import softmax_processor

        softmax_processor.run(logits)
        return logits
    logits.sub_(logits.amax(dim=0)).exp_()
    return logits.div_(logits.sum(dim=0))
