"""Time and memory of trilinear upsampling and argmax beside PyTorch, in one run; see README.md here.

Logits of 25 classes on half the grid in every direction, smooth, float32. `torch` interpolates all classes and takes
the argmax, `compile` does the same through `torch.compile`, `classwise` interpolates one class after the other and
keeps the best, `medseg:torch` is our own in plain PyTorch (MEDSEG_KERNELS=torch). The value compared is the mean label
of every 64th voxel.

    python benchmarks/upsample_argmax.py --threads 2 --repeats 3 --rounds 3 -o benchmarks/results
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

CASES = {"25 x 64^3 to 128^3": (25, 64), "25 x 80^3 to 160^3": (25, 80)}
WARM_UP = (3, 4)
PEER = "torch"


def make_inputs(case: tuple[int, int]) -> Tensor:
    """Logits of smooth noise, so that classes form regions."""
    classes, extent = case
    noise = 4 * torch.randn(1, classes, 8, 8, 8, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(noise, (extent,) * 3, mode="trilinear")


def dense(logits: Tensor) -> Tensor:
    return functional.interpolate(logits, scale_factor=2, mode="trilinear").argmax(1)


def classwise(logits: Tensor) -> Tensor:
    best = functional.interpolate(logits[:, :1], scale_factor=2, mode="trilinear")
    labels = torch.zeros(best.shape, dtype=torch.uint8)
    for k in range(1, logits.shape[1]):
        values = functional.interpolate(logits[:, k : k + 1], scale_factor=2, mode="trilinear")
        labels.masked_fill_(values > best, k)
        torch.maximum(best, values, out=best)
    return labels


def medseg(backend: str) -> Callable[[Tensor], Tensor]:
    from medseg.core.kernels import upsample_argmax

    os.environ["MEDSEG_KERNELS"] = backend
    return lambda logits: upsample_argmax(logits, [2 * n for n in logits.shape[2:]])


def step(find: Callable[[Tensor], Tensor]) -> Callable[[Tensor], float]:
    """A run that gives the mean label of every 64th voxel; a mean of all would need a copy."""
    return lambda logits: find(logits)[..., ::4, ::4, ::4].double().mean().item()


CONTENDERS: dict[str, Callable[[], Callable[[Tensor], float]]] = {
    "torch": lambda: step(dense),
    "compile": lambda: step(torch.compile(dense)),
    "classwise": lambda: step(classwise),
    "medseg": lambda: step(medseg("auto")),
    "medseg:torch": lambda: step(medseg("torch")),
}


if __name__ == "__main__":
    from kernel_table import run_benchmark

    run_benchmark("upsample_argmax", sys.modules["__main__"])
