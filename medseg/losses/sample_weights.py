"""Weights of training samples that grow with their loss: what is hard is trained on more.

Over all N training samples with weights w (sum 1, start 1 / N), for the samples of a batch of size B,

    N w_i <- (N w_i)^(1 - eta h) exp(eta l_i),  then w is divided by its sum
    L = 1 / B * sum over i of  N w_i l_i

h = 0 is the plain exponentiated gradient (reweighting by loss alone); h > 0 pulls the weights back to equal ones, the
primal-dual method of distributionally robust optimisation that Dong, Xie, Ward compare AdaWAC with in "Adaptively
Weighted Data Augmentation Consistency Regularization for Robust Optimization under Concept Shift" (ICML 2023).

Differs from the published code, which divides by the sum over the batch, so that a weight depends on its neighbours and
the loss is too small by the batch size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from medseg.losses._inputs import in_full_precision
from medseg.losses._sample_table import SampleTableLoss


class ExponentiatedSampleWeights(SampleTableLoss):
    """Weighted mean of the losses of a batch, with weights that grow exponentially with the losses seen.

    The table `log_weights` (num_samples,) of log(N w), up to a common constant, and `visits` are buffers as in
    `AdaptiveWeightedConsistencyLoss`, and so are its rules: only `train()` writes, repeated ids count twice, losses
    that are not finite change nothing, ranks share one table. An update comes before the loss of the same step.

    Args:
        num_samples: N, number of training samples.
        step_size: eta, at least 0.
        entropy: h, at least 0; the published value is 0.01.
        sample_names: names in the order of the ids, see `AdaptiveWeightedConsistencyLoss`.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> loss = ExponentiatedSampleWeights(num_samples=4, step_size=1.0)
        >>> loss(torch.tensor([0.0, 1.0]), torch.tensor([2, 0]))
        tensor(0.9507)
        >>> loss.sample_weights()                               # e : 1 : 1 : 1
        tensor([0.4754, 0.1749, 0.1749, 0.1749])
    """

    log_weights: torch.Tensor

    def __init__(
        self,
        num_samples: int,
        step_size: float = 1.0,
        entropy: float = 0.0,
        sample_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(num_samples, "log_weights", sample_names)
        for name, value in {"step_size": step_size, "entropy": entropy}.items():
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number, at least 0, got {value}")
        if step_size * entropy > 1:
            raise ValueError(f"step_size * entropy must be at most 1, got {step_size * entropy:g}; lower either")
        self.step_size, self.entropy = float(step_size), float(entropy)

    def forward(self, losses: torch.Tensor, sample_ids: torch.Tensor) -> torch.Tensor:
        """Update the weights of the samples, in `train()`, and weigh their losses.

        Args:
            losses: (B,), one for each sample, with gradient.
            sample_ids: whole numbers (B,).

        Returns:
            A scalar; float32, or float64 if the losses are.

        Raises:
            ValueError: shapes or types do not fit.
            IndexError: a sample id is out of range.
        """
        if losses.ndim != 1:
            raise ValueError(
                f"losses must have shape (B,), one for each sample, got {tuple(losses.shape)}; "
                'take the mean over voxels of a loss with reduction="none"'
            )
        ids, losses = self.check_ids(sample_ids, len(losses)), in_full_precision(losses)
        if self.training:
            pull = self.entropy * self._centred()[ids].to(losses)
            self.add(ids, self.step_size * (losses.detach() - pull))
        return (self.num_samples * self.sample_weights(ids).to(losses) * losses).mean()

    def sample_weights(self, sample_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Give the weights of some or all samples; those of all sum to 1.

        Args:
            sample_ids: whole numbers (n,); all samples by default.

        Returns:
            (n,).

        Raises:
            ValueError: the ids are no whole numbers.
            IndexError: an id is out of range.
        """
        weights = self.log_weights.softmax(0)
        return weights if sample_ids is None else weights[self.check_ids(sample_ids, len(sample_ids))]

    def _centred(self) -> torch.Tensor:
        """Table of log(N w): the part of it that all samples share taken off."""
        return self.log_weights.log_softmax(0) + math.log(self.num_samples)
