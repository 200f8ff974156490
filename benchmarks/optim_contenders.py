"""One optimizer on the weights of a 3D U-Net, in a process of its own: seconds a step and bytes of its state, as JSON.

python optim_contenders.py NAME CASE THREADS REPEATS RESULT.json

The weights have the shapes of nnU-Net's 3D U-Net (two 3 x 3 x 3 convolutions with instance norm a level, transposed
convolutions on the way up); they and their gradients are noise, since the time of a step does not depend on values.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from own_process import keep_to_processors, read_peak, release_free_memory, reset_peak

CASES = {"31 M": (32, 64, 128, 256, 320, 320), "0.1 M": (4, 8, 16, 32)}
WARM_UP = 2
Shapes = list[tuple[int, ...]]
Groups = list[dict[str, Any]]


def unet_shapes(widths: Sequence[int]) -> dict[str, Shapes]:
    """Shapes of the weights: convolutions under a norm, other matrices, and vectors."""
    normed, others, vectors = [], [], []
    for before, width in zip((1, *widths), widths, strict=False):
        normed += [(width, before, 3, 3, 3), (width, width, 3, 3, 3)]
        vectors += [(width,)] * 4
    for below, width in zip(widths[::-1], widths[-2::-1], strict=False):
        others.append((below, width, 2, 2, 2))
        normed += [(width, 2 * width, 3, 3, 3), (width, width, 3, 3, 3)]
        vectors += [(width,)] * 4
    return {"normed": normed, "others": [*others, (3, widths[0], 1, 1, 1)], "vectors": vectors}


def make_groups(widths: Sequence[int], *, known: bool) -> Groups:
    """Weights with gradients, in one group, or in groups that tell what is scale-invariant."""
    generator = torch.Generator().manual_seed(0)

    def weight(shape: tuple[int, ...]) -> torch.nn.Parameter:
        made = torch.nn.Parameter(0.05 * torch.randn(shape, generator=generator))
        made.grad = 1e-3 * torch.randn(shape, generator=generator)
        return made

    kinds = {kind: [weight(shape) for shape in shapes] for kind, shapes in unet_shapes(widths).items()}
    if not known:
        return [{"params": [p for params in kinds.values() for p in params]}]
    return [
        {"params": kinds["normed"], "scale_invariant": True},
        {"params": kinds["others"], "scale_invariant": "cosine", "channel_dim": 1},
        {"params": kinds["vectors"], "scale_invariant": False},
    ]


def torch_adamw(groups: Groups, **way: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=1e-3, weight_decay=1e-2, **way)


def torch_sgd(groups: Groups) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=1e-2, momentum=0.9, weight_decay=1e-4, foreach=True)


def of_pytorch_optimizer(groups: Groups, *, name: str, **options: Any) -> torch.optim.Optimizer:
    import pytorch_optimizer

    return getattr(pytorch_optimizer, name)(groups, lr=1e-3, weight_decay=1e-2, **options)


def of_medseg(groups: Groups, *, name: str, **options: Any) -> torch.optim.Optimizer:
    from medseg.core import optim

    return getattr(optim, name)(groups, lr=1e-3, weight_decay=1e-2, **options)


CONTENDERS: dict[str, Callable[[Groups], torch.optim.Optimizer]] = {
    "torch AdamW, fused": partial(torch_adamw, fused=True),
    "torch AdamW, foreach": partial(torch_adamw, foreach=True),
    "torch AdamW, loop": partial(torch_adamw, foreach=False),
    "torch SGD, foreach": torch_sgd,
    "pytorch_optimizer AdamP, loop": partial(of_pytorch_optimizer, name="AdamP"),
    "pytorch_optimizer AdamP, foreach": partial(of_pytorch_optimizer, name="AdamP", foreach=True),
    "medseg AdamP": partial(of_medseg, name="AdamP"),
    "medseg AdamP, known": partial(of_medseg, name="AdamP"),
    "pytorch_optimizer SGDP, loop": partial(of_pytorch_optimizer, name="SGDP", momentum=0.9),
    "medseg SGDP": partial(of_medseg, name="SGDP", momentum=0.9),
    "pytorch_optimizer Lion, loop": partial(of_pytorch_optimizer, name="Lion"),
    "medseg Lion": partial(of_medseg, name="Lion"),
    "medseg Lion, bfloat16": partial(of_medseg, name="Lion", state_dtype="bfloat16"),
    "medseg FRUGAL, block": partial(of_medseg, name="FrugalAdamW"),
    "medseg FRUGAL, columns": partial(of_medseg, name="FrugalAdamW", selection="columns"),
    "medseg FRUGAL, entries": partial(of_medseg, name="FrugalAdamW", selection="entries"),
}


def state_bytes(optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of all tensors in the state, by name."""
    found: dict[str, int] = {}
    for state in optimizer.state.values():
        for name, value in state.items():
            if torch.is_tensor(value):
                found[name] = found.get(name, 0) + value.numel() * value.element_size()
    return found


def measure(name: str, widths: Sequence[int], threads: int, repeats: int) -> dict[str, Any]:
    """Warm up, then steps whose time counts, then one whose growth of memory counts."""
    torch.set_num_threads(threads)
    groups = make_groups(widths, known=name.endswith("known"))
    optimizer = CONTENDERS[name](groups)
    for _ in range(WARM_UP):
        optimizer.step()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - start)
    release_free_memory()
    before = reset_peak()
    optimizer.step()
    weights = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    state = state_bytes(optimizer)
    return {"seconds": seconds, "growth_bytes": read_peak() - before, "state": state, "weights": weights}


if __name__ == "__main__":
    contender, case, threads, repeats, result = sys.argv[1:]
    keep_to_processors(int(threads))
    found = measure(contender, CASES[case], int(threads), int(repeats))
    Path(result).write_text(json.dumps(found), encoding="utf-8")
