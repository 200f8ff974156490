"""A network run by OpenVINO: in float32, which is what int8 is to be held against, and in int8, pruned before or not.

Both run as in `medseg predict` on a processor. Int8 is calibrated on windows at random places of training volumes.
"""

from __future__ import annotations

import copy
import gzip
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from compression_pruning import FLOOR
from compression_task import Compressed, Method, Task, compressed_size

from medseg.core.compress import prune_magnitude
from medseg.inferers import quantize_int8
from medseg.inferers.openvino_backend import OpenVINOModel
from medseg.inferers.openvino_conversion import convert

PRUNED = 0.5


def openvino_methods() -> dict[str, Method]:
    """What can be run with the packages that are installed: OpenVINO, and NNCF for int8."""
    found: dict[str, Method] = {}
    if find_spec("openvino"):
        found["openvino"] = Method("dense, OpenVINO", run_dense)
    if found and find_spec("nncf"):
        found["int8"] = Method("int8, OpenVINO", quantize())
        found[f"int8-{PRUNED}"] = Method(f"scale-aware, floor, {PRUNED:.0%}, int8, OpenVINO", quantize(PRUNED))
    return found


def run_dense(task: Task) -> Compressed:
    """The dense network in float32; its file is that of the weights, as it is converted where it runs."""
    with tempfile.TemporaryDirectory() as name:
        convert(task.network, (1, *task.window), Path(name))
        return Compressed(OpenVINOModel(Path(name), "fp32"), compressed_size(task.network))


def quantize(sparsity: float = 0.0) -> Callable[[Task], Compressed]:
    """Static int8 without training; before it, global magnitude pruning where a sparsity is given."""

    def build(task: Task) -> Compressed:
        network = copy.deepcopy(task.network)
        if sparsity:
            prune_magnitude(network, sparsity, (1, 1, *task.window), FLOOR, scale_aware=True)
        windows = draw_windows([sample.image for sample in task.cohort.train], task.window, task.calibration_windows)
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            summary = quantize_int8(network, windows, folder)
            size = sum(len(gzip.compress((folder / file).read_bytes(), mtime=0)) for file in ("model.xml", "model.bin"))
            return Compressed(OpenVINOModel(folder, "int8"), size, asdict(summary))

    return build


def draw_windows(volumes: Sequence[np.ndarray], window: Sequence[int], count: int, seed: int = 0) -> list[torch.Tensor]:
    """Windows at random places, taking turns with the volumes; small volumes are padded by zeros, as in prediction."""
    generator = np.random.default_rng(seed)
    windows = []
    for index in range(count):
        volume = volumes[index % len(volumes)]
        volume = np.pad(volume, [(0, max(0, n - size)) for n, size in zip(window, volume.shape, strict=True)])
        starts = [int(generator.integers(size - n + 1)) for n, size in zip(window, volume.shape, strict=True)]
        box = tuple(slice(start, start + n) for start, n in zip(starts, window, strict=True))
        windows.append(torch.from_numpy(volume[box].copy())[None])
    return windows
