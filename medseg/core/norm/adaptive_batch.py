"""AdaB2N: batch normalisation for learning site after site with a memory of earlier ones.

A batch mixes n_t items of each task t (site, scanner). Their shares in the batch statistics are learned, and the rate
eta at which remembered statistics move falls from step to step:

    omega_t = (exp(psi_t) + n_t) / sum over tasks seen,   an item of task t weighs omega_t / n_t
    mean, var = weighted sums over items of their means over voxels
    eta_1 = m^kappa,   eta_(i+1) = eta_i / (eta_i + (1 - m)^kappa)
    regularization = mse(mean, running mean) + mse(var, running var),   remembered values after their step

kappa = 1 is the usual moving average with momentum m, kappa = 0 the plain average over all steps. Add `regularization`
of every layer to the loss, weighted, from the second task on (`adaptive_regularization`).

Lyu, Wang, Zhang, Sun, Su, Zhu, Pan, "Overcoming Recency Bias of Normalization Statistics in Continual Learning: Balance
and Adaptation" (NeurIPS 2023), and its code. Where a batch lacks a task, the published weights sum to less than 1; here
they are scaled to sum to 1 (`renormalise=False` keeps the published ones). eta is kept in the state dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from medseg.core.norm.feature_norm import (
    RunningNorm,
    check_rate,
    count_values,
    per_channel,
    spatial_axes,
    to_full_precision,
)
from medseg.core.norm.ghost_batch import fixed_affine, normalise


class _Current:
    """Tasks of the items of the batch; a plain attribute, which torch.compile follows, unlike a ContextVar."""

    tasks: Tensor | None = None


@contextmanager
def task_ids(ids: Tensor | Sequence[int]) -> Iterator[None]:
    """Say to which task each item of the batches inside belongs.

    Args:
        ids: (B,) numbers from 0 to the number of tasks - 1.

    Yields:
        Nothing.

    Example:
        >>> layer = AdaBatchNorm(3, num_tasks=2)
        >>> layer.end_task()
        >>> with task_ids([0, 0, 1]):
        ...     y = layer(torch.randn(3, 3, 4, 4))
    """
    before, _Current.tasks = _Current.tasks, torch.as_tensor(ids)
    try:
        yield
    finally:
        _Current.tasks = before


class AdaBatchNorm(RunningNorm):
    """Batch normalisation whose statistics balance the tasks of a batch.

    Without `task_ids` around the call, and before the first `end_task`, every item weighs the same.

    Args:
        num_features: channels C.
        num_tasks: tasks in all.
        kappa: 1 forgets as batch normalisation does, 0 averages over all steps.
        init_logit: psi at the start.
        momentum: m above, 0 to 1.
        eps: added to the variance.
        renormalise: let the weights sum to 1 where a batch lacks a task.
        allow_single_value: in training, accept one value per channel instead of raising.

    Raises:
        ValueError: an argument out of range, an input of another shape, or task ids that do not fit the batch.

    Example:
        >>> tuple(AdaBatchNorm(4, num_tasks=3)(torch.randn(2, 4, 5, 5, 5)).shape)
        (2, 4, 5, 5, 5)
    """

    running_mean: Tensor
    running_var: Tensor
    rate: Tensor
    finished_tasks: Tensor

    def __init__(
        self,
        num_features: int,
        num_tasks: int = 1,
        kappa: float = 0.7,
        init_logit: float = 0.0,
        momentum: float = 0.1,
        eps: float = 1e-5,
        renormalise: bool = True,
        allow_single_value: bool = False,
    ) -> None:
        super().__init__(num_features, eps=eps, allow_single_value=allow_single_value)
        check_rate(momentum, "momentum")
        check_rate(kappa, "kappa")
        if num_tasks < 1:
            raise ValueError(f"num_tasks must be at least 1, got {num_tasks}")
        self.kappa = kappa
        self.momentum = momentum
        self.renormalise = renormalise
        self.task_logits = nn.Parameter(torch.full((num_tasks,), float(init_logit)))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))
        self.register_buffer("rate", torch.zeros(()))
        self.register_buffer("finished_tasks", torch.zeros((), dtype=torch.int64))
        self._regularization: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, spatial...)."""
        self.check_input(x)
        full = to_full_precision(x)
        if not self.learns_statistics:
            return self.apply_affine(normalise(full, self.running_mean, self.running_var, self.eps)).to(x.dtype)
        self.check_count(count_values(x), "batch and voxels")
        weights = self._weigh(full)[:, None]
        mean = (weights * full.mean(spatial_axes(x))).sum(0)
        spread = (full - per_channel(mean, full)).square().mean(spatial_axes(x))
        variance = (weights * spread).sum(0)
        self._move(mean.detach(), variance.detach())
        remembered = self.running_mean.clone(), self.running_var.clone()
        self._regularization = F.mse_loss(mean, remembered[0]) + F.mse_loss(variance, remembered[1])
        return self.apply_affine(normalise(full, mean, variance, self.eps)).to(x.dtype)

    @property
    def regularization(self) -> Tensor:
        """Distance of the last training batch's statistics from the remembered ones, with gradient; 0 before any."""
        return self.running_mean.new_zeros(()) if self._regularization is None else self._regularization

    def end_task(self) -> None:
        """Go on to the next task.

        Raises:
            ValueError: there are no more tasks.
        """
        if int(self.finished_tasks) + 1 >= len(self.task_logits):
            raise ValueError(f"all {len(self.task_logits)} tasks are begun; build the layer with a larger num_tasks")
        self.finished_tasks += 1

    def __getstate__(self) -> dict[str, Any]:
        """Leave the graph of the last batch out of copies."""
        return self.__dict__ | {"_regularization": None}

    def inference_affine(self) -> tuple[Tensor, Tensor]:
        """Give scale and shift per channel that evaluation amounts to."""
        return fixed_affine(self.running_mean, self.running_var, self.eps, self.weight, self.bias)

    def _weigh(self, x: Tensor) -> Tensor:
        """Weights (B,) of the items."""
        ids = _Current.tasks
        if ids is None:
            return x.new_full((x.shape[0],), 1 / x.shape[0])
        if ids.shape != (x.shape[0],) or ids.is_floating_point() or ids.min() < 0 or ids.max() >= len(self.task_logits):
            raise ValueError(
                f"task_ids must be {x.shape[0]} numbers below num_tasks {len(self.task_logits)}, one an item of "
                "the batch, "
                f"got {ids.tolist()}"
            )
        ids = ids.to(x.device)
        counts = F.one_hot(ids, len(self.task_logits)).sum(0).to(x.dtype)
        seen = torch.arange(len(counts), device=x.device) <= self.finished_tasks
        share = (self.task_logits.exp() + counts) * seen
        weights = (share / share.sum())[ids] / counts[ids]
        # In the first task there is nothing to balance: its share is 1 and its items weigh the same.
        return weights / weights.sum() if self.renormalise else weights

    @torch.no_grad()
    def _move(self, mean: Tensor, variance: Tensor) -> None:
        start = torch.full_like(self.rate, self.momentum**self.kappa)
        later = self.rate / (self.rate + (1 - self.momentum) ** self.kappa)
        self.rate.copy_(torch.where(self.rate == 0, start, later))
        rate = self.rate.to(mean.dtype)
        self.remember("running_mean", (1 - rate) * self.running_mean + rate * mean)
        self.remember("running_var", (1 - rate) * self.running_var + rate * variance)


def adaptive_regularization(model: nn.Module) -> Tensor:
    """Sum the regularisation of every AdaBatchNorm of a network, to add to the loss with a weight.

    Args:
        model: a network after its forward pass in training.

    Returns:
        A number with gradient; 0 without such layers.

    Raises:
        ValueError: the network has no AdaBatchNorm.

    Example:
        >>> layer = AdaBatchNorm(3)
        >>> _ = layer(torch.randn(2, 3, 4, 4))
        >>> bool(adaptive_regularization(layer) > 0)
        True
    """
    layers = [m for m in model.modules() if isinstance(m, AdaBatchNorm)]
    if not layers:
        raise ValueError('model has no AdaBatchNorm; build it with norm="adab2n" or use convert_norm')
    return torch.stack([layer.regularization for layer in layers]).sum()
