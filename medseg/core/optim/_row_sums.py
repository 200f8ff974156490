"""Sums of products over every row of the parameters of a span, whether they lie in one piece or in several."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from medseg.core.optim._blocks import Span

Column = Sequence[torch.Tensor]


def row_sums(span: Span, pairs: Sequence[Sequence[tuple[Column, Column]]]) -> torch.Tensor:
    """Sum the products of tensors over each row.

    Args:
        span: all pieces of some parameters.
        pairs: for every batch, pairs of columns of tensors (before, rows, after) whose products are summed.

    Returns:
        (owners, rows, pairs); zeros where an owner has fewer rows than another.
    """
    owners = 1 + max(owner for batch in span for owner in batch.owners)
    rows = max(part.stop for batch in span for part in batch.rows)
    sums = span[0].params[0].new_zeros((owners, rows, len(pairs[0])))
    for batch, columns in zip(span, pairs, strict=True):
        for i, (owner, part) in enumerate(zip(batch.owners, batch.rows, strict=True)):
            found = torch.stack([_dot(left[i], right[i]) for left, right in columns], dim=-1)
            sums[owner, part].add_(found)
    return sums


def row_factors(span: Span, factors: torch.Tensor) -> list[list[torch.Tensor]]:
    """Cut factors (owners, rows) into views that multiply the pieces of every batch."""
    return [
        [factors[owner, part].view(1, -1, 1) for owner, part in zip(batch.owners, batch.rows, strict=True)]
        for batch in span
    ]


def _dot(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if left is right:
        return torch.linalg.vector_norm(left, dim=(0, 2)).square()
    return (left * right).sum(dim=(0, 2))
