"""Compiled loop of `softmax.py`: a row of at most SLAB voxels at a time, whose classes stay in the first caches."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from medseg.core.kernels.processor import compiled, exp_below_zero, keep_larger, share

SLAB = 256


@compiled
def softmax_rows(memory, classes, rows, width, step_k, step_d, step_h, first, last):  # noqa: ANN001
    """Overwrite the rows from `first` to `last`, counted over the first two axes; each lies in one piece of memory."""
    top, total = np.empty(SLAB, np.float32), np.empty(SLAB, np.float32)
    weights = np.empty((classes, SLAB), np.float32)
    for number in range(first, last):
        begin = (number // rows) * step_d + (number % rows) * step_h
        for start in range(begin, begin + width, SLAB):
            count = min(SLAB, begin + width - start)
            top[:] = -np.float32(np.inf)
            total[:] = np.float32(0)
            for k in range(classes):
                keep_larger(top, memory[start + k * step_k : start + k * step_k + count], count)
            for k in range(classes):
                row, line = memory[start + k * step_k : start + k * step_k + count], weights[k]
                for v in range(count):
                    value = exp_below_zero(row[v] - top[v])
                    line[v] = value
                    total[v] += value
            for v in range(count):
                total[v] = np.float32(1) / total[v]
            for k in range(classes):
                row, line = memory[start + k * step_k : start + k * step_k + count], weights[k]
                for v in range(count):
                    row[v] = line[v] * total[v]


def run(logits: Tensor) -> None:
    """What `softmax.softmax_` does, for up to three spatial axes of which the last is in one piece."""
    if not logits.numel():
        return
    z = logits[(slice(None), *(None,) * (4 - logits.ndim))]
    span = 1 + sum((n - 1) * step for n, step in zip(z.shape, z.stride(), strict=True))
    memory = z.as_strided((span,), (1,)).numpy()
    sizes = (z.shape[0], z.shape[2], z.shape[3], *z.stride()[:3])
    share(lambda first, last: softmax_rows(memory, *sizes, first, last), z.shape[1] * z.shape[2])
