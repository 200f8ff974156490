"""Time and memory of a training step of MONAI's DynUNet with norm and activation in one layer; see README.md here.

Instance norms with scale and shift, LeakyReLU, two convolutions a level, four levels of 16 to 128 channels, 4 classes,
Dice and cross-entropy, float32, forward and backward, channels first and channels_last_3d. `eager` is the network as
MONAI builds it, `compile` the same through `torch.compile`, `medseg` after `fuse_norm_act`. The value compared is the
loss.

    python benchmarks/norm_step.py --contenders eager medseg --threads 1 --rounds 2 -o benchmarks/results
    python benchmarks/norm_step.py paired

The second takes both in turns in one process with one thread, which shows a difference of a few percent that processes
of their own on a busy machine do not: quartiles of `medseg` / `eager` over pairs of steps.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from statistics import quantiles
from typing import Any

import torch
from torch import Tensor, nn

CASES = {"1 x 1 x 48^3": (48, False), "1 x 1 x 48^3, channels last": (48, True)}
WARM_UP = (16, False)
PEER = "eager"
Inputs = tuple[Tensor, Tensor, torch.memory_format]


def make_inputs(case: tuple[int, bool]) -> Inputs:
    """An image of normal noise, labels at random, and the memory format of the network."""
    size, last = case
    generator = torch.Generator().manual_seed(0)
    image = torch.randn((1, 1, size, size, size), generator=generator)
    target = torch.randint(0, 4, image.shape, generator=generator)
    return image, target, torch.channels_last_3d if last else torch.contiguous_format


def build(change: Callable[[nn.Module], Any]) -> Callable[[Inputs], float]:
    """A training step, without the optimizer's, of the network that `change` makes of MONAI's."""
    from monai.networks.nets import DynUNet

    from medseg.losses import DiceCELoss

    torch.manual_seed(0)
    norm = ("instance", {"affine": True})
    network: Any = DynUNet(3, 1, 4, [3] * 4, [1, 2, 2, 2], [2] * 3, filters=[16, 32, 64, 128], norm_name=norm)
    network = change(network)
    loss = DiceCELoss(to_onehot_y=True, softmax=True)

    def step(inputs: Inputs) -> float:
        image, target, memory_format = inputs
        network.to(memory_format=memory_format)
        value = loss(network(image.to(memory_format=memory_format)), target)
        value.backward()
        network.zero_grad()
        return value.item()

    return step


def fuse(network: nn.Module) -> nn.Module:
    from medseg.core.norm import fuse_norm_act

    fuse_norm_act(network)
    return network


CONTENDERS: dict[str, Callable[[], Callable[[Inputs], float]]] = {
    "eager": lambda: build(lambda network: network),
    "compile": lambda: build(torch.compile),
    "medseg": lambda: build(fuse),
}


def compare_in_turns(pairs: int = 12) -> None:
    """Print quartiles of the ratio of processor seconds over pairs of steps."""
    torch.set_num_threads(1)
    for name, case in CASES.items():
        inputs = make_inputs(case)
        steps = [CONTENDERS[contender]() for contender in ("eager", "medseg")]
        seconds = []
        for _ in range(pairs + 1):
            times = [time.process_time()]
            for step in steps:
                step(inputs)
                times.append(time.process_time())
            seconds.append((times[1] - times[0], times[2] - times[1]))
        ratios = quantiles((ours / theirs for theirs, ours in seconds[1:]), n=4)  # the first pair warms up
        print(f"{name}: " + ", ".join(f"{ratio:.3f}" for ratio in ratios), flush=True)


if __name__ == "__main__":
    from kernel_table import run_benchmark

    if sys.argv[1:] == ["paired"]:
        compare_in_turns()
    else:
        run_benchmark("norm_step", sys.modules["__main__"])
