"""The h-calibration objective: in every stretch of neighbouring probabilities, as many events as they promise.

For each class k the voxels labelled k are left out. Of the others all pairs of a probability p and whether that class
is the voxel's (y, 0 or 1), over voxels and classes, are sorted by p. Over the w + 1 neighbours of each pair, fewer at
the ends, where zeros stand in,

    T_i = | sum over neighbours of (p - y) | / (w + 1),    e_i = max(T_i - eps, 0)

    loss = mean over k of  mean over bins of  mean over the bin of e_i          (an empty bin counts as 0)

The order of p is a constant, so the gradient flows through p alone. Sums over neighbours come from prefix sums in
float64: n log n for n pairs, whatever the window.

Source: Huang, Cao, Xia, Chen, Wang, Zhang, "h-calibration: Rethinking Classifier Recalibration with Probabilistic
Error-Bounded Objective" (IEEE TPAMI 2025). Differences to the published code:

- it clusters p with faiss at every step; here `bins="kmeans"` is Lloyd's algorithm in one dimension, ten rounds from
  equally spaced centres, exact from prefix sums. Equally full bins would all weigh the same, so their mean is the plain
  mean, `bins="none"`.
- its equal bins are closed at both ends, so that a p on an edge counts twice; here bins are (low, high], the first one
  with its 0. Both divide by the number in a bin + 1e-5.
- no factor of 1e5.
- with two classes the voxels that are left after one class is left out all belong to the other one; then take
  `leave_one_class_out=False`, which pools all voxels.

The absolute value of a sum of noise is never 0, and it is least where p is sure: short windows pull probabilities
towards 0 and 1. Take a window of 100 or more, and as many voxels as there are.
"""

from __future__ import annotations

from typing import Literal

import torch

from medseg.core.calibration._inputs import as_voxels

_BINS = 15
_LLOYD_ROUNDS = 10
# Of the published code: keeps an empty bin at 0.
_EMPTY = 1e-5

Bins = Literal["none", "equal", "kmeans"]


def h_calibration_loss(
    probabilities: torch.Tensor,
    labels: torch.Tensor,
    *,
    window: int = 200,
    bins: Bins = "kmeans",
    leave_one_class_out: bool = True,
    eps: float = 1e-20,
) -> torch.Tensor:
    """Compute the h-calibration loss.

    Args:
        probabilities: (N, C) or (B, C, spatial...), in [0, 1].
        labels: class ids, (N,), (B, spatial...) or (B, 1, spatial...).
        window: neighbours besides the pair itself, even; 100 or more.
        bins: how errors are averaged: `"none"` over all pairs, `"equal"` over 15 bins of equal width, `"kmeans"` over
            15 clusters of the probabilities.
        leave_one_class_out: leave out the voxels of each class in turn; False pools all, for two classes.
        eps: error that is not punished.

    Returns:
        A scalar, differentiable in `probabilities`, in float32 or float64.

    Raises:
        ValueError: shapes or values do not fit, an option is unknown, there is only one class to leave out, or fewer
            pairs than the window.

    Example:
        >>> labels = torch.tensor([0, 1, 1, 1]).repeat(100)
        >>> fair, unfair = (torch.tensor(p).expand(400, 2) for p in ([0.25, 0.75], [0.05, 0.95]))
        >>> options = {"window": 40, "bins": "none", "leave_one_class_out": False}
        >>> [round(h_calibration_loss(p, labels, **options).item(), 2) for p in (fair, unfair)]
        [0.01, 0.19]
    """
    if window < 2 or window % 2:
        raise ValueError(f"window must be an even number of neighbours, at least 2, got {window}")
    if bins not in ("none", "equal", "kmeans"):
        raise ValueError(f"bins must be none, equal or kmeans, got {bins!r}")
    p, ids = as_voxels(probabilities, labels, "probabilities")
    if bool((p.detach() < -1e-6).any()) or bool((p.detach() > 1 + 1e-6).any()):
        raise ValueError("probabilities must lie in [0, 1]; take the softmax of logits first")
    events = torch.nn.functional.one_hot(ids, p.shape[1]).to(p.dtype)
    left = [ids != k for k in range(p.shape[1])] if leave_one_class_out else [torch.ones_like(ids, dtype=torch.bool)]
    fewest = min(int(keep.sum()) for keep in left) * p.shape[1]
    if fewest <= window:
        raise ValueError(
            f"window {window} needs more pairs of a voxel and a class, got {fewest}"
            + (" once one class is left out" if leave_one_class_out else "")
            + "; give more voxels of every class, a shorter window, or leave_one_class_out=False"
        )
    places = [keep.nonzero()[:, 0] for keep in left]
    sets = [(p.index_select(0, place).flatten(), events[place].flatten()) for place in places]
    return torch.stack([_of_one_set(*one, window, bins, eps) for one in sets]).mean()


def _of_one_set(p: torch.Tensor, y: torch.Tensor, window: int, bins: Bins, eps: float) -> torch.Tensor:
    dtype = p.dtype
    order = torch.argsort(p.detach(), stable=True)
    p, y = p.gather(0, order).double(), y.gather(0, order).double()
    # Slices, not index tensors: their gradient is many times faster.
    padded = torch.nn.functional.pad(p - y, (window // 2 + 1, window // 2)).cumsum(0)
    errors = ((padded[window + 1 :] - padded[: len(p)]).abs() / (window + 1) - eps).relu()
    return (errors.mean() if bins == "none" else _mean_over_bins(errors, p.detach(), bins)).to(dtype)


def _mean_over_bins(errors: torch.Tensor, p: torch.Tensor, bins: Bins) -> torch.Tensor:
    """Mean over bins of the mean in each; the values are sorted, so that a bin is a stretch of them."""
    edges = torch.linspace(0, 1, _BINS + 1, dtype=p.dtype, device=p.device)[1:-1] if bins == "equal" else _lloyd(p)
    ends = torch.searchsorted(p, edges, right=True)
    ends = torch.cat([ends.new_zeros(1), ends, ends.new_tensor([len(p)])])
    sums = torch.cat([errors.new_zeros(1), errors.cumsum(0)])
    return ((sums[ends[1:]] - sums[ends[:-1]]) / (ends.diff().to(p) + _EMPTY)).mean()


def _lloyd(p: torch.Tensor) -> torch.Tensor:
    """Edges between the clusters of sorted values."""
    sums = torch.cat([p.new_zeros(1), p.cumsum(0)])
    centres = p[0] + (p[-1] - p[0]) * (torch.arange(_BINS, dtype=p.dtype, device=p.device) + 0.5) / _BINS
    for _ in range(_LLOYD_ROUNDS):
        inner = torch.searchsorted(p, (centres[1:] + centres[:-1]) / 2, right=True)
        ends = torch.cat([inner.new_zeros(1), inner, inner.new_tensor([len(p)])])
        counts = ends.diff()
        centres = torch.where(counts > 0, (sums[ends[1:]] - sums[ends[:-1]]) / counts.clamp(min=1), centres)
    return (centres[1:] + centres[:-1]) / 2
