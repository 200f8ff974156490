"""One rank of a run with AdaWAC, started by `test_adawac_trainer` alone and under torchrun; writes what it ended with.

python -m tests.engines.adawac_ranks FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from torch import distributed

from medseg.engines import AdaWACTrainer
from medseg.losses import AdaptiveWeightedConsistencyLoss
from medseg.networks import FeatureTap

SAMPLES, BATCH, STEPS = 12, 4, 6


def make_batches(rank: int, world: int) -> list[dict[str, torch.Tensor]]:
    """The same batches however many ranks share them; sample 3 stands twice in each."""
    random = torch.Generator().manual_seed(0)
    images = torch.rand(SAMPLES, 1, 8, 8, generator=random)
    batches = []
    for _ in range(STEPS):
        ids = torch.cat((torch.randperm(SAMPLES, generator=random)[: BATCH - 2], torch.tensor([3, 3])))
        ids = ids[torch.randperm(BATCH, generator=random)]
        part = ids[rank * BATCH // world : (rank + 1) * BATCH // world]
        view = images[part]
        views = {"image": view, "image_view2": view.flip(2), "label": view > 0.5, "label_view2": view.flip(2) > 0.5}
        batches.append({**views, "sample_id": part})
    return batches


def make_trainer(batches: list[dict[str, torch.Tensor]], epochs: int, **more: object) -> AdaWACTrainer:
    """Dice is that of a rank's own batch, so it stays out where ranks are compared."""
    torch.manual_seed(1)
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Tanh(), torch.nn.Conv2d(4, 2, 1))
    tap: torch.nn.Module = FeatureTap(network, "1")
    if distributed.is_initialized():
        tap = torch.nn.parallel.DistributedDataParallel(tap)
    loss = AdaptiveWeightedConsistencyLoss(SAMPLES, step_size=2.0, consistency_weight=9.0, dice_weight=0.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
    return AdaWACTrainer("cpu", epochs, batches, tap, optimizer, loss, **more)


def share_uneven_batches(rank: int, world: int) -> AdaptiveWeightedConsistencyLoss:
    """A table that ranks fill with batches of different length, one empty, one with a loss that is not finite."""
    loss = AdaptiveWeightedConsistencyLoss(5, step_size=1.0, max_logit=2.0)
    steps = [([[0, 1], [4]], [[1.0, 2.5], [0.5]]), ([[], [2, 2, 0]], [[], [0.25, 0.5, float("nan")]])]
    for ids, gaps in steps:
        if world == 1:
            ids, gaps = [ids[0] + ids[1]], [gaps[0] + gaps[1]]
        own = torch.tensor(gaps[rank])
        loss.update(torch.tensor(ids[rank], dtype=torch.int64), own, torch.zeros_like(own))
    return loss


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        distributed.init_process_group("gloo")
    trainer = make_trainer(make_batches(rank, world), epochs=2)
    trainer.run()
    uneven = share_uneven_batches(rank, world)
    content = {"loss": trainer.state_dict()["loss"], "uneven": uneven.state_dict()}
    network = trainer.network.module if world > 1 else trainer.network
    torch.save({**content, "network": network.state_dict()}, folder / f"{world}-{rank}.pt")
    if world > 1:
        # A rank that leaves while the other still talks to it aborts.
        distributed.barrier()
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
