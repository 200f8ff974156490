"""One way of training on sets of segmentations in a process of its own: seconds and memory of each step, as JSON.

python sample_set_contenders.py NAME CASE THREADS REPEATS RESULT.json

All take the same step: encode image and annotation, draw samples from the posterior, distance of the samples to all
annotations plus KL, backward, one step of Adam. Weights, image, annotations and noise are the same.

    medseg ...        features once for all samples; distances as sums of differences
    published ...     the whole U-Net anew for every sample; distances by geomloss, from a Gram matrix
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from own_process import keep_to_processors, read_peak, release_free_memory, reset_peak
from torch.distributions import kl_divergence

from medseg.data import make_rater_phantom
from medseg.losses import ProbabilisticSegLoss, SampleSetLoss
from medseg.networks import ProbabilisticUNet

# Side of the volume, samples and annotations, features of the finest level.
CASES = {
    "64^3, 10 x 10, 24 features": (64, 10, 24),
    "64^3, 10 x 10, 8 features": (64, 10, 8),
    "32^3, 4 x 4, 4 features": (32, 4, 4),
}
RATERS = ("over", "under", "misses_small", "first_lobe", "second_lobe")
Step = Callable[[], torch.Tensor]


def make_case(side: int, count: int, features: int) -> dict[str, Any]:
    """Network, image (1, 1, ...), annotations (1, count, 1, ...) and noise (count, latent)."""
    image, drawn = make_rater_phantom((side,) * 3, raters=(RATERS * count)[:count], seed=0)
    torch.manual_seed(0)
    network = ProbabilisticUNet(3, features=features, depth=5 if side >= 64 else 4)
    return {
        "network": network,
        "image": torch.from_numpy(image)[None, None],
        "annotations": torch.from_numpy(drawn).float()[None, :, None],
        "noise": torch.randn(count, network.latent_dim),
    }


def medseg_step(distance: str, case: dict[str, Any]) -> Step:
    network, image, annotations, noise = case.values()
    solver = "sinkhorn" if distance == "sinkhorn" else "exact"
    loss = ProbabilisticSegLoss(SampleSetLoss(distance, solver=solver, sigmoid=True))
    return lambda: loss(network(image, annotations[:, 0], len(noise), noise), annotations)


def published_step(distance: str, case: dict[str, Any]) -> Step:
    from geomloss import SamplesLoss

    network, image, annotations, noise = case.values()
    compare = SamplesLoss("energy") if distance == "energy" else SamplesLoss("sinkhorn", p=2, blur=0.05, scaling=0.5)
    targets = annotations.flatten(2)

    def step() -> torch.Tensor:
        prior, posterior = network.encode(image, annotations[:, 0])
        samples = torch.cat([network.sample(image, 1, posterior, noise[k : k + 1]) for k in range(len(noise))], dim=1)
        distances = compare(samples.sigmoid().flatten(2), targets)
        return distances.mean() + kl_divergence(posterior, prior).sum()

    return step


CONTENDERS = {
    f"{name} {distance}": (build, distance)
    for distance in ("energy", "sinkhorn")
    for name, build in (("published", published_step), ("medseg", medseg_step))
}


def measure(name: str, case: str, threads: int, repeats: int) -> dict[str, Any]:
    """Warm up on a small case, then take steps."""
    keep_to_processors(threads)
    torch.set_num_threads(threads)
    build, distance = CONTENDERS[name]
    build(distance, make_case(32, 2, 2))().backward()
    material = make_case(*CASES[case])
    step, optimizer = build(distance, material), torch.optim.Adam(material["network"].parameters(), 1e-4)
    for parameter in material["network"].parameters():
        # Gradients and the optimiser's state are the same for all; they are there before memory is measured.
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    release_free_memory()
    before, seconds, processor, losses = reset_peak(), [], [], []
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        optimizer.zero_grad(set_to_none=False)
        loss = step()
        loss.backward()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - used)
        losses.append(loss.item())
    return {
        "seconds": seconds,
        "processor_seconds": processor,
        "growth_bytes": read_peak() - before,
        "loss": losses[0],
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    contender, case, threads, repeats, result = sys.argv[1:]
    found = measure(contender, case, int(threads), int(repeats))
    Path(result).write_text(json.dumps(found), encoding="utf-8")
