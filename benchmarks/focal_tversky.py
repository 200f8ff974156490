"""Time and memory of the focal Tversky loss, forward and backward, beside MONAI's Tversky loss and eager PyTorch.

Float32, softmax and class ids, the loss's own alpha 0.3, beta 0.7, gamma 0.75, smooth 1. `monai` is `TverskyLoss` for
every item and class, bent by the power behind it; `eager` the formula in PyTorch on one-hot labels. The value compared
is the loss. See README.md here.

    python benchmarks/focal_tversky.py --rounds 2 -o benchmarks/results
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

CASES = {"1 x 14 x 96^3": (1, 14, 96, 96, 96), "1 x 2 x 96^3": (1, 2, 96, 96, 96)}
WARM_UP = (1, 3, 8, 8, 8)
PEER = "monai"
Inputs = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


def make_inputs(case: tuple[int, ...]) -> Inputs:
    """Logits of normal noise, and classes at random."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, case[1], (case[0], 1, *case[2:]), generator=generator)
    return torch.randn(case, generator=generator).requires_grad_(), target


def step(loss: Loss) -> Callable[[Inputs], float]:
    """A run forward and backward that gives the loss."""

    def run(inputs: Inputs) -> float:
        value = loss(*inputs)
        torch.autograd.grad(value, inputs[0])
        return value.item()

    return run


def monai() -> Loss:
    from monai.losses import TverskyLoss

    how = {"to_onehot_y": True, "softmax": True, "reduction": "none"}
    loss = TverskyLoss(alpha=0.3, beta=0.7, smooth_nr=1, smooth_dr=1, **how)
    return lambda logits, target: (loss(logits, target) ** 0.75).mean()


def eager(logits: Tensor, target: Tensor) -> Tensor:
    p = logits.softmax(1)
    y = torch.zeros_like(p).scatter_(1, target, 1)
    axes = (2, 3, 4)
    hit = (p * y).sum(axes)
    wrong = 0.3 * (p * (1 - y)).sum(axes) + 0.7 * ((1 - p) * y).sum(axes)
    return ((wrong / (hit + wrong + 1)) ** 0.75).mean()


def medseg() -> Loss:
    from medseg.losses import FocalTverskyLoss

    return FocalTverskyLoss(to_onehot_y=True, softmax=True)


CONTENDERS: dict[str, Callable[[], Callable[[Inputs], float]]] = {
    "monai": lambda: step(monai()),
    "eager": lambda: step(eager),
    "compile": lambda: step(torch.compile(eager)),
    "medseg": lambda: step(medseg()),
}


if __name__ == "__main__":
    from kernel_table import run_benchmark

    run_benchmark("focal_tversky", sys.modules["__main__"])
