"""Time and memory of the Dice and cross-entropy loss, forward and backward, beside MONAI and eager PyTorch, in one run.

Float32; softmax and class ids, softmax and one-hot masks, or a sigmoid for Dice and one-hot masks. `eager` is the
shortest formulation in PyTorch, `compile` the same through `torch.compile`, `medseg:torch` our own in plain PyTorch
(MEDSEG_KERNELS=torch). The value compared is the loss. See README.md here.

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
    "1 x 14 x 96^3": ((1, 14, 96, 96, 96), "ids"),
    "1 x 105 x 64^3": ((1, 105, 64, 64, 64), "ids"),
    "2 x 2 x 96^3": ((2, 2, 96, 96, 96), "ids"),
    "1 x 14 x 96^3, masks": ((1, 14, 96, 96, 96), "masks"),
    "1 x 14 x 96^3, sigmoid": ((1, 14, 96, 96, 96), "sigmoid"),
}
WARM_UP = ((1, 3, 8, 8, 8), "masks")
PEER = "monai"
Inputs = tuple[Tensor, Tensor, str]
Loss = Callable[[Tensor, Tensor, str], Tensor]


def make_inputs(case: tuple[tuple[int, ...], str]) -> Inputs:
    """Logits of normal noise, and classes at random."""
    shape, kind = case
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, shape[1], (shape[0], 1, *shape[2:]), generator=generator)
    logits = torch.randn(shape, generator=generator).requires_grad_()
    if kind == "ids":
        return logits, target, kind
    return logits, torch.zeros(shape).scatter_(1, target, 1), kind


def step(loss: Loss) -> Callable[[Inputs], float]:
    """A run forward and backward that gives the loss."""

    def run(inputs: Inputs) -> float:
        value = loss(*inputs)
        torch.autograd.grad(value, inputs[0])
        return value.item()

    return run


def eager(logits: Tensor, target: Tensor, kind: str) -> Tensor:
    p = logits.sigmoid() if kind == "sigmoid" else logits.softmax(1)
    y = torch.zeros_like(p).scatter_(1, target, 1) if kind == "ids" else target
    axes = (2, 3, 4)
    dice = 1 - (2 * (p * y).sum(axes) + 1e-5) / (p.sum(axes) + y.sum(axes) + 1e-5)
    return dice.mean() + functional.cross_entropy(logits, target[:, 0] if kind == "ids" else target)


def build(cls: Callable[..., torch.nn.Module]) -> Loss:
    def run(logits: Tensor, target: Tensor, kind: str) -> Tensor:
        return cls(to_onehot_y=kind == "ids", sigmoid=kind == "sigmoid", softmax=kind != "sigmoid")(logits, target)

    return run


def monai() -> Loss:
    from monai.losses import DiceCELoss

    return build(DiceCELoss)


def medseg(backend: str) -> Loss:
    from medseg.losses import DiceCELoss

    os.environ["MEDSEG_KERNELS"] = backend
    loss = build(DiceCELoss)
    if backend == "auto":  # compile the loops of the other kinds as well
        for kind in ("ids", "sigmoid"):
            step(loss)(make_inputs((WARM_UP[0], kind)))
    return loss


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
