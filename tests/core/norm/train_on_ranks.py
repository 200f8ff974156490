"""One rank of a short training under DDP with every norm that has `sync`, started by `test_ranks`.

python train_on_ranks.py WORLD RANK FOLDER

Writes the last weights, statistics and gradients.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from medseg.core.norm import PowerNorm, UnifiedNorm

NORMS = {
    "power": lambda: PowerNorm(4, warmup_iters=2, sync=True),
    "power, running": lambda: PowerNorm(4, warmup_iters=2, grad_denominator="running", sync=True),
    "unified": lambda: UnifiedNorm(4, window=2, warmup_iters=2, grad_compensation_start=3, sync=True),
}
STEPS = 5


def train(make, rank: int, world: int) -> dict[str, torch.Tensor]:
    """Weights and statistics after some steps on this rank's share of a batch, and the last gradients."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), make(), nn.ReLU(), nn.Conv2d(4, 2, 1))
    # Statistics are equal by themselves; DDP is not to make them so.
    model = DistributedDataParallel(network, broadcast_buffers=False) if world > 1 else network
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        # Items of very different size, so that each rank's own statistics would not do.
        scale = torch.tensor([0.3, 3.0]).repeat(2).reshape(4, 1, 1, 1)
        image = (scale * torch.randn(4, 1, 8, 8, generator=generator))[rank::world]
        label = (image[:, 0] > 0).long()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(image), label).backward()
        optimizer.step()
    gradients = {f"gradient of {name}": p.grad for name, p in network.named_parameters()}
    return network.state_dict() | {name: g.clone() for name, g in gradients.items() if g is not None}


def train_all(rank: int, world: int) -> dict[str, dict[str, torch.Tensor]]:
    return {name: train(make, rank, world) for name, make in NORMS.items()}


if __name__ == "__main__":
    world, rank, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    store = f"file://{(folder / 'store').as_posix()}"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=world)
    torch.save(train_all(rank, world), folder / f"{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()
