"""Compiled loops of `class_sums.py` for the usual case on a CPU: softmax, class ids, float32.

A part of the voxels is walked in slabs of 256, whose exponentials stay in the first caches; beside the gradient nothing
of the size of the logits is written. Sums of a slab are in float32, sums of slabs in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.core.kernels.processor import compiled, dot, exp_below_zero, keep_larger, share

SLAB = 256
PART = 2**14  # voxels; how they are cut decides the last bits of sums, so it depends on nothing


@compiled
def _exponentiate(z, start, count, top, weights, total):  # noqa: ANN001
    """Fill largest logit, exponentials below it, and their sums, for some voxels.

    The first walk copies: rows of a volume whose size is a multiple of a page share few places in a cache, and would
    have to be fetched from memory again.
    """
    top[:] = -np.float32(np.inf)
    total[:] = np.float32(0)
    for c in range(z.shape[0]):
        row, line = z[c, start : start + count], weights[c]
        for v in range(count):
            line[v] = row[v]
        keep_larger(top, line, count)
    for c in range(z.shape[0]):
        line = weights[c]
        for v in range(count):
            line[v] = exp_below_zero(line[v] - top[v])
        for v in range(count):
            total[v] += line[v]


@compiled
def sum_part(z, ids, first, last, power, gamma, sums):  # noqa: ANN001
    """Add the six sums of some voxels to `sums` (6, C); ids without a channel do not count."""
    channels = z.shape[0]
    top, total, inverse = np.empty(SLAB, np.float32), np.empty(SLAB, np.float32), np.empty(SLAB, np.float32)
    counts = np.empty(SLAB, np.float32)
    weights = np.empty((channels, SLAB), np.float32)
    for start in range(first, last, SLAB):
        count = min(SLAB, last - start)
        _exponentiate(z, start, count, top, weights, total)
        for v in range(count):
            counts[v] = np.float32(1) if 0 <= ids[start + v] < channels else np.float32(0)
            inverse[v] = counts[v] / total[v]
        log_totals = 0.0
        voxels = 0.0
        for v in range(count):
            c = ids[start + v]
            if 0 <= c < channels:
                log_total = np.log(total[v])
                log_p = z[c, start + v] - top[v] - log_total
                p = weights[c, v] * inverse[v]
                sums[0, c] += p
                sums[2, c] += 1.0
                rest = max(1.0 - p, 1e-14)
                sums[3, c] -= log_p if gamma == 0 else log_p * rest**gamma
                log_totals += log_total
                voxels += 1.0
        for c in range(channels):
            line = weights[c]
            row = z[c, start : start + count]
            if power == 1:
                sums[1, c] += dot(line, inverse, count)
            else:
                for v in range(count):
                    line[v] *= inverse[v]
                sums[1, c] += dot(line, line, count)
            for v in range(count):
                line[v] = (row[v] - top[v]) * counts[v]
            sums[4, c] += log_totals - dot(line, counts, count)
            sums[5, c] += voxels


@compiled
def sum_parts(z, ids, first, last, power, gamma, sums):  # noqa: ANN001
    """Fill the rows of `sums` (parts, 6, C) from `first` to `last`."""
    for part in range(first, last):
        sum_part(z, ids, part * PART, min((part + 1) * PART, z.shape[1]), power, gamma, sums[part])


@compiled
def spread_part(gradient, z, ids, first, last, power, gamma, result):  # noqa: ANN001
    """Write the gradient of some voxels."""
    channels = z.shape[0]
    top, total, inverse = np.empty(SLAB, np.float32), np.empty(SLAB, np.float32), np.empty(SLAB, np.float32)
    own, amount = np.empty(SLAB, np.float32), np.empty(SLAB, np.float32)
    weights = np.empty((channels, SLAB), np.float32)
    rests = np.float32(0)
    for c in range(channels):
        rests += gradient[4, c]
    for start in range(first, last, SLAB):
        count = min(SLAB, last - start)
        _exponentiate(z, start, count, top, weights, total)
        for v in range(count):
            inverse[v] = np.float32(1) / total[v]
            amount[v] = np.float32(0)
        for c in range(channels):
            line, slope = weights[c], gradient[1, c]
            if power == 1:
                for v in range(count):
                    line[v] *= inverse[v]
                    amount[v] += slope * line[v]
            else:
                for v in range(count):
                    line[v] *= inverse[v]
                    amount[v] += np.float32(2) * slope * line[v] * line[v]
        for v in range(count):
            c = min(max(ids[start + v], 0), channels - 1)
            p = np.float64(weights[c, v])
            bend = -1.0
            if gamma != 0:
                log_p = z[c, start + v] - top[v] - np.log(total[v])
                rest = max(1.0 - p, 1e-14)
                bend = gamma * p * rest ** (gamma - 1.0) * log_p - rest**gamma
            own[v] = gradient[0, c] * p + gradient[3, c] * bend
            amount[v] += own[v] - rests
        for c in range(channels):
            line, slope, rest = weights[c], gradient[1, c], gradient[4, c]
            out = result[c, start : start + count]
            if power == 1:
                for v in range(count):
                    out[v] = line[v] * (slope - amount[v]) - rest
            else:
                for v in range(count):
                    out[v] = line[v] * (np.float32(2) * slope * line[v] - amount[v]) - rest
        for v in range(count):
            c = ids[start + v]
            if 0 <= c < channels:
                result[c, start + v] += own[v]
            else:
                for k in range(channels):
                    result[k, start + v] = np.float32(0)


def sum_up(logits: Tensor, target: Tensor, how: Any) -> Tensor:
    """What `class_sums._sum` returns."""
    items = []
    for z, ids in _items(logits, target, how.ignore):
        parts = -(-z.shape[1] // PART)
        sums = np.zeros((parts, 6, z.shape[0]))

        def work(first: int, last: int, z: Any = z, ids: Any = ids, sums: Any = sums) -> None:
            sum_parts(z, ids, first, last, how.power, how.gamma, sums)

        share(work, parts)
        items.append(torch.from_numpy(sums.sum(0)))
    return torch.stack(items).float() if items else torch.zeros(0, 6, logits.shape[1])


def spread(gradient: Tensor, logits: Tensor, target: Tensor, how: Any) -> Tensor:
    """What `class_sums._spread` returns."""
    result = torch.empty_like(logits)
    fits = result.is_contiguous() and result.dtype == torch.float32
    for i, (z, ids) in enumerate(_items(logits, target, how.ignore)):
        out = result[i].flatten(1).numpy() if fits else np.empty(z.shape, np.float32)
        g = gradient[i].float().contiguous().numpy()

        def work(first: int, last: int, g: Any = g, z: Any = z, ids: Any = ids, out: Any = out) -> None:
            spread_part(g, z, ids, first * PART, min(last * PART, z.shape[1]), how.power, how.gamma, out)

        share(work, -(-z.shape[1] // PART))
        if not fits:
            result[i].copy_(torch.from_numpy(out).view(logits.shape[1:]))
    return result


def _items(logits: Tensor, target: Tensor, ignore: int | None) -> Any:
    """Contiguous float32 logits (C, N) and class ids (N,), -1 where ignored, of each item."""
    for z, y in zip(logits.detach(), target, strict=True):
        ids = y[0].flatten().to(torch.int32)
        if ignore is not None:
            ids = ids.masked_fill(ids == ignore, -1)
        yield z.flatten(1).float().contiguous().numpy(), ids.numpy()
