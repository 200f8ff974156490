"""A schedule refined from the gradient norms of a run before, to be reused on the next folds or data of the same kind.

    G_t    norm of the gradient at step t = 1..T before clipping, median-filtered over 2 floor(tau T/2) + 1 steps
    w_t  = G_t^-2 for SGD (L2 norms), G_t^-1 for Adam (L1 norms)
    lr_t proportional to w_t * sum over p > t of w_p;    0 at the last step; scaled to a peak of 1

Constant norms give exactly linear decay; high early norms give a warm-up that nobody had to set. The refined run has
other norms, but refining again is not worth it; without the filter the result is noise.

Source: Defazio, Cutkosky, Mehta, Mishchenko, "When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement"
(2023). The published code divides by the sum of weights where this divides by the maximum, a scale only. The filter
pads with the nearest value at the start and by reflection at the end, as theirs.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import ndimage
from torch.optim import Optimizer

from medseg.core.schedules.closed_form import ClosedFormLR

_POWERS = {"sgd": 2.0, "adam": 1.0}
_NORMS = {"l2": 2.0, "l1": 1.0}


def refine_schedule(grad_norms: ArrayLike, optimizer: str = "sgd", tau: float = 0.1) -> np.ndarray:
    """Schedule for the next run from the gradient norms of this one.

    Args:
        grad_norms: norm of the gradient at every step, before clipping, (T,); positive. L2 norms for `sgd`, L1 norms
            for `adam`. Zeros are raised to the smallest positive filtered norm, with a warning.
        optimizer: `sgd` or `adam`, which stands for all that divide by a running second moment.
        tau: width of the median filter as a share of the run, in [0, 1); 0 filters nothing.

    Returns:
        Factors (T,) with maximum 1 and last value 0, for `TabulatedLR`.

    Raises:
        ValueError: fewer than three norms, norms that are negative, not finite or all zero, or an unknown optimizer.

    Example:
        >>> refine_schedule([2.0, 2.0, 2.0, 2.0, 2.0]).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    norms = np.asarray(grad_norms, dtype=np.float64)
    if norms.ndim != 1 or len(norms) < 3:
        raise ValueError(f"grad_norms must hold at least 3 steps in one dimension, got shape {norms.shape}")
    if not np.isfinite(norms).all() or (norms < 0).any():
        raise ValueError("grad_norms must be finite and not negative; drop the steps that a gradient scaler skipped")
    if optimizer not in _POWERS:
        raise ValueError(f"optimizer must be one of {', '.join(_POWERS)}, got {optimizer!r}")
    if not 0 <= tau < 1:
        raise ValueError(f"tau must be at least 0 and below 1, got {tau!r}; 0.1 is the published one")
    filtered = _median_filter(norms, tau)
    if not (filtered > 0).any():
        raise ValueError("grad_norms are all zero; record them after backward and before zero_grad")
    if (filtered == 0).any():
        warnings.warn("some gradient norms are 0; they are raised to the smallest positive one", stacklevel=2)
        filtered = np.maximum(filtered, filtered[filtered > 0].min())
    # Relative to the median first: a power of tiny norms would overflow.
    weights = (filtered / np.median(filtered)) ** -_POWERS[optimizer]
    later = np.append(np.cumsum(weights[::-1])[::-1][1:], 0.0)
    rates = weights * later
    return rates / rates.max()


def _median_filter(norms: np.ndarray, tau: float) -> np.ndarray:
    half = int(tau * len(norms) / 2)
    if half == 0:
        return norms
    padded = np.pad(np.pad(norms, (half, 0), mode="edge"), (0, half), mode="reflect")
    return ndimage.median_filter(padded, size=2 * half + 1, mode="nearest")[half : half + len(norms)]


class TabulatedLR(ClosedFormLR):
    """Follow a table of factors, stretched to the length of the run.

    Args:
        optimizer: the optimizer whose groups' rates are scaled.
        factors: factors of consecutive steps, at least one, such as `refine_schedule` gives.
        total_steps: length of the run; by default that of the table. Another length is interpolated linearly between
            the first and the last entry. The last factor holds afterwards.
        last_epoch: steps taken already; -1 starts anew.

    Raises:
        ValueError: factors are empty, negative or not finite.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = TabulatedLR(optimizer, [1.0, 0.5, 0.0], total_steps=5)
        >>> [schedule.factor(step) for step in range(6)]
        [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factors: Sequence[float],
        total_steps: int | None = None,
        last_epoch: int = -1,
    ) -> None:
        table = np.asarray(factors, dtype=np.float64)
        if table.ndim != 1 or not len(table) or not np.isfinite(table).all() or (table < 0).any():
            raise ValueError("factors must be at least one finite number, none negative, in one dimension")
        steps = len(table) if total_steps is None else int(total_steps)
        if steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps!r}")
        if steps != len(table):
            table = np.interp(np.linspace(0, len(table) - 1, steps), np.arange(len(table)), table)
        self.factors: list[float] = table.tolist()
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Rate at a step over the initial rate."""
        return self.factors[min(step, len(self.factors) - 1)]


class GradNormRecorder:
    """Keep the norm of the whole gradient at every step; call it after backward and before clipping.

    Under mixed precision unscale the gradients first, and leave out the steps that the scaler skips.

    Args:
        norm: `l2` for SGD, `l1` for Adam.

    Raises:
        ValueError: the norm is unknown.

    Example:
        >>> weight = torch.tensor([3.0, 4.0], requires_grad=True)
        >>> (weight**2).sum().div(2).backward()
        >>> recorder = GradNormRecorder()
        >>> recorder.record([weight]), recorder.norms
        (5.0, [5.0])
    """

    def __init__(self, norm: str = "l2") -> None:
        if norm not in _NORMS:
            raise ValueError(f"norm must be one of {', '.join(_NORMS)}, got {norm!r}")
        self.norm = norm
        self.norms: list[float] = []

    def record(self, source: Optimizer | Iterable[torch.Tensor]) -> float:
        """Add the norm of the present gradients.

        Args:
            source: the optimizer, or the parameters.

        Returns:
            The norm.

        Raises:
            ValueError: no parameter has a gradient.
        """
        parameters = [p for g in source.param_groups for p in g["params"]] if isinstance(source, Optimizer) else source
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            raise ValueError("no parameter has a gradient; call record after backward and before zero_grad")
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients, _NORMS[self.norm])))
        return self.norms[-1]

    def state_dict(self) -> dict[str, Any]:
        """Norms so far, for a checkpoint."""
        return {"norm": self.norm, "norms": list(self.norms)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.norm, self.norms = state["norm"], list(state["norms"])
