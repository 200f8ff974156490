"""Time and memory of the Dice and cross-entropy loss, forward and backward, beside MONAI and eager PyTorch, in one run.

Softmax, class ids, float32. `eager` is the shortest formulation in PyTorch, `compile` the same through `torch.compile`,
`medseg:torch` our own in plain PyTorch (MEDSEG_KERNELS=torch). The value compared is the loss. See README.md here.

    python benchmarks/dice_ce.py --threads 2 --repeats 5 --rounds 3 -o benchmarks/results
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

CASES = {
    "1 x 14 x 96^3": (1, 14, 96, 96, 96),
    "1 x 105 x 64^3": (1, 105, 64, 64, 64),
    "2 x 2 x 96^3": (2, 2, 96, 96, 96),
}
WARM_UP = (1, 3, 8, 8, 8)
PEER = "monai"
Loss = Callable[[Tensor, Tensor], Tensor]
Inputs = tuple[Tensor, Tensor]


def make_inputs(shape: tuple[int, ...]) -> Inputs:
    """Logits of normal noise, and class ids at random."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, shape[1], (shape[0], 1, *shape[2:]), generator=generator)
    return torch.randn(shape, generator=generator).requires_grad_(), target


def step(loss: Loss) -> Callable[[Inputs], float]:
    """A run forward and backward that gives the loss."""

    def run(inputs: Inputs) -> float:
        value = loss(*inputs)
        torch.autograd.grad(value, inputs[0])
        return value.item()

    return run


def eager(logits: Tensor, target: Tensor) -> Tensor:
    p = logits.softmax(1)
    y = torch.zeros_like(p).scatter_(1, target, 1)
    axes = (2, 3, 4)
    dice = 1 - (2 * (p * y).sum(axes) + 1e-5) / (p.sum(axes) + y.sum(axes) + 1e-5)
    return dice.mean() + functional.cross_entropy(logits, target[:, 0])


def monai() -> Loss:
    from monai.losses import DiceCELoss

    return DiceCELoss(to_onehot_y=True, softmax=True)


def medseg(backend: str) -> Loss:
    from medseg.losses import DiceCELoss

    os.environ["MEDSEG_KERNELS"] = backend
    return DiceCELoss(to_onehot_y=True, softmax=True)


CONTENDERS: dict[str, Callable[[], Callable[[Inputs], float]]] = {
    "monai": lambda: step(monai()),
    "eager": lambda: step(eager),
    "compile": lambda: step(torch.compile(eager)),
    "medseg": lambda: step(medseg("auto")),
    "medseg:torch": lambda: step(medseg("torch")),
}


if __name__ == "__main__":
    from kernel_table import run_benchmark

    run_benchmark("dice_ce", sys.modules["__main__"])
