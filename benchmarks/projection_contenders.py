"""One contender on one case in a process of its own: seconds forward and backward and growth of memory, as JSON.

python projection_contenders.py NAME CASE DEVICE THREADS REPEATS RESULT.json

The eager formulation, in float32 on a CPU and bfloat16 on a GPU:

    probabilities = sigmoid of the whole volume;   loss = mean over the axes a of FocalTversky(amax_a p, amax_a y)

The projections alone leave out sigmoid, label and base loss.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from own_process import keep_to_processors, read_peak, release_free_memory, reset_peak

CASES = {
    "2 x 1 x 64^3": (2, 1, 64, 64, 64),
    "2 x 1 x 128^3": (2, 1, 128, 128, 128),
    "2 x 2 x 192^3": (2, 2, 192, 192, 192),
}
WARM_UP = (1, 1, 8, 8, 8)
GPU_LOOPS = 50  # calls in one measured stretch, since launches return before the work is done
Inputs = tuple[torch.Tensor, torch.Tensor]
Outputs = list[torch.Tensor]
Step = tuple[float, float, float]
T = TypeVar("T")


def make_case(shape: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and a label with 2 % foreground at random, float32; logits are normal noise, 4 higher there."""
    generator = torch.Generator().manual_seed(seed)
    label = (torch.rand(shape, generator=generator) < 0.02).float()
    return torch.randn(shape, generator=generator) + 4 * label, label


def eager_loss() -> Callable[[torch.Tensor, torch.Tensor], Outputs]:
    from medseg.losses import FocalTverskyLoss

    base = FocalTverskyLoss()

    def run(logits: torch.Tensor, label: torch.Tensor) -> Outputs:
        p = torch.sigmoid(logits)
        return [torch.stack([base(p.amax(dim), label.amax(dim)) for dim in (2, 3, 4)]).mean()]

    return run


def medseg_loss() -> Callable[[torch.Tensor, torch.Tensor], Outputs]:
    from medseg.losses import MIPLoss

    loss = MIPLoss(sigmoid=True)
    return lambda logits, label: [loss(logits, label)]


def eager_projections() -> Callable[[torch.Tensor, torch.Tensor], Outputs]:
    return lambda logits, label: [logits.amax(dim) for dim in (2, 3, 4)]


def medseg_projections() -> Callable[[torch.Tensor, torch.Tensor], Outputs]:
    from medseg.core.kernels import max_projections

    return lambda logits, label: [one.values for one in max_projections(logits)]


CONTENDERS = {
    "eager loss": eager_loss,
    "medseg loss": medseg_loss,
    "eager projections": eager_projections,
    "medseg projections": medseg_projections,
}


def measure(name: str, shape: tuple[int, ...], device: str, threads: int, repeats: int) -> dict[str, object]:
    """Warm up, then one run whose memory counts, then `repeats` runs whose time counts.

    On a CPU the warm-up is tiny, so that no memory of the size measured is already held.
    """
    torch.set_num_threads(threads)
    run = CONTENDERS[name]()
    _run_once(run, _prepare(shape if device == "cuda" else WARM_UP, device), loops=1)
    inputs = _prepare(shape, device)
    before = _start_memory(device)
    _, _, value = _run_once(run, inputs, loops=1)
    growth = _read_memory(device) - before
    steps = [_run_once(run, inputs, loops=GPU_LOOPS if device == "cuda" else 1) for _ in range(repeats)]
    forward, backward, _ = (list(column) for column in zip(*steps, strict=True))
    return {"forward": forward, "backward": backward, "growth_bytes": growth, "value": value}


def _prepare(shape: tuple[int, ...], device: str) -> Inputs:
    logits, label = make_case(shape)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    return logits.to(device, dtype), label.to(device, dtype)


def _run_once(run: Callable[[torch.Tensor, torch.Tensor], Outputs], inputs: Inputs, loops: int) -> Step:
    """Seconds forward and backward, and the sum of the outputs."""
    logits, label = inputs[0].detach().requires_grad_(), inputs[1]
    forward, outputs = _time(lambda: run(logits, label), logits.device, loops)
    ones = [torch.ones_like(output) for output in outputs]
    backward, _ = _time(
        lambda: torch.autograd.grad(outputs, logits, ones, retain_graph=loops > 1), logits.device, loops
    )
    return forward, backward, sum(output.sum().item() for output in outputs)


def _time(run: Callable[[], T], device: torch.device, loops: int) -> tuple[float, T]:
    _wait(device)
    start = time.perf_counter()
    result = run()
    for _ in range(loops - 1):
        result = run()
    _wait(device)
    return (time.perf_counter() - start) / loops, result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _start_memory(device: str) -> int:
    """Begin a record of the peak, and give what is held now."""
    if device != "cuda":
        release_free_memory()
        return reset_peak()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _read_memory(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else read_peak()


if __name__ == "__main__":
    contender, case, device, threads, repeats, result = sys.argv[1:]
    keep_to_processors(int(threads))
    found = measure(contender, CASES[case], device, int(threads), int(repeats))
    Path(result).write_text(json.dumps(found), encoding="utf-8")
