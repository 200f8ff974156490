"""Time and memory of instance norm and LeakyReLU with their gradients beside MONAI and PyTorch; see README.md here.

`monai` is its `ADN` block in the order N, A, with an affine instance norm, as its networks put it behind a convolution;
`eager` the two functions of PyTorch, `compile` the same through `torch.compile`, `medseg` is `norm_act`. Channels first
and channels_last_3d, float32, forward and backward. The value compared is the mean square of the output.

    python benchmarks/norm.py --threads 2 --repeats 5 --rounds 3 -o benchmarks/results
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

CASES = {
    "1 x 32 x 96^3": ((1, 32, 96, 96, 96), False),
    "1 x 32 x 96^3, channels last": ((1, 32, 96, 96, 96), True),
}
WARM_UP = ((1, 4, 8, 8, 8), True)
PEER = "monai"
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def make_inputs(case: tuple[tuple[int, ...], bool]) -> Inputs:
    """Normal noise with mean 1, a weight and a bias, and a gradient for the output."""
    shape, last = case
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(shape, generator=generator) for _ in range(2))
    if last:
        x, gradient = (t.to(memory_format=torch.channels_last_3d) for t in (x, gradient))
    channel = torch.linspace(0.5, 1.5, shape[1])
    return (x + 1).requires_grad_(), channel.clone().requires_grad_(), (channel - 1).requires_grad_(), gradient


def step(layer: Layer) -> Callable[[Inputs], float]:
    """A run forward and backward that gives the mean square of the output."""

    def run(inputs: Inputs) -> float:
        *leaves, gradient = inputs
        y = layer(*leaves)
        torch.autograd.grad(y, leaves, gradient)
        return y.detach().square().mean().item()

    return run


def monai() -> Layer:
    from monai.networks.blocks import ADN

    act = ("leakyrelu", {"inplace": True, "negative_slope": 0.01})

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        block = ADN("NA", x.shape[1], act=act, norm=("instance", {"affine": True}), norm_dim=3)
        return torch.func.functional_call(block, {"N.weight": weight, "N.bias": bias}, (x,))

    return run


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.leaky_relu(functional.instance_norm(x, weight=weight, bias=bias), 0.01)


def medseg() -> Layer:
    from medseg.core.kernels import norm_act

    return lambda x, weight, bias: norm_act(x, weight, bias, act="leaky_relu")


CONTENDERS: dict[str, Callable[[], Callable[[Inputs], float]]] = {
    "monai": lambda: step(monai()),
    "eager": lambda: step(eager),
    "compile": lambda: step(torch.compile(eager)),
    "medseg": lambda: step(medseg()),
}


if __name__ == "__main__":
    from kernel_table import run_benchmark

    run_benchmark("norm", sys.modules["__main__"])
