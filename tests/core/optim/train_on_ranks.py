"""One rank of a short training under DDP with every optimizer, started by `test_ranks`; writes the last weights.

python train_on_ranks.py WORLD RANK FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from medseg.core import optim

OPTIMIZERS = {
    "adamp": lambda p: optim.AdamP(p, lr=0.01, weight_decay=0.1),
    "sgdp": lambda p: optim.SGDP(p, lr=0.01, momentum=0.9, nesterov=True),
    "lion": lambda p: optim.Lion(p, lr=0.01, kappa="group_l2", weight_decay=0.1),
    "frugal": lambda p: optim.FrugalAdamW(p, lr=0.01, selection="entries", update_gap=2),
    "projected": lambda p: optim.ProjectedOptimizer(optim.AdamP(p, lr=0.01)),
    "surrogate": lambda p: optim.TargetSurrogateOptimizer(optim.AdamP(p, lr=0.01), inner_steps=2),
}
STEPS = 4


def train(make, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Weights after some steps on this rank's share of a batch."""
    torch.manual_seed(0)
    # No bias before the norm: its gradient is rounding noise, which Adam and signs make as large as any.
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)
    )
    model = DistributedDataParallel(network) if world > 1 else network
    optimizer = make(network.parameters())
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        image = torch.randn(4, 1, 8, 8, generator=generator)[rank::world]
        label = (image[:, 0] > 0).long()
        if isinstance(optimizer, optim.TargetSurrogateOptimizer):
            optimizer.step(lambda image=image: model(image), lambda z, y=label: nn.functional.cross_entropy(z, y))
            continue
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(image), label).backward()
        optimizer.step()
    return {name: p.detach().clone() for name, p in network.named_parameters()}


def train_all(rank: int, world: int) -> dict[str, dict[str, torch.Tensor]]:
    return {name: train(make, rank, world) for name, make in OPTIMIZERS.items()}


if __name__ == "__main__":
    world, rank, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    store = f"file://{(folder / 'store').as_posix()}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    torch.save(train_all(rank, world), folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()
