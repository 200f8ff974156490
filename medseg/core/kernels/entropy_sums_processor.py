"""Compiled loops of `entropy_sums.py` for a CPU, up to float32: slabs of 256 voxels, so that caches hold a slab."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.core.kernels.class_sums_processor import PART, SLAB, _exponentiate
from medseg.core.kernels.processor import compiled, dot, exp_below_zero, share


@compiled
def _prepare(z, start, count, softmax, top, weights, total, log_total):  # noqa: ANN001
    if softmax:
        _exponentiate(z, start, count, top, weights, total)
        for v in range(count):
            log_total[v] = np.log(total[v])
            total[v] = np.float32(1) / total[v]


@compiled
def sum_parts(z, m, first, last, softmax, sums):  # noqa: ANN001
    """Fill the rows of `sums` (parts, 2, C) from `first` to `last`."""
    channels = z.shape[0]
    top, total = np.empty(SLAB, np.float32), np.empty(SLAB, np.float32)
    log_total, term = np.empty(SLAB, np.float32), np.empty(SLAB, np.float32)
    weights = np.empty((channels, SLAB), np.float32)
    for part in range(first, last):
        for start in range(part * PART, min((part + 1) * PART, z.shape[1]), SLAB):
            count = min(SLAB, z.shape[1] - start)
            weight = m[start : start + count]
            _prepare(z, start, count, softmax, top, weights, total, log_total)
            for c in range(channels):
                p, row = weights[c], z[c, start : start + count]
                if softmax:
                    for v in range(count):
                        p[v] *= total[v]
                        term[v] = p[v] * (log_total[v] - (row[v] - top[v])) if p[v] != 0 else np.float32(0)
                else:
                    for v in range(count):
                        e = exp_below_zero(-abs(row[v]))
                        # The entropy is that of 1 - p as well: log(1 + e) + |z| min(p, 1 - p).
                        less = e / (np.float32(1) + e)
                        p[v] = less if row[v] < 0 else np.float32(1) - less
                        term[v] = np.log(np.float32(1) + e) + (abs(row[v]) * less if less != 0 else np.float32(0))
                sums[part, 0, c] += dot(term, weight, count)
                sums[part, 1, c] += dot(p, weight, count)


@compiled
def spread_range(gradient, z, m, begin, end, softmax, result):  # noqa: ANN001
    """Write the gradient of the voxels from `begin` to `end`."""
    channels = z.shape[0]
    top, total = np.empty(SLAB, np.float32), np.empty(SLAB, np.float32)
    log_total, amount = np.empty(SLAB, np.float32), np.empty(SLAB, np.float32)
    weights = np.empty((channels, SLAB), np.float32)
    for start in range(begin, end, SLAB):
        count = min(SLAB, end - start)
        weight = m[start : start + count]
        _prepare(z, start, count, softmax, top, weights, total, log_total)
        amount[:] = np.float32(0)
        for c in range(channels):
            p, row, out = weights[c], z[c, start : start + count], result[c, start : start + count]
            a, b = gradient[0, c], gradient[1, c]
            if softmax:
                for v in range(count):
                    p[v] *= total[v]
                    slope = b - a * ((row[v] - top[v]) - log_total[v] + np.float32(1))
                    out[v] = p[v] * slope if p[v] != 0 else np.float32(0)
                    amount[v] += out[v]
            else:
                for v in range(count):
                    e = exp_below_zero(-abs(row[v]))
                    less = np.float32(1) / (np.float32(1) + e)
                    out[v] = weight[v] * (e * less) * less * (b - a * row[v])
        if softmax:
            for c in range(channels):
                p, out = weights[c], result[c, start : start + count]
                for v in range(count):
                    out[v] = weight[v] * (out[v] - p[v] * amount[v])


def sum_up(logits: Tensor, weight: Tensor | None, activation: str) -> Tensor:
    """What `entropy_sums._sum` returns."""
    result = torch.zeros((logits.shape[0], 2, logits.shape[1]), dtype=torch.float64)
    for i, (z, m) in enumerate(_items(logits, weight)):
        sums = np.zeros((-(-z.shape[1] // PART), 2, z.shape[0]))

        def work(first: int, last: int, z: Any = z, m: Any = m, sums: Any = sums) -> None:
            sum_parts(z, m, first, last, activation == "softmax", sums)

        share(work, len(sums))
        result[i] = torch.from_numpy(sums.sum(0))
    return result.float()


def spread(gradient: Tensor, logits: Tensor, weight: Tensor | None, activation: str) -> Tensor:
    """What `entropy_sums._spread` returns."""
    result = torch.empty_like(logits, memory_format=torch.contiguous_format)
    for i, (z, m) in enumerate(_items(logits, weight)):
        fits = result.dtype == torch.float32
        out = result[i].flatten(1).numpy() if fits else np.empty(z.shape, np.float32)
        inputs = (gradient[i].float().contiguous().numpy(), z, m)

        def work(first: int, last: int, inputs: Any = inputs, out: Any = out) -> None:
            spread_range(*inputs, first * PART, min(last * PART, out.shape[1]), activation == "softmax", out)

        share(work, -(-z.shape[1] // PART))
        if not fits:
            result[i].copy_(torch.from_numpy(out).view(logits.shape[1:]))
    return result


def _items(logits: Tensor, weight: Tensor | None) -> Any:
    """Contiguous float32 logits (C, N) and weights (N,) of each item."""
    for i, z in enumerate(logits.detach()):
        flat = z.flatten(1).float().contiguous()
        m = flat.new_ones(flat.shape[1]) if weight is None else weight[i].flatten().contiguous()
        yield flat.numpy(), m.numpy()
