"""Whether a layer's filters do anything: how many are empty, how varied and how independent they are.

    sparsity        part of the kernels (one for each pair of channels) with max |w| < 0.01 max of the layer
    entropy         - sum p log10 p of the parts p of variance that the principal components of all kernels explain
    entropy ratio   that entropy to the one of as many random kernels: 0 all are alike, near 1 like a layer at its start
    orthogonality   1 - mean |cos| between filters, 1 for all at right angles

Source: Gavrikov, Keuper, "CNN Filter DB: An Empirical Investigation of Trained Convolutional Filters" (CVPR 2022), for
3 x 3 kernels. Differs: kernels of any size, so the entropy of random kernels is drawn, with a seed, for their number
and size instead of a curve fitted to 3 x 3; orthogonality of a layer's filters (C_out of them) is a mean of cosines, so
that it does not depend on their number.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch

EMPTY = 0.01
MOST_RANDOM = 4096  # kernels: more hardly change the entropy


class FilterDiagnosis(NamedTuple):
    """What a layer's filters look like.

    Attributes:
        sparsity: part of empty kernels.
        entropy: of the explained variance, in powers of ten; nan for kernels of one voxel or a single one.
        entropy_ratio: to that of random kernels.
        orthogonality: of the filters, in [0, 1]; nan for a single one.
    """

    sparsity: float
    entropy: float
    entropy_ratio: float
    orthogonality: float


def diagnose_filters(weight: torch.Tensor, transposed: bool = False) -> FilterDiagnosis:
    """Measure the filters of a convolution.

    Args:
        weight: (C_out, C_in, kernel...), or (C_out, C_in) of a linear layer.
        transposed: it is (C_in, C_out, kernel...).

    Raises:
        ValueError: the weight has fewer than two axes.

    Example:
        >>> weight = torch.zeros(2, 1, 3, 3)
        >>> weight[0, 0, 1, 1], weight[1, 0, 0, 0] = 1.0, 1.0
        >>> found = diagnose_filters(weight)
        >>> found.sparsity, found.entropy, found.orthogonality
        (0.0, 0.0, 1.0)
    """
    if weight.ndim < 2:
        raise ValueError(f"weight must have at least two axes (C_out, C_in), got shape {tuple(weight.shape)}")
    weight = weight.detach().double()
    filters = weight.transpose(0, 1) if transposed else weight
    kernels = filters.reshape(filters.shape[0] * filters.shape[1], -1)
    entropy, expected = variance_entropy(kernels), random_entropy(*kernels.shape)
    return FilterDiagnosis(
        _empty_share(kernels), entropy, entropy / expected if expected else float("nan"), _orthogonality(filters)
    )


def variance_entropy(kernels: torch.Tensor) -> float:
    """Entropy of the parts of variance that principal components of kernels explain.

    Args:
        kernels: (n, size).

    Returns:
        Between 0 (all lie on one line) and log10 of the size; nan where there is no variance to explain.

    Example:
        >>> round(variance_entropy(torch.eye(3)), 3)  # centred, three points span two directions
        0.301
    """
    centred = kernels.double() - kernels.double().mean(0)
    variance = torch.linalg.svdvals(centred).square()
    if min(kernels.shape) < 2 or not variance.sum() > 0:
        return float("nan")
    parts = variance / variance.sum()
    return max(0.0, float(-torch.xlogy(parts, parts).sum()) / math.log(10))


@lru_cache(maxsize=512)
def random_entropy(count: int, size: int, draws: int = 4) -> float:
    """Mean entropy of so many kernels of this size with normal entries; nan where kernels have none.

    Example:
        >>> 0.94 < random_entropy(1000, 9) < math.log10(9)
        True
    """
    generator = torch.Generator().manual_seed(0)
    shape = (draws, min(count, MOST_RANDOM), size)
    return sum(variance_entropy(k) for k in torch.randn(shape, generator=generator, dtype=torch.float64)) / draws


def _empty_share(kernels: torch.Tensor) -> float:
    largest = kernels.abs().amax(1)
    most = largest.max()
    return float((largest < EMPTY * most).double().mean()) if most > 0 else 1.0


def _orthogonality(filters: torch.Tensor) -> float:
    rows = filters.flatten(1)
    rows = rows[rows.norm(dim=1) > 0]
    if len(rows) < 2:
        return float("nan")
    unit = rows / rows.norm(dim=1, keepdim=True)
    cosines = (unit @ unit.T).abs()
    return 1 - float((cosines.sum() - cosines.trace()) / (len(rows) * (len(rows) - 1)))
