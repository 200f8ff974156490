"""Compiled loops of `class_sums.py` for masks, and for a sigmoid, in float32 on a CPU.

Like `class_sums_processor.py`, with a target in every class. Slabs of 256 voxels; a row of one class at a time, whose
loops know neither branches nor indices with a sum, so that they fill vector registers. Dice by a sigmoid and
cross-entropy by a softmax share one walk: the logits are read once, and one gradient is written.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.core.kernels.class_sums_processor import PART, SLAB, _exponentiate
from medseg.core.kernels.processor import compiled, exp_below_zero, share

ACTIVATIONS = {"none": 0, "softmax": 1, "sigmoid": 2}
_TINY = np.float32(1.42e-14)


@compiled
def _prepare(z, start, count, logarithm, top, weights, total, log_total):  # noqa: ANN001
    """Probabilities of a softmax in `weights`; `log_total` + `top` is the logarithm of the sum of exponentials."""
    _exponentiate(z, start, count, top, weights, total)
    if logarithm:
        for v in range(count):
            log_total[v] = np.log(total[v])
    for v in range(count):
        total[v] = np.float32(1) / total[v]
    for c in range(z.shape[0]):
        line = weights[c]
        for v in range(count):
            line[v] *= total[v]


@compiled
def _activate(row, activation, softmax, count, p):  # noqa: ANN001
    """Probabilities of one class, `softmax` being those of a softmax."""
    if activation == 1:
        for v in range(count):
            p[v] = softmax[v]
    elif activation == 2:
        for v in range(count):
            e = exp_below_zero(-abs(row[v]))
            p[v] = (e if row[v] < 0 else np.float32(1)) / (np.float32(1) + e)
    else:
        for v in range(count):
            p[v] = row[v]


@compiled
def _find_log(row, entropy, top, log_total, count, log_p):  # noqa: ANN001
    """Logarithms of the probabilities of one class, by the activation that the entropy has."""
    if entropy == 1:
        for v in range(count):
            log_p[v] = row[v] - top[v] - log_total[v]
    else:
        for v in range(count):
            log_p[v] = np.float32(1) + exp_below_zero(-abs(row[v]))
        for v in range(count):
            log_p[v] = (row[v] if row[v] < 0 else np.float32(0)) - np.log(log_p[v])


@compiled
def _read(y, c, start, weight, count, mask):  # noqa: ANN001
    """Mask of one class, 0 where nothing counts."""
    row = y[c, start : start + count]
    for v in range(count):
        mask[v] = row[v] if weight[v] != 0 else np.float32(0)


@compiled
def _read_id(y, c, start, weight, count, mask):  # noqa: ANN001
    """The same from class ids."""
    ids, label = y[0, start : start + count], np.float32(c)
    for v in range(count):
        mask[v] = np.float32(1) if ids[v] == label and weight[v] != 0 else np.float32(0)


@partial(compiled, any_order=True)
def _add_overlap(p, mask, weight, power, count, sums):  # noqa: ANN001
    """Add hits, predicted and present of one class."""
    hits, predicted, present = np.float32(0), np.float32(0), np.float32(0)
    if power == 1:
        for v in range(count):
            p_here = p[v] if weight[v] != 0 else np.float32(0)
            hits += p_here * mask[v] * weight[v]
            predicted += p_here * weight[v]
            present += mask[v] * weight[v]
    else:
        for v in range(count):
            p_here = p[v] if weight[v] != 0 else np.float32(0)
            hits += p_here * mask[v] * weight[v]
            predicted += p_here * p_here * weight[v]
            present += mask[v] * mask[v] * weight[v]
    sums[0] += hits
    sums[1] += predicted
    sums[2] += present


@partial(compiled, any_order=True)
def _add_entropy(own, other, mask, weight, count, sums):  # noqa: ANN001
    """Add surprise and rest of one class."""
    surprise, rest = np.float32(0), np.float32(0)
    for v in range(count):
        surprise += (own[v] if mask[v] > 0 else np.float32(0)) * mask[v] * weight[v]
        rest += (other[v] if weight[v] != 0 else np.float32(0)) * weight[v]
    sums[3] -= surprise
    sums[4] -= rest


@partial(compiled, any_order=True)
def _add_up(values, count):  # noqa: ANN001, ANN202
    total = np.float32(0)
    for v in range(count):
        total += values[v]
    return total


@compiled
def _find_terms(row, log_p, p, mask, entropy, gamma, count, own, other):  # noqa: ANN001
    """Logarithms whose weighted sums are surprise and rest, with the focal factors."""
    if gamma == 0:
        for v in range(count):
            own[v] = log_p[v]
    else:
        for v in range(count):
            own[v] = log_p[v] * max(np.float32(1) - p[v], _TINY) ** np.float32(gamma)
    if entropy == 1:
        for v in range(count):
            other[v] = log_p[v]
    else:
        for v in range(count):
            value = (log_p[v] - row[v]) * (np.float32(1) - mask[v])
            other[v] = value if mask[v] < 1 else np.float32(0)
        if gamma > 0:
            for v in range(count):
                other[v] *= max(p[v], _TINY) ** np.float32(gamma)


@compiled
def sum_parts(z, y, counts, first, last, activation, power, gamma, entropy, sums):  # noqa: ANN001
    """Fill the rows of `sums` (parts, C, 6) from `first` to `last`."""
    channels = z.shape[0]
    by_id = y.shape[0] < channels
    top, total, log_total = np.empty(SLAB, np.float32), np.empty(SLAB, np.float32), np.empty(SLAB, np.float32)
    p, log_p, mask = np.empty(SLAB, np.float32), np.empty(SLAB, np.float32), np.empty(SLAB, np.float32)
    own, other = np.empty(SLAB, np.float32), np.empty(SLAB, np.float32)
    weights = np.empty((channels, SLAB), np.float32)
    for part in range(first, last):
        for start in range(part * PART, min((part + 1) * PART, z.shape[1]), SLAB):
            count = min(SLAB, z.shape[1] - start)
            weight = counts[start : start + count]
            voxels = _add_up(weight, count)
            if activation == 1 or entropy == 1:
                _prepare(z, start, count, entropy == 1, top, weights, total, log_total)
            for c in range(channels):
                row, found = z[c, start : start + count], sums[part, c]
                _activate(row, activation, weights[c], count, p)
                if by_id:
                    _read_id(y, c, start, weight, count, mask)
                else:
                    _read(y, c, start, weight, count, mask)
                _add_overlap(p, mask, weight, power, count, found)
                if entropy > 0:
                    _find_log(row, entropy, top, log_total, count, log_p)
                    q = weights[c] if entropy == 1 else p
                    _find_terms(row, log_p, q, mask, entropy, gamma, count, own, other)
                    _add_entropy(own, other, mask, weight, count, found)
                found[5] += voxels


@compiled
def _bend(p, log_p, gamma, count, out):  # noqa: ANN001
    """Slope of (1 - p)^gamma (-log p), times p."""
    for v in range(count):
        rest = max(np.float32(1) - p[v], _TINY)
        bent = np.float32(gamma) * p[v] * rest ** np.float32(gamma - 1) * log_p[v]
        out[v] = bent - rest ** np.float32(gamma)


@compiled
def _add_slopes(row, q, mask, entropy, gamma, e, r, log_p, count, bend, out):  # noqa: ANN001
    """Add what surprise and rest contribute to one class: with a softmax t_c, else the gradient itself."""
    one = np.float32(1)
    if gamma == 0:
        bend[:] = -one
    else:
        _bend(q, log_p, gamma, count, bend)
    if entropy == 1:
        for v in range(count):
            out[v] += e * mask[v] * bend[v] - r
    else:
        for v in range(count):
            out[v] += e * mask[v] * (one - q[v]) * bend[v]
        if gamma > 0:
            for v in range(count):  # the same for 1 - q
                rest = max(q[v], _TINY)
                bent = np.float32(gamma) * (one - q[v]) * rest ** np.float32(gamma - 1) * (log_p[v] - row[v])
                bend[v] = bent - rest ** np.float32(gamma)
        for v in range(count):
            out[v] -= r * (one - mask[v]) * q[v] * bend[v]


@compiled
def _start_slopes(p, mask, activation, power, u, s, count, out):  # noqa: ANN001
    """What hits and predicted contribute to one class."""
    one, twice = np.float32(1), np.float32(2) * s
    if power == 1:
        for v in range(count):
            out[v] = u * mask[v] + s
    else:
        for v in range(count):
            out[v] = u * mask[v] + twice * p[v]
    if activation == 1:
        for v in range(count):
            out[v] *= p[v]
    elif activation == 2:
        for v in range(count):
            out[v] *= p[v] * (one - p[v])


@compiled
def spread_range(gradient, z, y, counts, begin, end, activation, power, gamma, entropy, result):  # noqa: ANN001
    """Write the gradient of the voxels from `begin` to `end`."""
    channels = z.shape[0]
    by_id = y.shape[0] < channels
    top, total, log_total = np.empty(SLAB, np.float32), np.empty(SLAB, np.float32), np.empty(SLAB, np.float32)
    p, log_p, mask = np.empty(SLAB, np.float32), np.empty(SLAB, np.float32), np.empty(SLAB, np.float32)
    bend, amount, extra = np.empty(SLAB, np.float32), np.empty(SLAB, np.float32), np.empty(SLAB, np.float32)
    weights = np.empty((channels, SLAB), np.float32)
    softmax = activation == 1 or entropy == 1
    for start in range(begin, end, SLAB):
        count = min(SLAB, end - start)
        weight = counts[start : start + count]
        if softmax:
            _prepare(z, start, count, entropy == 1 and gamma > 0, top, weights, total, log_total)
            amount[:] = np.float32(0)
        for c in range(channels):
            row, out = z[c, start : start + count], result[c, start : start + count]
            _activate(row, activation, weights[c], count, p)
            if by_id:
                _read_id(y, c, start, weight, count, mask)
            else:
                _read(y, c, start, weight, count, mask)
            _start_slopes(p, mask, activation, power, gradient[0, c], gradient[1, c], count, out)
            extra[:] = np.float32(0)
            if entropy > 0:
                if gamma > 0:
                    _find_log(row, entropy, top, log_total, count, log_p)
                q = weights[c] if entropy == 1 else p
                _add_slopes(row, q, mask, entropy, gamma, gradient[3, c], gradient[4, c], log_p, count, bend, extra)
            for v in range(count):
                out[v] += extra[v]
            if softmax:
                own = out if activation == 1 else extra
                for v in range(count):
                    amount[v] += own[v]
        for c in range(channels):
            out = result[c, start : start + count]
            if softmax:
                q = weights[c]
                for v in range(count):
                    out[v] -= q[v] * amount[v]
            for v in range(count):
                out[v] = out[v] * weight[v] if weight[v] != 0 else np.float32(0)


def sum_up(logits: Tensor, target: Tensor, how: Any) -> Tensor:
    """What `class_sums._sum` returns."""
    result = torch.zeros((logits.shape[0], 6, logits.shape[1]), dtype=torch.float64)
    for i, (z, y, counts) in enumerate(_items(logits, target, how.ignore)):
        parts = -(-z.shape[1] // PART)
        sums = np.zeros((parts, z.shape[0], 6))

        def work(first: int, last: int, z: Any = z, y: Any = y, counts: Any = counts, sums: Any = sums) -> None:
            sum_parts(z, y, counts, first, last, *_numbers(how), sums)

        share(work, parts)
        result[i] = torch.from_numpy(sums.sum(0).T)
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


def _numbers(how: Any) -> tuple[int, int, float, int]:
    return ACTIVATIONS[how.activation], how.power, how.gamma, ACTIVATIONS[how.of_entropy]


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
