"""The radial part of a step on scale-invariant weights, which AdamP and SGDP take away.

For a row w with direction d:   d <- d - w^ <w^, d>,   w^ = w / (|w| + eps).   Adding the step s = -lr d to the decayed
weight is then w <- keep w + s with

    keep = 1 - decay ratio - <w, s> / (|w| + eps)^2,

so the projection costs one sum a row and no pass of its own. Which rows are projected is decided with tensors, never by
asking for a value: on a GPU the host does not wait.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from medseg.core.optim._blocks import Span
from medseg.core.optim._row_sums import row_factors, row_sums

Choice = bool | str


@dataclass(frozen=True, slots=True)
class Radial:
    """What decides a projection.

    Attributes:
        mode: True to project every row, False to project none, "cosine" for the test of the paper.
        delta: threshold of the test, in units of a random cosine's standard deviation.
        decay: learning rate times weight decay.
        wd_ratio: part of the decay that projected weights keep.
        eps: added to norms.
    """

    mode: Choice
    delta: float
    decay: float
    wd_ratio: float
    eps: float


def apply_steps(span: Span, steps: Sequence[Sequence[torch.Tensor]], radial: Radial) -> None:
    """Decay the weights of a span and add the steps without their radial parts, in place.

    Args:
        span: all pieces of the parameters in it.
        steps: what to add, for every batch; learning rate and sign included.
        radial: the options.
    """
    if radial.mode is False:
        for batch, moves in zip(span, steps, strict=True):
            if radial.decay:
                torch._foreach_mul_(batch.params, 1 - radial.decay)
            torch._foreach_add_(batch.params, list(moves))
        return
    factors = row_factors(span, _keep_factors(span, steps, radial))
    for batch, moves, keep in zip(span, steps, factors, strict=True):
        for weight, move, factor in zip(batch.params, moves, keep, strict=True):
            torch.addcmul(move, weight, factor, out=weight)


def _keep_factors(span: Span, steps: Sequence[Sequence[torch.Tensor]], radial: Radial) -> torch.Tensor:
    """Factor of every row, (owners, rows); rows that an owner does not have hold nothing of meaning."""
    columns = [[(b.params, b.params), (b.params, moves)] for b, moves in zip(span, steps, strict=True)]
    if radial.mode == "cosine":
        for b, pairs in zip(span, columns, strict=True):
            pairs += [(b.params, b.grads), (b.grads, b.grads)]
    sums = row_sums(span, columns)
    weight, step = sums[..., 0], sums[..., 1]
    if radial.mode is True:
        return 1 - radial.decay * radial.wd_ratio - step / (weight.sqrt() + radial.eps).square()
    lengths = _row_lengths(span, sums)
    whole = sums.sum(dim=1, keepdim=True)
    by_row = _cosine(sums, radial.eps).amax(dim=1, keepdim=True) < radial.delta / lengths[0].sqrt()
    by_layer = _cosine(whole, radial.eps) < radial.delta / lengths[1].sqrt()
    along_layer = torch.where(by_layer, whole[..., 1] / (whole[..., 0].sqrt() + radial.eps).square(), 0.0)
    along = torch.where(by_row, step / (weight.sqrt() + radial.eps).square(), along_layer)
    spared = (by_row | by_layer).to(sums.dtype) * (1 - radial.wd_ratio)
    return 1 - radial.decay * (1 - spared) - along


def _cosine(sums: torch.Tensor, eps: float) -> torch.Tensor:
    """Cosine between weight and gradient, without its sign."""
    return sums[..., 2].abs() / (sums[..., 0] * sums[..., 3]).sqrt().clamp(min=eps)


def _row_lengths(span: Span, sums: torch.Tensor) -> torch.Tensor:
    """Elements of a row and of the whole parameter, (2, owners, 1)."""
    elements, rows = [0] * len(sums), [0] * len(sums)
    for batch in span:
        for param, owner, part in zip(batch.params, batch.owners, batch.rows, strict=True):
            elements[owner] += param.numel()
            rows[owner] = max(rows[owner], part.stop)
    lengths = [[n / r for n, r in zip(elements, rows, strict=True)], elements]
    return torch.tensor(lengths, dtype=sums.dtype, device=sums.device).unsqueeze(-1)
