"""Compiled loops of `class_sums.py` for masks, and for a sigmoid, in float32 on a CPU.

Like `class_sums_processor.py`, with a target in every class. Slabs of 256 voxels; a row of one class at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.core.kernels.class_sums_processor import PART, SLAB, _exponentiate
from medseg.core.kernels.processor import compiled, dot, exp_below_zero, share

ACTIVATIONS = {"none": 0, "softmax": 1, "sigmoid": 2}
_TINY = np.float32(1.42e-14)


@compiled
def _activate(row, activation, top, inverse, log_total, entropy, count, p, log_p):  # noqa: ANN001
    """Probabilities of one class, and their logarithms if `entropy`; `p` holds the exponentials of a softmax."""
    if activation == 1:
        for v in range(count):
            p[v] *= inverse[v]
            log_p[v] = row[v] - top[v] - log_total[v]
    elif activation == 2:
        for v in range(count):
            e = exp_below_zero(-abs(row[v]))
            p[v] = (e if row[v] < 0 else np.float32(1)) / (np.float32(1) + e)
            log_p[v] = e
        if entropy:
            for v in range(count):
                log_p[v] = (row[v] if row[v] < 0 else np.float32(0)) - np.log(np.float32(1) + log_p[v])
    else:
        for v in range(count):
            p[v] = row[v]
            log_p[v] = np.float32(0)


@compiled
def _read_mask(y, c, start, counts, count, mask):  # noqa: ANN001
    """Target of one class; y holds class ids if it has one row where there are more classes (then c is not 0)."""
    for v in range(count):
        mask[v] = y[c, start + v] if counts[v] != 0 else np.float32(0)


@compiled
def _read_id(y, c, start, counts, count, mask):  # noqa: ANN001
    """Mask of one class from class ids."""
    for v in range(count):
        mask[v] = np.float32(1) if y[0, start + v] == c and counts[v] != 0 else np.float32(0)


@compiled
def _prepare(z, start, count, activation, entropy, top, weights, total, inverse, log_total):  # noqa: ANN001
    """What a softmax needs of all classes at once."""
    if activation == 1:
        _exponentiate(z, start, count, top, weights, total)
        for v in range(count):
            inverse[v] = np.float32(1) / total[v]
        if entropy:
            for v in range(count):
                log_total[v] = np.log(total[v])


@compiled
def sum_parts(z, y, counts, first, last, activation, power, gamma, entropy, sums):  # noqa: ANN001
    """Fill the rows of `sums` (parts, 6, C) from `first` to `last`."""
    channels = z.shape[0]
    by_id = y.shape[0] < channels
    buffers = np.zeros((7, SLAB), np.float32)
    top, total, inverse, log_total, log_p, mask, term = buffers
    weights = np.zeros((channels, SLAB), np.float32)
    for part in range(first, last):
        for start in range(part * PART, min((part + 1) * PART, z.shape[1]), SLAB):
            count = min(SLAB, z.shape[1] - start)
            weight = counts[start : start + count]
            _prepare(z, start, count, activation, entropy, top, weights, total, inverse, log_total)
            for c in range(channels):
                p = weights[c]
                _activate(z[c, start : start + count], activation, top, inverse, log_total, entropy, count, p, log_p)
                if by_id:
                    _read_id(y, c, start, weight, count, mask)
                else:
                    _read_mask(y, c, start, weight, count, mask)
                if entropy and activation > 0:
                    for v in range(count):
                        term[v] = -mask[v] * log_p[v] if mask[v] > 0 else np.float32(0)
                        if gamma > 0:
                            term[v] *= max(np.float32(1) - p[v], _TINY) ** np.float32(gamma)
                    sums[part, 3, c] += dot(term, weight, count)
                    for v in range(count):
                        term[v] = -log_p[v]
                        if activation == 2:
                            term[v] = (z[c, start + v] - log_p[v]) * (np.float32(1) - mask[v])
                            if gamma > 0:
                                term[v] *= max(p[v], _TINY) ** np.float32(gamma)
                            term[v] = term[v] if mask[v] < 1 else np.float32(0)
                    sums[part, 4, c] += dot(term, weight, count)
                for v in range(count):
                    term[v] = p[v] if weight[v] != 0 else np.float32(0)
                    log_p[v] = weight[v]
                if power == 2:
                    for v in range(count):
                        log_p[v] = term[v] * weight[v]
                sums[part, 1, c] += dot(term, log_p, count)
                for v in range(count):
                    term[v] *= weight[v]
                sums[part, 0, c] += dot(term, mask, count)
                for v in range(count):
                    term[v] = mask[v] * weight[v] if power == 2 else weight[v]
                    log_p[v] = np.float32(1)
                sums[part, 2, c] += dot(term, mask, count)
                sums[part, 5, c] += dot(weight, log_p, count)


@compiled
def _bend(p, log_p, gamma):  # noqa: ANN001, ANN202
    """Slope of (1 - p)^gamma (-log p), times p."""
    rest = max(np.float32(1) - p, _TINY)
    return np.float32(gamma) * p * rest ** np.float32(gamma - 1) * log_p - rest ** np.float32(gamma)


@compiled
def spread_range(gradient, z, y, counts, begin, end, activation, power, gamma, entropy, result):  # noqa: ANN001
    """Write the gradient of the voxels from `begin` to `end`."""
    channels = z.shape[0]
    by_id = y.shape[0] < channels
    buffers = np.zeros((7, SLAB), np.float32)
    top, total, inverse, log_total, log_p, mask, amount = buffers
    weights = np.zeros((channels, SLAB), np.float32)
    one, two = np.float32(1), np.float32(2)
    for start in range(begin, end, SLAB):
        count = min(SLAB, end - start)
        weight = counts[start : start + count]
        _prepare(z, start, count, activation, entropy and gamma > 0, top, weights, total, inverse, log_total)
        amount[:] = np.float32(0)
        for c in range(channels):
            p, row, out = weights[c], z[c, start : start + count], result[c, start : start + count]
            _activate(row, activation, top, inverse, log_total, entropy and gamma > 0, count, p, log_p)
            if by_id:
                _read_id(y, c, start, weight, count, mask)
            else:
                _read_mask(y, c, start, weight, count, mask)
            u, s, e, r = gradient[0, c], gradient[1, c], gradient[3, c], gradient[4, c]
            for v in range(count):
                out[v] = u * mask[v] + (s if power == 1 else two * s * p[v])
            if activation == 1:
                for v in range(count):
                    bend = -one if gamma == 0 else _bend(p[v], log_p[v], gamma)
                    out[v] = p[v] * out[v] + e * mask[v] * bend - r
                    amount[v] += out[v]
            elif activation == 2:
                for v in range(count):
                    q = one - p[v]
                    own = -one if gamma == 0 else _bend(p[v], log_p[v], gamma)
                    other = -one if gamma == 0 else _bend(q, log_p[v] - row[v], gamma)
                    out[v] = p[v] * q * out[v] + e * mask[v] * q * own - r * (one - mask[v]) * p[v] * other
        for c in range(channels):
            p, out = weights[c], result[c, start : start + count]
            for v in range(count):
                value = (out[v] - p[v] * amount[v]) if activation == 1 else out[v]
                out[v] = value * weight[v] if weight[v] != 0 else np.float32(0)


def sum_up(logits: Tensor, target: Tensor, how: Any) -> Tensor:
    """What `class_sums._sum` returns."""
    result = torch.zeros((logits.shape[0], 6, logits.shape[1]), dtype=torch.float64)
    for i, (z, y, counts) in enumerate(_items(logits, target, how.ignore)):
        parts = -(-z.shape[1] // PART)
        sums = np.zeros((parts, 6, z.shape[0]))

        def work(first: int, last: int, z: Any = z, y: Any = y, counts: Any = counts, sums: Any = sums) -> None:
            sum_parts(z, y, counts, first, last, *_numbers(how), sums)

        share(work, parts)
        result[i] = torch.from_numpy(sums.sum(0))
    return result.float()


def spread(gradient: Tensor, logits: Tensor, target: Tensor, how: Any) -> Tensor:
    """What `class_sums._spread` returns."""
    result = torch.empty_like(logits)
    fits = result.is_contiguous() and result.dtype == torch.float32
    for i, (z, y, counts) in enumerate(_items(logits, target, how.ignore)):
        out = result[i].flatten(1).numpy() if fits else np.empty(z.shape, np.float32)
        g = gradient[i].float().contiguous().numpy()
        inputs = (g, z, y, counts)

        def work(first: int, last: int, inputs: Any = inputs, out: Any = out) -> None:
            spread_range(*inputs, first * PART, min(last * PART, out.shape[1]), *_numbers(how), out)

        share(work, -(-z.shape[1] // PART))
        if not fits:
            result[i].copy_(torch.from_numpy(out).view(logits.shape[1:]))
    return result


def _numbers(how: Any) -> tuple[int, int, float, bool]:
    return ACTIVATIONS[how.activation], how.power, how.gamma, how.entropy


def _items(logits: Tensor, target: Tensor, ignore: int | None) -> Any:
    """Contiguous float32 logits (C, N), target (1 or C, N) and weights of the voxels (N,) of each item."""
    for z, y in zip(logits.detach(), target, strict=True):
        y = y.flatten(1).float()
        counts = y.new_ones(y.shape[1])
        if ignore is not None:
            if y.shape[0] == 1:
                counts = (y[0] != ignore).float()
            elif 0 <= ignore < y.shape[0]:
                counts = 1 - y[ignore]
            else:
                counts = (y.sum(0) > 0).float()
        yield z.flatten(1).float().contiguous().numpy(), y.contiguous().numpy(), counts.numpy()
