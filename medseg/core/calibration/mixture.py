"""A mixture of temperatures, fitted to the likelihood or to the h-calibration objective.

    p = sum over k of v_k softmax(z b_k),    b_k = exp(beta_k) > 0,  v = softmax(omega)

One temperature makes all voxels more or less sure alike; a mixture can treat the sure ones otherwise than the unsure
ones, and keeps the best class of every voxel as well.

Source: Huang, Cao, Xia, Chen, Wang, Zhang, "h-calibration: Rethinking Classifier Recalibration with Probabilistic
Error-Bounded Objective" (IEEE TPAMI 2025), whose code takes |b_k| and |v_k| / sum |v|, drawn at random; here both are
positive by construction, and the b_k start around 1, so that the first answer is nearly that of the network. Its
objective is trained with Adam on random voxels; the likelihood, which is smooth, with L-BFGS on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional
from typing_extensions import Self

from medseg.core.calibration._inputs import as_voxels, check_fit
from medseg.core.calibration.correctness import correctness_loss
from medseg.core.calibration.h_calibration import h_calibration_loss
from medseg.core.calibration.temperature import LIMITS, Calibrator, check_temperatures

Objective = Literal["nll", "h_calibration", "correctness"]
# Widest of the starting b_k: 10 % to either side of 1.
_SPREAD = 0.1
_CHECK_EVERY = 20


class TemperatureMixture(Calibrator):
    """Several temperatures, the same for all voxels and classes.

    Args:
        components: K, temperatures to fit.
        objective: what `fit` minimises: `"nll"`, `"h_calibration"` (see `h_calibration_loss`; all voxels are pooled
            where there are two classes) or `"correctness"` (see `correctness_loss`).
        steps: at most so many steps of Adam, or evaluations of the likelihood.
        batch_size: voxels in one step of Adam.
        learning_rate: of Adam.
        patience: steps without progress after which Adam stops; it is judged on a tenth of the voxels that is set
            aside, or on all where that tenth is less than a batch.
        window: neighbours in the h-calibration objective.
        seed: of the split and the batches.
        temperatures: T_k of a fitted mixture, in place of the start.
        weights: v_k of a fitted mixture.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> logits = torch.tensor([[4.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 0.0]]).repeat(50, 1)
        >>> mixture = TemperatureMixture(components=2).fit(logits, torch.tensor([0, 0, 1, 1]).repeat(50))
        >>> mixture.transform(logits).exp()[0]
        tensor([0.7500, 0.2500])
    """

    def __init__(
        self,
        components: int = 16,
        objective: Objective = "nll",
        *,
        steps: int = 1000,
        batch_size: int = 5000,
        learning_rate: float = 5e-3,
        patience: int = 160,
        window: int = 200,
        seed: int = 0,
        temperatures: Sequence[float] | None = None,
        weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if objective not in ("nll", "h_calibration", "correctness"):
            raise ValueError(f"objective must be nll, h_calibration or correctness, got {objective!r}")
        if min(components, steps, batch_size, patience) < 1 or learning_rate <= 0:
            raise ValueError("components, steps, batch_size and patience must be 1 or more and learning_rate positive")
        self.objective, self.steps, self.batch_size = objective, steps, batch_size
        self.learning_rate, self.patience, self.window, self.seed = learning_rate, patience, window, seed
        if temperatures is None:
            inverse = torch.linspace(1 - _SPREAD, 1 + _SPREAD, components) if components > 1 else torch.ones(1)
            share = torch.ones(components)
        else:
            share = torch.ones(len(temperatures)) if weights is None else torch.tensor(weights, dtype=torch.float32)
            check_temperatures(temperatures, share.tolist())
            inverse = 1 / torch.tensor(temperatures, dtype=torch.float32)
        self.log_inverse = nn.Parameter(inverse.log())
        self.log_weights = nn.Parameter((share / share.sum()).clamp_min(torch.finfo(torch.float32).tiny).log())

    def settings(self) -> dict[str, Any]:
        """The fitted mixture as `temperatures` and `weights`."""
        temperatures = (-self._limited()).exp().tolist()
        return {"temperatures": temperatures, "weights": self.log_weights.softmax(0).tolist()}

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Give calibrated probabilities, (N, C) or (B, C, spatial...), with gradients for logits and temperatures."""
        logits = (logits if logits.dtype == torch.float64 else logits.float()).log_softmax(1)
        total = torch.zeros_like(logits)
        for inverse, weight in zip(self._limited().exp(), self.log_weights.softmax(0), strict=True):
            total = total + weight * (logits * inverse).softmax(1)
        return total

    def _limited(self) -> torch.Tensor:
        """Logarithms of the b_k, at which temperatures stay within the limits."""
        return self.log_inverse.clamp(-math.log(LIMITS[1]), -math.log(LIMITS[0]))

    def fit(self, logits: torch.Tensor, labels: torch.Tensor) -> Self:
        """Fit temperatures and weights to held-out voxels.

        Args:
            logits: of held-out cases, (N, C) or (B, C, spatial...); 100 000 voxels are plenty, see `sample_voxels`.
            labels: class ids, (N,), (B, spatial...) or (B, 1, spatial...).

        Returns:
            The calibrator itself.

        Raises:
            ValueError: shapes or values do not fit, the labels hold one class only, or there are too few voxels for
                the window.

        Warns:
            CalibrationWarning: there are few voxels.
        """
        flat, ids = as_voxels(logits.detach(), labels)
        check_fit(ids)
        with torch.enable_grad():
            if self.objective == "nll":
                self._fit_likelihood(flat, ids)
            else:
                self._fit_by_batches(flat, ids)
        return self

    def _fit_likelihood(self, logits: torch.Tensor, ids: torch.Tensor) -> None:
        optimizer = torch.optim.LBFGS(
            self.parameters(), max_iter=self.steps, max_eval=self.steps, line_search_fn="strong_wolfe",
            tolerance_change=1e-9, tolerance_grad=1e-7,
        )  # fmt: skip

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = functional.nll_loss(_log(self(logits)), ids)
            loss.backward()
            return loss

        optimizer.step(closure)

    def _loss(self, classes: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        if self.objective == "correctness":
            return correctness_loss
        return lambda p, y: h_calibration_loss(p, y, window=self.window, leave_one_class_out=classes > 2)

    def _fit_by_batches(self, logits: torch.Tensor, ids: torch.Tensor) -> None:
        """Adam on random voxels, and the parameters that are best on those set aside."""
        loss = self._loss(logits.shape[1])
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(ids), generator=generator).to(ids.device)
        aside, rest = order[: len(ids) // 10], order[len(ids) // 10 :]
        aside = aside if len(aside) >= self.batch_size else order  # a tenth of few voxels says little
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        best, kept, since = math.inf, {}, 0
        for step in range(self.steps):
            if step % _CHECK_EVERY == 0:
                with torch.no_grad():
                    value = float(loss(self(logits[aside]), ids[aside]))
                if value < best:
                    best, since = value, step
                    kept = {name: parameter.detach().clone() for name, parameter in self.named_parameters()}
                if step - since >= self.patience:
                    break
            batch = rest[torch.randint(len(rest), (self.batch_size,), generator=generator).to(rest.device)]
            optimizer.zero_grad()
            loss(self(logits[batch]), ids[batch]).backward()
            optimizer.step()
        self.load_state_dict(kept)


def _log(probabilities: torch.Tensor) -> torch.Tensor:
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
