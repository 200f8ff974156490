"""How heavy the tail of a layer's spectrum is: the exponent alpha of its largest eigenvalues (FARMS).

    eigenvalues l of W W^T, ascending; the upper half of them, the smallest of these l_min
    alpha = 1 + n / sum ln(l / l_min)

Well-trained layers have heavy tails, hence a low alpha; a high one speaks for too little training. But alpha depends on
the shape of W as well, so layers of different shapes cannot be compared. FARMS takes it from sub-matrices of one
aspect ratio instead, whose eigenvalues are pooled:

    matrix        windows of some rows and Q times as many columns, so many positions along each axis
    convolution   (C_out, C_in) for each place of the kernel, cut along its longer side into square blocks; the places
                  are pooled, and alpha is the mean over the blocks

Source: Hu, Goel, Killiakov, Yang, "Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias" (ICML 2025);
the estimator is Hill's with the median as threshold. Differs from the published code: convolutions in 1D and 3D and
transposed ones, whose spectrum is that of the plain one; where the longer side is no multiple of the shorter one,
blocks overlap evenly instead of leaving out the rest (`keep_rest=False` leaves it out); its factor sqrt(0.5) for
convolutions is missing, since alpha does not know scale; eigenvalues of zero (pruned channels) are not counted, as they
have no logarithm.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from medseg.core.optim._checks import check_least, check_whole

ZERO = 1e-24  # of the largest eigenvalue: what is below is rounding of singular values


def hill_alpha(eigenvalues: torch.Tensor) -> float:
    """Exponent of the upper half of a spectrum; the larger, the lighter its tail.

    Args:
        eigenvalues: in any order, at least 0.

    Returns:
        1 + n / sum ln(l / l_min); nan for less than two different values above zero.

    Example:
        >>> round(hill_alpha(torch.tensor([1.0, 2.0, 4.0, 8.0])), 3)
        3.885
    """
    values = eigenvalues.detach().double().flatten().sort().values
    values = values[values > ZERO * values[-1]] if len(values) else values
    tail = values[len(values) // 2 :]
    if len(tail) < 2:
        return float("nan")
    spread = float((tail / tail[0]).log().sum())
    return 1 + len(tail) / spread if spread > 0 else float("nan")


def farms_eigenvalues(matrix: torch.Tensor, rows: int = 60, aspect: float = 1.0, positions: int = 5) -> torch.Tensor:
    """Eigenvalues of W W^T of windows of one shape, evenly spread over a matrix, pooled and ascending.

    Args:
        matrix: (m, n).
        rows: of a window; fewer where the matrix has fewer, or too few columns.
        aspect: columns to rows of a window, above 0.
        positions: of windows along each axis, at least 1.

    Raises:
        ValueError: the matrix has not two axes, or an option is out of range.

    Example:
        >>> len(farms_eigenvalues(torch.randn(100, 80)))
        1500
    """
    check_whole("rows", rows, 1)
    check_whole("positions", positions, 1)
    check_least("aspect", aspect, 1e-6)
    if matrix.ndim != 2 or not matrix.numel():
        raise ValueError(f"matrix must have two axes and an entry, got shape {tuple(matrix.shape)}; see layer_alpha")
    height = max(1, min(rows, matrix.shape[0], int(matrix.shape[1] / aspect)))
    width = max(1, int(height * aspect))
    windows = [
        matrix[top : top + height, left : left + width]
        for top in _places(matrix.shape[0] - height, positions)
        for left in _places(matrix.shape[1] - width, positions)
    ]
    return _eigenvalues(torch.stack(windows)).flatten().sort().values


def layer_alpha(weight: torch.Tensor, rows: int = 60, positions: int = 5, keep_rest: bool = True) -> float:
    """Exponent of a layer's spectrum that can be compared with those of layers of other shapes.

    Args:
        weight: (C_out, C_in) of a linear layer, or (C_out, C_in, kernel...) of a convolution; of a transposed one the
            first two axes are exchanged, to no effect.
        rows: of the windows of a linear layer, which are square.
        positions: of these along each axis.
        keep_rest: whether channels beyond a multiple count, see above.

    Returns:
        alpha, of blocks that are not empty; nan where there is no spectrum, as for a single channel and kernel place.

    Raises:
        ValueError: the weight has fewer than two axes.

    Example:
        >>> torch.manual_seed(0) and round(layer_alpha(torch.randn(16, 32, 3, 3, 3)), 1)
        2.1
    """
    if weight.ndim < 2:
        raise ValueError(f"weight must have at least two axes (C_out, C_in), got shape {tuple(weight.shape)}")
    weight = weight.detach()
    if weight.ndim == 2:
        return hill_alpha(farms_eigenvalues(weight, rows, positions=positions))
    matrices = weight.flatten(2).movedim(2, 0)  # (places, C_out, C_in)
    if matrices.shape[1] < matrices.shape[2]:
        matrices = matrices.mT
    long, short = matrices.shape[1:]
    count = -(-long // short) if keep_rest else long // short
    room = long - short if keep_rest else (count - 1) * short
    starts = np.linspace(0, room, count).astype(int).tolist()
    alphas = [hill_alpha(_eigenvalues(matrices[:, start : start + short])) for start in starts]
    known = [alpha for alpha in alphas if np.isfinite(alpha)]
    return float(np.mean(known)) if known else float("nan")


def layer_alphas(model: nn.Module) -> dict[str, float]:
    """Exponents of the spectra of all convolutions and linear layers.

    Args:
        model: the network.

    Returns:
        alpha by the parameter's name, in the order of the modules; nan where there is none.

    Example:
        >>> list(layer_alphas(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Linear(8, 2))))
        ['0.weight', '1.weight']
    """
    return {
        f"{name}.weight" if name else "weight": layer_alpha(module.weight)
        for name, module in model.named_modules()
        if isinstance(module, (_ConvNd, nn.Linear))
    }


def learning_rate_scales(alphas: Mapping[str, float], low: float = 0.5, high: float = 1.5) -> dict[str, float]:
    """Factors for layers' learning rates: least for the lowest alpha, most for the highest, linear between.

    A layer with a high alpha is behind the others and learns faster (TempBalance). Leave out first and last layers.

    Args:
        alphas: by layer.
        low: factor of the lowest, above 0.
        high: factor of the highest, at least `low`.

    Returns:
        Factors by layer; the middle where alpha is nan or all are equal.

    Raises:
        ValueError: a factor is out of range.

    Example:
        >>> learning_rate_scales({"a": 2.0, "b": 3.0, "c": 4.0})
        {'a': 0.5, 'b': 1.0, 'c': 1.5}
    """
    if not 0 < low <= high:
        raise ValueError(f"0 < low <= high is needed, got {low} and {high}")
    known = [alpha for alpha in alphas.values() if np.isfinite(alpha)]
    least, width = min(known, default=0.0), max(known, default=0.0) - min(known, default=0.0)
    return {
        name: low + (high - low) * ((alpha - least) / width if width and np.isfinite(alpha) else 0.5)
        for name, alpha in alphas.items()
    }


def _places(room: int, positions: int) -> list[int]:
    """Where windows begin that have some room along an axis: at whole equal steps, and none twice."""
    step = max(1, room // max(1, positions - 1))
    return [step * number for number in range(min(positions, room // step + 1))]


def _eigenvalues(matrices: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of W W^T, for matrices in the last two axes; in float64, since small ones are squared."""
    return torch.linalg.svdvals(matrices.double()).square()
