"""Compiled loops of `norm_act.py` for a CPU, up to float32: over rows of a channel, or over voxels (channels last).

Both orders have the same arithmetic: slabs of SLAB voxels, moments about the slab's own first value and then its mean,
sums in float32 within a slab and in float64 between slabs, parts of PART voxels whatever the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from medseg.core.kernels.processor import compiled, dot, exp_below_zero, share

SLAB = 1024
PART = 2**15


@compiled
def _silu(before):  # noqa: ANN001, ANN202
    e = exp_below_zero(-abs(before))
    return before * ((e if before < 0 else np.float32(1)) / (np.float32(1) + e))


@compiled
def _silu_slope(before):  # noqa: ANN001, ANN202
    e = exp_below_zero(-abs(before))
    p = (e if before < 0 else np.float32(1)) / (np.float32(1) + e)
    return p * (np.float32(1) + before * (np.float32(1) - p))


@compiled
def moments_of_rows(x, first, last, mean, spread):  # noqa: ANN001
    """Mean and spread of the rows of x (R, N) from `first` to `last`."""
    distance, ones = np.empty(SLAB, np.float32), np.ones(SLAB, np.float32)
    for r in range(first, last):
        seen, middle, squares = 0.0, 0.0, 0.0
        for start in range(0, x.shape[1], SLAB):
            count = min(SLAB, x.shape[1] - start)
            row = x[r, start : start + count]
            for v in range(count):
                distance[v] = row[v] - row[0]
            here = np.float64(row[0]) + np.float64(dot(distance, ones, count)) / count
            near = np.float32(here)
            for v in range(count):
                distance[v] = row[v] - near
            own = np.float64(dot(distance, distance, count)) - count * (here - near) ** 2
            step = here - middle
            squares += own + step * step * seen * count / (seen + count)
            middle += step * count / (seen + count)
            seen += count
        mean[r], spread[r] = middle, squares


@compiled
def moments_of_voxels(x, first, last, mean, spread):  # noqa: ANN001
    """Mean and spread of the columns of x (N, C) in the parts from `first` to `last`, into (parts, C)."""
    channels = x.shape[1]
    total, near = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for part in range(first, last):
        seen = 0.0
        end = min((part + 1) * PART, x.shape[0])
        for start in range(part * PART, end, SLAB):
            count = min(SLAB, end - start)
            total[:] = np.float32(0)
            for v in range(start, start + count):
                for c in range(channels):
                    total[c] += x[v, c] - x[start, c]
            for c in range(channels):
                here = np.float64(x[start, c]) + np.float64(total[c]) / count
                step = here - mean[part, c]
                spread[part, c] += step * step * seen * count / (seen + count)
                spread[part, c] -= count * (here - np.float32(here)) ** 2
                mean[part, c] += step * count / (seen + count)
                near[c] = np.float32(here)
            total[:] = np.float32(0)
            for v in range(start, start + count):
                for c in range(channels):
                    d = x[v, c] - near[c]
                    total[c] += d * d
            for c in range(channels):
                spread[part, c] += total[c]
            seen += count


@compiled
def _find_before(row, residual, r, start, high, low, scale, shift, count, out):  # noqa: ANN001
    """What the activation is given, for some voxels of a row; `residual` has no rows where there is none."""
    for v in range(count):
        out[v] = ((row[v] - high) - low) * scale + shift
    if residual.shape[0] > 0:
        more = residual[r, start : start + count]
        for v in range(count):
            out[v] += more[v]


@compiled
def apply_to_rows(x, residual, high, low, scale, shift, silu, slope, first, last, y):  # noqa: ANN001
    """Write y (R, N); `residual` has no rows where there is none."""
    for r in range(first, last):
        for start in range(0, x.shape[1], SLAB):
            count = min(SLAB, x.shape[1] - start)
            row, out = x[r, start : start + count], y[r, start : start + count]
            _find_before(row, residual, r, start, high[r], low[r], scale[r], shift[r], count, out)
            if silu:
                for v in range(count):
                    out[v] = _silu(out[v])
            elif slope != 1:
                for v in range(count):  # zero makes 0.0 of -0.0, and keeps the choice from being stored under a mask
                    out[v] = (out[v] if out[v] > 0 else np.float32(slope) * out[v]) + np.float32(0)


@compiled
def apply_to_voxels(x, residual, high, low, scale, shift, silu, slope, first, last, y):  # noqa: ANN001
    """Write y (N, C) from voxel `first` to `last`."""
    added = residual.shape[0] > 0
    for v in range(first, last):
        for c in range(x.shape[1]):
            before = ((x[v, c] - high[c]) - low[c]) * scale[c] + shift[c]
            if added:
                before += residual[v, c]
            y[v, c] = _silu(before) if silu else before if before > 0 else np.float32(slope) * before + np.float32(0)


@compiled
def _slope_at(before, silu, slope):  # noqa: ANN001, ANN202
    if silu:
        return _silu_slope(before)
    return np.float32(1) if before > 0 else np.float32(slope)


@compiled
def sums_of_rows(g, x, residual, high, low, scale, shift, silu, slope, first, last, sums):  # noqa: ANN001
    """Sums (R, 2) of g' and of g' (x - mean)."""
    scaled, distance, ones = np.empty(SLAB, np.float32), np.empty(SLAB, np.float32), np.ones(SLAB, np.float32)
    for r in range(first, last):
        h, w = high[r], low[r]
        for start in range(0, x.shape[1], SLAB):
            count = min(SLAB, x.shape[1] - start)
            row, given = x[r, start : start + count], g[r, start : start + count]
            _find_before(row, residual, r, start, h, w, scale[r], shift[r], count, scaled)
            if silu:
                for v in range(count):
                    scaled[v] = given[v] * _silu_slope(scaled[v])
            else:
                for v in range(count):
                    scaled[v] = given[v] * (np.float32(1) if scaled[v] > 0 else np.float32(slope))
            for v in range(count):
                distance[v] = (row[v] - h) - w
            sums[r, 0] += dot(scaled, ones, count)
            sums[r, 1] += dot(scaled, distance, count)


@compiled
def sums_of_voxels(g, x, residual, high, low, scale, shift, silu, slope, first, last, sums):  # noqa: ANN001
    """Sums (parts, 2, C) of g' and of g' (x - mean)."""
    added = residual.shape[0] > 0
    channels = x.shape[1]
    one, two = np.empty(channels, np.float32), np.empty(channels, np.float32)
    for part in range(first, last):
        end = min((part + 1) * PART, x.shape[0])
        for start in range(part * PART, end, SLAB):
            one[:] = np.float32(0)
            two[:] = np.float32(0)
            for v in range(start, min(start + SLAB, end)):
                for c in range(channels):
                    d = (x[v, c] - high[c]) - low[c]
                    before = d * scale[c] + shift[c]
                    if added:
                        before += residual[v, c]
                    value = g[v, c] * _slope_at(before, silu, slope)
                    one[c] += value
                    two[c] += value * d
            for c in range(channels):
                sums[part, 0, c] += one[c]
                sums[part, 1, c] += two[c]


@compiled
def spread_rows(g, x, residual, high, low, scale, shift, silu, slope, f, s, t, first, last, dx, dr):  # noqa: ANN001
    """Write the gradients of x and of the residual, both (R, N)."""
    added = residual.shape[0] > 0
    for r in range(first, last):
        for v in range(x.shape[1]):
            d = (x[r, v] - high[r]) - low[r]
            before = d * scale[r] + shift[r]
            if added:
                before += residual[r, v]
            value = g[r, v] * _slope_at(before, silu, slope)
            dx[r, v] = f[r] * value + s[r] * d + t[r]
            if added:
                dr[r, v] = value


@compiled
def spread_voxels(g, x, residual, high, low, scale, shift, silu, slope, f, s, t, first, last, dx, dr):  # noqa: ANN001
    """Write the gradients of x and of the residual, both (N, C)."""
    added = residual.shape[0] > 0
    for v in range(first, last):
        for c in range(x.shape[1]):
            d = (x[v, c] - high[c]) - low[c]
            before = d * scale[c] + shift[c]
            if added:
                before += residual[v, c]
            value = g[v, c] * _slope_at(before, silu, slope)
            dx[v, c] = f[c] * value + s[c] * d + t[c]
            if added:
                dr[v, c] = value


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """What `norm_act_torch.moments` gives."""
    if not x.numel():
        nothing = x.new_zeros(x.shape[:2], dtype=torch.float64)
        return nothing, nothing
    if _is_last(x):
        found = [_column_moments(item) for item in _columns(x)]
        return torch.stack([mean for mean, _ in found]), torch.stack([spread for _, spread in found])
    rows = _rows(x)
    mean, spread = np.zeros(len(rows)), np.zeros(len(rows))
    share(lambda first, last: moments_of_rows(rows, first, last, mean, spread), len(rows))
    return torch.from_numpy(mean).view(x.shape[:2]), torch.from_numpy(spread).view(x.shape[:2])


def _column_moments(item: np.ndarray) -> tuple[Tensor, Tensor]:
    parts = -(-len(item) // PART)
    mean, spread = np.zeros((parts, item.shape[1])), np.zeros((parts, item.shape[1]))
    share(lambda first, last: moments_of_voxels(item, first, last, mean, spread), parts)
    counts = np.minimum(PART, len(item) - PART * np.arange(parts))[:, None]
    middle = (mean * counts).sum(0) / len(item)
    return torch.from_numpy(middle), torch.from_numpy((spread + counts * (mean - middle) ** 2).sum(0))


def apply(x: Tensor, residual: Tensor | None, affine: Any, silu: bool, slope: float) -> Tensor:
    """What `norm_act_torch.apply` gives."""
    y = _Output(x)
    for part in _parts(x, [x, residual], affine, [y]):
        apply_ = apply_to_voxels if part.last else apply_to_rows
        (values, more), (out,) = part.inputs, part.outputs
        share(
            lambda a, b, p=part, v=values, m=more, o=out, f=apply_: f(v, m, *p.numbers, silu, slope, a, b, o),
            len(values),
        )
    return y.tensor()


def gradient_sums(
    gradient: Tensor, x: Tensor, residual: Tensor | None, affine: Any, silu: bool, slope: float
) -> tuple[Tensor, Tensor]:
    """What `norm_act_torch.gradient_sums` gives."""
    found = []
    for part in _parts(x, [gradient, x, residual], affine, []):
        g, values, more = part.inputs
        sums = np.zeros((-(-len(values) // PART), 2, values.shape[1]) if part.last else (len(values), 2))
        loop = sums_of_voxels if part.last else sums_of_rows

        def work(a: int, b: int, p: Any = part, i: Any = (g, values, more), s: Any = sums, loop: Any = loop) -> None:
            loop(*i, *p.numbers, silu, slope, a, b, s)

        share(work, len(sums))
        found.append(torch.from_numpy(sums.sum(0) if part.last else sums.T.copy()))
    if not found:
        nothing = x.new_zeros(x.shape[:2], dtype=torch.float64)
        return nothing, nothing
    both = torch.stack(found, 1) if _is_last(x) else found[0].view(2, *x.shape[:2])
    return both[0], both[1]


def spread(
    gradient: Tensor,
    x: Tensor,
    residual: Tensor | None,
    affine: Any,
    silu: bool,
    slope: float,
    factors: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor]:
    """What `norm_act_torch.spread` gives."""
    dx, dr = _Output(x), _Output(x if residual is not None else x[:0])
    for part in _parts(x, [gradient, x, residual], (*affine, *factors), [dx, dr]):
        loop = spread_voxels if part.last else spread_rows
        numbers = part.numbers

        def work(a: int, b: int, p: Any = part, n: Any = numbers, loop: Any = loop) -> None:
            loop(*p.inputs, *n[:4], silu, slope, *n[4:], a, b, *p.outputs)

        share(work, len(part.inputs[1]))
    return dx.tensor(), x.new_empty(0) if residual is None else dr.tensor()


class _Output:
    """A tensor like x that is written in float32."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self.full = torch.empty_like(x, dtype=torch.float32, memory_format=_format(x))

    def tensor(self) -> Tensor:
        """The result in the type and memory format of x."""
        fits = self.full.dtype == self.x.dtype and self.full.stride() == torch.empty_like(self.x).stride()
        return self.full if fits else torch.empty_like(self.x).copy_(self.full)


