"""Fréchet distance of two clouds of features, each taken for a Gaussian.

    F = |m_1 - m_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1 C_2)^(1/2)

With centred features A_i (n_i, d), divided by sqrt(n_i - 1), the last trace is the sum of the singular values of
A_1 A_2^T (n_1, n_2): no matrix of d x d is needed. Of these values min(n_1, n_2) - 1 can differ from 0.

Source: Mathiasen, Hvilshøj, "Backpropagating through Fréchet Inception Distance" (2020). In Chatterjee et al.,
"PULASki" (2025), features come from a network trained on photographs or MR images; any network can be given here, and
none is shipped.
"""

from __future__ import annotations

import torch


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Fréchet distance between the Gaussians of two sets of features.

    Args:
        a: features, (n, d) with n at least 2, a float type.
        b: features, (m, d) with m at least 2.

    Returns:
        A scalar, at least 0 up to rounding; float32, or float64 if the input is.

    Raises:
        ValueError: shapes do not fit.

    Example:
        >>> cloud = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> frechet_distance(cloud, cloud + torch.tensor([0.0, 3.0])).item()
        9.0
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"features must have shapes (n, d) and (m, d) with n and m at least 2, got {tuple(a.shape)} and "
            f"{tuple(b.shape)}"
        )
    with torch.autocast(a.device.type, enabled=False):
        a, b = (x if x.dtype == torch.float64 else x.float() for x in (a, b))
        one, two = ((x - x.mean(0)) / (len(x) - 1) ** 0.5 for x in (a, b))
        apart = (a.mean(0) - b.mean(0)).square().sum() + one.square().sum() + two.square().sum()
        product = one @ two.T
        if not bool(product.isfinite().all()):
            return apart + product.sum()  # NaN goes through; the decomposition would refuse it
        # Centring makes the last value 0, and there it has no slope.
        return apart - 2 * torch.linalg.svdvals(product)[: min(len(a), len(b)) - 1].sum()
