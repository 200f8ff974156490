"""Temperature scaling: divide the logits by one number, or mix the answers of several.

    p = sum over k of v_k softmax(z / T_k),    v_k >= 0,  sum of v_k = 1

With one temperature it is found by minimising the negative log-likelihood of held-out voxels, which is convex in
b = 1/T; its derivative is monotone, so bisection gives the minimum to rounding without a learning rate:

    d NLL / d b = mean over voxels of ( sum over classes of softmax(b z)_c z_c  -  z_label )

Every term grows with z_c in the same way for all classes, so the best class of every voxel stays the best. Rounding can
make two classes equal that differ in their last bit; then the best one is moved up by one unit in the last place.

Sources: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017); Zhang, Kailkhura, Han,
"Mix-n-Match: Ensemble and Compositional Methods for Uncertainty Calibration" (ICML 2020). The former minimises with
L-BFGS from a fixed start; the minimum is the same.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from typing_extensions import Self

from medseg.core.calibration._inputs import CalibrationWarning, as_voxels, check_fit

LIMITS = (0.05, 20.0)


def mix_temperatures(
    logits: torch.Tensor, temperatures: Sequence[float] | torch.Tensor, weights: Sequence[float] | torch.Tensor
) -> torch.Tensor:
    """Mix the softmax of logits at several temperatures.

    Args:
        logits: (N, C) or (B, C, spatial...); log-probabilities do as well.
        temperatures: T_k, positive, (K,).
        weights: v_k, (K,); they are divided by their sum.

    Returns:
        Probabilities of the same shape, in float32 or float64.

    Raises:
        ValueError: numbers of temperatures and weights differ, or one is out of range.

    Example:
        >>> mix_temperatures(torch.tensor([[0.0, 2.0]]), [1.0, 2.0], [0.5, 0.5])
        tensor([[0.1941, 0.8059]])
    """
    logits = logits if logits.dtype == torch.float64 else logits.float()
    t, v = (torch.as_tensor(x, dtype=logits.dtype, device=logits.device) for x in (temperatures, weights))
    check_temperatures(t.tolist(), v.tolist())
    logits = logits.log_softmax(1)
    total = torch.zeros_like(logits)
    for temperature, weight in zip(t, v / v.sum(), strict=True):
        total = total + weight * (logits / temperature).softmax(1)
    return total


def check_temperatures(temperatures: Sequence[float], weights: Sequence[float]) -> None:
    """Refuse temperatures and weights that make no mixture."""
    if not len(temperatures) or len(temperatures) != len(weights):
        raise ValueError(
            f"temperatures and weights must be equally many, at least one, got {len(temperatures)} and {len(weights)}"
        )
    if not all(t > 0 and math.isfinite(t) for t in temperatures):
        raise ValueError(f"temperatures must be positive and finite, got {list(temperatures)}")
    if not all(w >= 0 and math.isfinite(w) for w in weights) or not sum(weights) > 0:
        raise ValueError(f"weights must be 0 or more with a positive sum, got {list(weights)}")


def keep_best_class(scores: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """Undo what rounding did to the best class: where it is not that of `before`, raise it by one unit.

    Args:
        scores: (B, C, spatial...), changed in place.
        before: of the same shape.

    Returns:
        The scores.

    Example:
        >>> keep_best_class(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.1, 0.2]])).argmax(1)
        tensor([1])
    """
    best = before.argmax(1, keepdim=True)
    wrong = scores.argmax(1, keepdim=True) != best
    if bool(wrong.any()):
        top = scores.amax(1, keepdim=True)
        raised = torch.nextafter(top, torch.full_like(top, torch.inf))
        scores.scatter_(1, best, torch.where(wrong, raised, scores.gather(1, best)))
    return scores


class Calibrator(nn.Module):
    """What all calibrators share: they turn logits into calibrated ones, and keep the best class of every voxel."""

    def fit(self, logits: torch.Tensor, labels: torch.Tensor) -> Self:
        """Fit to held-out voxels; see the classes."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Plain numbers that build the fitted calibrator again, as `temperatures` and `weights`."""
        raise NotImplementedError

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Give calibrated probabilities, (N, C) or (B, C, spatial...), with gradients where asked for."""
        settings = self.settings()
        return mix_temperatures(logits, settings["temperatures"], settings["weights"])

    @torch.no_grad()
    def transform(self, logits: torch.Tensor) -> torch.Tensor:
        """Calibrate logits.

        Args:
            logits: (N, C) or (B, C, spatial...).

        Returns:
            Calibrated log-probabilities of the same shape, which are logits as well: their softmax is their
            exponential. The best class of every voxel is that of `logits`.

        Raises:
            ValueError: a logit is NaN, or there are fewer than two classes.
        """
        if logits.ndim < 2 or logits.shape[1] < 2:
            raise ValueError(
                f"logits must be (N, C) or (B, C, spatial...) with C of 2 or more, got {tuple(logits.shape)}"
            )
        if bool(logits.isnan().any()):
            raise ValueError("logits hold NaN; check the network's weights and its input")
        probabilities = self(logits)
        return keep_best_class(probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log(), logits)


class TemperatureCalibrator(Calibrator):
    """One temperature for all voxels and classes.

    Args:
        temperature: T, positive; above 1 makes the network less sure of itself.

    Raises:
        ValueError: the temperature is not positive.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 0.0]]).repeat(50, 1)
        >>> labels = torch.tensor([0, 0, 1, 1]).repeat(50)     # sure at 98 %, right in 3 of 4
        >>> calibrator = TemperatureCalibrator().fit(logits, labels)
        >>> round(calibrator.temperature, 3)
        3.641
        >>> calibrator.transform(logits).exp()[0]
        tensor([0.7500, 0.2500])
    """

    inverse: torch.Tensor

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        check_temperatures([temperature], [1.0])
        self.register_buffer("inverse", torch.tensor(1 / temperature, dtype=torch.float64))

    @property
    def temperature(self) -> float:
        """T."""
        return 1 / float(self.inverse)

    def settings(self) -> dict[str, Any]:
        """The temperature as `temperatures` and `weights`."""
        return {"temperatures": [self.temperature], "weights": [1.0]}

    @torch.no_grad()
    def fit(self, logits: torch.Tensor, labels: torch.Tensor) -> Self:
        """Find the temperature with the least negative log-likelihood, between 0.05 and 20.

        Args:
            logits: of held-out cases, (N, C) or (B, C, spatial...).
            labels: class ids, (N,), (B, spatial...) or (B, 1, spatial...).

        Returns:
            The calibrator itself.

        Raises:
            ValueError: shapes or values do not fit, or the labels hold one class only.

        Warns:
            CalibrationWarning: there are few voxels, or the best temperature lies beyond the limits, as it does where
                every voxel is right.
        """
        flat, ids = as_voxels(logits, labels)
        check_fit(ids)
        flat = flat.double()
        own = flat.gather(1, ids[:, None])[:, 0].mean()
        low, high = 1 / LIMITS[1], 1 / LIMITS[0]
        for end, sign in ((low, 1), (high, -1)):
            if sign * float(_expected(flat, end) - own) >= 0:
                message = f"the best temperature lies beyond {1 / end:g}, the limit, which is taken"
                warnings.warn(message, CalibrationWarning, stacklevel=2)
                self.inverse.fill_(end)
                return self
        while high - low > 1e-12 * high:
            middle = (low + high) / 2
            low, high = (low, middle) if float(_expected(flat, middle) - own) > 0 else (middle, high)
        self.inverse.fill_((low + high) / 2)
        return self


def _expected(logits: torch.Tensor, inverse: float) -> torch.Tensor:
    """Mean over voxels of the logit expected at a temperature."""
    return ((logits * inverse).softmax(1) * logits).sum(1).mean()