class _Part:
    """All rows of the channels-first layout, or the voxels of one item where channels are last."""

    def __init__(
        self, last: bool, inputs: list[np.ndarray], numbers: list[np.ndarray], outputs: list[np.ndarray]
    ) -> None:
        self.last, self.inputs, self.numbers, self.outputs = last, inputs, numbers, outputs


def _parts(x: Tensor, inputs: list[Tensor | None], numbers: Any, outputs: list[_Output]) -> list[_Part]:
    if not x.numel():
        return []
    nothing = np.empty((0, 0), np.float32)
    if not _is_last(x):
        flat = [nothing if t is None else _rows(t) for t in inputs]
        filled = [_rows(o.full) if o.full.numel() else nothing for o in outputs]
        return [_Part(False, flat, [n.reshape(-1).numpy() for n in numbers], filled)]
    columns = [[nothing] * len(x) if t is None else _columns(t) for t in inputs]
    filled = [_columns(o.full) if o.full.numel() else [nothing] * len(x) for o in outputs]
    return [
        _Part(True, [c[i] for c in columns], [n[i].numpy() for n in numbers], [f[i] for f in filled])
        for i in range(len(x))
    ]


def _is_last(x: Tensor) -> bool:
    """Whether the channels of a voxel lie beside each other, and there are some."""
    return x.shape[1] > 1 and x.ndim in (4, 5) and not x.is_contiguous() and x.is_contiguous(memory_format=_last(x))


def _last(x: Tensor) -> torch.memory_format:
    return torch.channels_last if x.ndim == 4 else torch.channels_last_3d


def _format(x: Tensor) -> torch.memory_format:
    return _last(x) if _is_last(x) else torch.contiguous_format


def _rows(x: Tensor) -> np.ndarray:
    """(B C, N) float32, without a copy where x is contiguous float32."""
    return x.detach().float().contiguous().view(x.shape[0] * x.shape[1], -1).numpy()


def _columns(x: Tensor) -> list[np.ndarray]:
    """(N, C) float32 of each item, without a copy where x is float32 with channels last."""
    last = x.detach().float().contiguous(memory_format=_last(x))
    return [item.flatten(1).T.numpy() for item in last]
