"""Learn from several teachers, such as models of several sites, without letting the most certain one drown the others.

    L = sum over k of w_k tau_k^2 KL(softmax(teacher_k/tau_k) || softmax(student/tau_k)),   mean over voxels

    temperatures   tau_k <- tau_k - temperature_lr (H_k - mean of all H),  within 1 and 10;  H_k is the mean entropy of
                   softmax(teacher_k/tau_k): teachers end up equally certain
    weights        r_k = (L_k(t)/L_k(0))^beta of running means,  w_k = r_k/sum of r:  who is learnt more slowly counts
                   for more

Source: Zhao et al., "Mitigating Accuracy-Robustness Trade-off via Balanced Multi-Teacher Adversarial Distillation"
(2023), without its adversarial half. Differs in the factor tau_k^2, without which a higher temperature would weigh
less.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

_COLDEST, _HOTTEST = 1.0, 10.0


class MultiTeacherLoss(nn.Module):
    """Balanced divergence of a student from several teachers, on logits (B, C, spatial...).

    Computed in float32 (float64 stays). Temperatures and weights adapt in training mode only, after the value is
    computed; they are buffers, so that a checkpoint goes on with them.

    Args:
        num_teachers: at least 1.
        tau: temperature at the start, 1 to 10.
        temperature_lr: step of the temperatures; 0 leaves them.
        beta: how strongly weights follow progress; 0 keeps them equal.
        smoothing: share of the running mean of each loss that stays at a step, in [0, 1).

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> z = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> loss = MultiTeacherLoss(2)
        >>> loss(z, [z, z]), loss.weights
        (tensor(0.), tensor([0.5000, 0.5000]))
    """

    temperatures: torch.Tensor
    weights: torch.Tensor
    means: torch.Tensor
    first: torch.Tensor

    def __init__(
        self,
        num_teachers: int,
        tau: float = 2.0,
        temperature_lr: float = 0.01,
        beta: float = 1.0,
        smoothing: float = 0.9,
    ) -> None:
        super().__init__()
        if num_teachers < 1:
            raise ValueError(f"num_teachers must be at least 1, got {num_teachers}")
        if not _COLDEST <= tau <= _HOTTEST:
            raise ValueError(f"tau must lie within {_COLDEST:g} and {_HOTTEST:g}, got {tau}")
        if not (0 <= temperature_lr < float("inf") and 0 <= beta < float("inf") and 0 <= smoothing < 1):
            raise ValueError(
                "temperature_lr and beta must be finite and at least 0, smoothing at least 0 and below 1, got "
                f"{temperature_lr}, {beta} and {smoothing}"
            )
        self.temperature_lr, self.beta, self.smoothing = float(temperature_lr), float(beta), float(smoothing)
        self.register_buffer("temperatures", torch.full((num_teachers,), float(tau)))
        self.register_buffer("weights", torch.full((num_teachers,), 1 / num_teachers))
        self.register_buffer("means", torch.zeros(num_teachers))
        self.register_buffer("first", torch.full((num_teachers,), torch.nan))

    def forward(self, student: torch.Tensor, teachers: Sequence[torch.Tensor]) -> torch.Tensor:
        """Compute the loss.

        Args:
            student: logits (B, C, spatial...) with at least two channels.
            teachers: logits of each teacher, of the same shape; they get no gradient.

        Returns:
            A scalar.

        Raises:
            ValueError: number or shapes do not fit.
        """
        if len(teachers) != len(self.weights) or any(z.shape != student.shape for z in teachers):
            raise ValueError(
                f"teachers must be {len(self.weights)} tensors of shape {tuple(student.shape)}, got "
                f"{[tuple(z.shape) for z in teachers]}"
            )
        with torch.autocast(student.device.type, enabled=False):
            student = student if student.dtype == torch.float64 else student.float()
            pairs = [
                _compare(student, z.detach().to(student), t) for z, t in zip(teachers, self.temperatures, strict=True)
            ]
            losses, entropies = (torch.stack(values) for values in zip(*pairs, strict=True))
            value = (self.weights * losses).sum()
        if self.training:
            self._adapt(losses.detach(), entropies)
        return value

    @torch.no_grad()
    def _adapt(self, losses: torch.Tensor, entropies: torch.Tensor) -> None:
        losses, entropies = losses.to(self.means), entropies.to(self.means)
        new = self.first.isnan()
        # A teacher that is matched from the first step on can only fall behind: any later loss counts as such.
        self.first = torch.where(new, losses.clamp(min=torch.finfo(losses.dtype).eps), self.first)
        self.means = torch.where(new, losses, self.smoothing * self.means + (1 - self.smoothing) * losses)
        progress = (self.means / self.first).clamp(min=torch.finfo(losses.dtype).eps) ** self.beta
        self.weights = progress / progress.sum()
        step = self.temperature_lr * (entropies - entropies.mean())
        self.temperatures = (self.temperatures - step).clamp(_COLDEST, _HOTTEST)


def _compare(student: torch.Tensor, teacher: torch.Tensor, tau: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Divergence from a teacher, and the teacher's mean entropy."""
    ours, theirs = functional.log_softmax(student / tau, 1), functional.log_softmax(teacher / tau, 1)
    p = theirs.exp()
    return tau**2 * (p * (theirs - ours)).sum(1).mean(), -(p * theirs).sum(1).mean()
