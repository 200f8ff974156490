"""The correctness-aware objective: the confidence of a voxel should say whether its best class is right.

    loss = mean over voxels of (c - r)^2,    c = probability of the best class,  r = 1 where it is the label, else 0

Where the best class is wrong, cross-entropy raises the true class, though a map that keeps the best class can never
make it win; this loss only lowers the confidence.

Source: Liu, Wang, Zheng, Gould, "Optimizing Calibration by Gaining Aware of Prediction Correctness" (2024), which takes
the absolute difference. That is no proper score: for every share of right voxels above one half its minimum is a
confidence of 1, so the square is taken here.
"""

from __future__ import annotations

import torch

from medseg.core.calibration._inputs import as_voxels


def correctness_loss(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the mean squared difference between confidence and correctness.

    Args:
        probabilities: (N, C) or (B, C, spatial...).
        labels: class ids, (N,), (B, spatial...) or (B, 1, spatial...).

    Returns:
        A scalar, differentiable in `probabilities`.

    Raises:
        ValueError: shapes or values do not fit.

    Example:
        >>> correctness_loss(torch.tensor([[0.2, 0.8], [0.2, 0.8]]), torch.tensor([1, 0]))   # (0.2^2 + 0.8^2) / 2
        tensor(0.3400)
    """
    p, ids = as_voxels(probabilities, labels, "probabilities")
    confidence, best = p.max(1)
    return (confidence - (best == ids).to(p)).square().mean()
