"""One contender on one case in a process of its own: seconds of each run and growth of memory, as JSON.

python topology_contenders.py NAME CASE THREADS REPEATS RESULT.json
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from own_process import keep_to_processors, read_peak, release_free_memory, reset_peak
from scipy.ndimage import gaussian_filter

# Number of images and their shape.
CASES = {
    "128^2": (1, (128, 128)),
    "256^2": (1, (256, 256)),
    "512^2": (1, (512, 512)),
    "48 x 48^2": (48, (48, 48)),
    "32^3": (1, (32, 32, 32)),
    "48^3": (1, (48, 48, 48)),
    "64^3": (1, (64, 64, 64)),
    "96^3": (1, (96, 96, 96)),
    "4 x 256^2": (4, (256, 256)),
    "4 x 48^3": (4, (48, 48, 48)),
    "4 x 64^3": (4, (64, 64, 64)),
}
WARM_UP = {"image": (1, (12, 12)), "volume": (1, (8, 8, 8))}
Images = np.ndarray


def make_case(items: int, shape: tuple[int, ...], seed: int = 0) -> tuple[Images, Images]:
    """Likelihoods and binary targets, (items, 1, *shape), float32.

    The likelihood is a sigmoid of smooth noise (sigma 3) plus half as much finer noise (sigma 1); the target is where
    the smooth part is positive.
    """
    rng = np.random.default_rng(seed)
    preds, targets = np.empty((2, items, 1, *shape), np.float32)
    for i in range(items):
        smooth, fine = (gaussian_filter(rng.normal(size=shape), sigma) for sigma in (3, 1))
        smooth, fine = smooth / smooth.std(), fine / fine.std()
        preds[i, 0] = 1 / (1 + np.exp(-2 * (smooth + 0.5 * fine)))
        targets[i, 0] = smooth > 0
    return preds, targets


def medseg_loss(threads: int) -> Callable[[Images, Images], float]:
    from medseg.losses import BettiMatchingLoss

    return _loss(BettiMatchingLoss(num_threads=threads), threads)


def topolosses_loss(threads: int) -> Callable[[Images, Images], float]:
    from topolosses.losses import BettiMatchingLoss

    return _loss(BettiMatchingLoss(use_base_loss=False, num_processes=threads), threads)


def gudhi_barcode(threads: int) -> Callable[[Images, Images], float]:
    """The barcode of each prediction alone, without matching; one thread whatever is asked for."""
    import gudhi

    def run(preds: Images, targets: Images) -> float:
        for pred in preds[:, 0]:
            gudhi.CubicalComplex(vertices=1 - pred).persistence()
        return float("nan")

    return run


def medseg_barcode(threads: int) -> Callable[[Images, Images], float]:
    """The same barcodes from medseg."""
    from medseg.topology import persistence_barcode

    def run(preds: Images, targets: Images) -> float:
        for pred in preds[:, 0]:
            persistence_barcode(pred)
        return float("nan")

    return run


CONTENDERS = {
    "topolosses": topolosses_loss,
    "medseg": medseg_loss,
    "gudhi barcode": gudhi_barcode,
    "medseg barcode": medseg_barcode,
}


def _loss(loss: Callable, threads: int) -> Callable[[Images, Images], float]:
    import torch

    torch.set_num_threads(threads)

    def run(preds: Images, targets: Images) -> float:
        pred = torch.from_numpy(preds).requires_grad_()
        value = loss(pred, torch.from_numpy(targets))
        value.backward()
        return value.item()

    return run


def measure(name: str, case: str, threads: int, repeats: int) -> dict[str, object]:
    """Warm up on tiny images, which compiles or loads all code, then run the case."""
    keep_to_processors(threads)
    start = time.perf_counter()
    run = CONTENDERS[name](threads)
    first = {"imports": time.perf_counter() - start}
    for kind, shape in WARM_UP.items():
        start = time.perf_counter()
        run(*make_case(*shape))
        first[kind] = time.perf_counter() - start
    images = make_case(*CASES[case])
    release_free_memory()
    before = reset_peak()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        value = run(*images)
        seconds.append(time.perf_counter() - start)
    return {"seconds": seconds, "first": first, "growth_bytes": read_peak() - before, "loss": value}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    contender, case, threads, repeats, result = sys.argv[1:]
    found = measure(contender, case, int(threads), int(repeats))
    Path(result).write_text(json.dumps(found), encoding="utf-8")
