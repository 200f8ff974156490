"""The step of Adam for lists of tensors, as AdamP and FRUGAL use it.

m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2,   step = - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from medseg.core.optim._blocks import Scalar

Tensors = list[torch.Tensor]


def adam_steps(
    grads: Tensors,
    moments: tuple[Tensors, Tensors],
    counts: Sequence[Scalar],
    options: Mapping[str, Any],
    *,
    nesterov: bool = False,
    fused: bool = False,
) -> Sequence[torch.Tensor]:
    """Advance the moments in place, and give what Adam would add to the weights.

    Args:
        grads: gradients.
        moments: means of the gradients, and of their squares.
        counts: the number of this step for each, from 1.
        options: `lr`, `betas` and `eps`.
        nesterov: look one step of the momentum ahead.
        fused: one pass over memory, by torch's own kernel for Adam on a CPU.
    """
    (beta1, beta2), lr, eps = options["betas"], options["lr"], options["eps"]
    if fused and not nesterov:
        return _fused_steps(grads, moments, counts, (lr, beta1, beta2, eps))
    means, squares = moments
    torch._foreach_lerp_(means, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, 1 - beta2)
    scale = torch._foreach_sqrt(squares)
    torch._foreach_div_(scale, [(1 - beta2**t) ** 0.5 for t in counts])
    torch._foreach_add_(scale, eps)
    ahead = torch._foreach_lerp(means, grads, 1 - beta1) if nesterov else means
    steps = torch._foreach_div(ahead, scale)
    torch._foreach_mul_(steps, [-lr / (1 - beta1**t) for t in counts])
    return steps


def _fused_steps(
    grads: Tensors, moments: tuple[Tensors, Tensors], counts: Sequence[Scalar], options: Sequence[float]
) -> Tensors:
    """What torch's kernel makes of weights that are zero."""
    lr, beta1, beta2, eps = options
    steps = [torch.zeros_like(grad) for grad in grads]
    torch._fused_adam_(
        steps,
        grads,
        *moments,
        [],
        [torch.as_tensor(t, dtype=torch.float32) for t in counts],
        lr=float(lr),
        beta1=beta1,
        beta2=beta2,
        weight_decay=0.0,
        eps=eps,
        amsgrad=False,
        maximize=False,
    )
    return steps
