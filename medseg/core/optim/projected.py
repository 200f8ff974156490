"""Normalize-and-Project: hold the norm of each weight, so that the effective learning rate is the scheduled one.

After every step of any optimizer, w <- rho w / |w| with rho = |w| at the start. For weights before a normalisation
only the direction w / |w| matters; it moves with the effective learning rate lr / |w|^2 (SGD) or lr / |w| (Adam,
Lion), which in usual training falls as weights grow.

Source: Lyle, Zheng, Khetarpal, Martens, van Hasselt, Pascanu, Dabney, "Normalization and effective learning rates in
reinforcement learning" (NeurIPS 2024).

The unseen fall of the effective rate is part of why plain training works: with projection, use a schedule that decays.
Scales of normalisation are not projected. A last layer that is projected keeps the temperature of the output fixed;
leave it out by `params`, or follow it by a learnable scale. Weight decay of projected weights has no meaning and must
be 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from medseg.core.optim._checks import check_choice, check_whole
from medseg.core.optim._wrapper import OptimizerWrapper


class ProjectedOptimizer(OptimizerWrapper):
    """Any optimizer, followed by a projection of each weight to the norm it had at the start.

    Args:
        optimizer: the optimizer inside; in a bundle, a nested `_target_`.
        params: weights to project; by default all of the optimizer with two axes or more.
        granularity: hold the norm of the whole "layer", or of each output "channel" (along the group's `channel_dim`, 0
            where it has none).
        every: steps from one projection to the next.
        rho: norm to hold, the same for all; by default each one's own.

    Raises:
        ValueError: a weight has norm 0, its group decays, or an option is out of range.
        TypeError: there is no optimizer inside.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = ProjectedOptimizer(torch.optim.SGD([w], lr=1.0))
        >>> w.grad = torch.tensor([[-3.0, 4.0]])
        >>> optimizer.step()
        >>> w.detach()
        tensor([[5., 0.]])
    """

    def __init__(
        self,
        optimizer: Optimizer,
        params: Iterable[torch.Tensor] | None = None,
        granularity: str = "layer",
        every: int = 1,
        rho: float | None = None,
    ) -> None:
        super().__init__(optimizer)
        check_choice("granularity", granularity, ("layer", "channel"))
        check_whole("every", every, 1)
        self.granularity, self.every, self.count = granularity, every, 0
        wanted = None if params is None else {id(p) for p in params}
        owners = [(p, group) for group in self.param_groups for p in group["params"]]
        if wanted is not None and (unknown := len(wanted - {id(p) for p, _ in owners})):
            raise ValueError(f"params holds {unknown} weights that the optimizer does not have; give it those as well")
        chosen = [(p, g) for p, g in owners if (p.ndim > 1 if wanted is None else id(p) in wanted)]
        self._weights = [(p, g.get("channel_dim", 0)) for p, g in chosen]
        self.norms = [self._norm(p, dim).clone() for p, dim in self._weights]
        for number, ((p, group), norm) in enumerate(zip(chosen, self.norms, strict=True)):
            self._check(f"params[{number}] of shape {tuple(p.shape)}", group, norm)
            if rho is not None:
                norm.fill_(rho)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Do a step of the optimizer inside, then project.

        Args:
            closure: for the optimizer inside.

        Returns:
            What it returned.
        """
        loss = self.optimizer.step(closure)
        self.count += 1
        if self.count % self.every == 0:
            for (p, dim), norm in zip(self._weights, self.norms, strict=True):
                # A weight that became 0 has no direction left, and stays.
                p.mul_((norm / self._norm(p, dim).clamp(min=torch.finfo(norm.dtype).tiny)).to(p.dtype))
        return loss

    def state_dict(self) -> dict[str, Any]:
        """State of the optimizer inside, the norms to hold, and the count of steps."""
        return {"optimizer": self.optimizer.state_dict(), "norms": self.norms, "count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another one stopped.

        Args:
            state_dict: what `state_dict()` gave.
        """
        super().load_state_dict(state_dict["optimizer"])
        self.count = state_dict["count"]
        for norm, saved in zip(self.norms, state_dict["norms"], strict=True):
            norm.copy_(saved)

    def _norm(self, p: torch.Tensor, dim: int) -> torch.Tensor:
        """In float32 or better; shaped to multiply the weight."""
        axes = list(range(p.ndim)) if self.granularity == "layer" else [a for a in range(p.ndim) if a != dim]
        dtype = torch.promote_types(p.dtype, torch.float32)
        return torch.linalg.vector_norm(p.detach(), dim=axes, keepdim=True, dtype=dtype)

    def _check(self, name: str, group: dict[str, Any], norm: torch.Tensor) -> None:
        if group.get("weight_decay"):
            decay = group["weight_decay"]
            raise ValueError(f"{name} decays by {decay}, which a projection undoes; set weight_decay=0 in its group")
        if not bool((norm > 0).all()):
            raise ValueError(f"{name} has norm 0, which cannot be held; leave it out, or give it other initial values")


def effective_learning_rates(optimizer: Optimizer, model: nn.Module) -> dict[str, float]:
    """How fast the direction of each weight moves: lr / |w|^2 for SGD and its kin, lr / |w| for those with `betas`.

    For logging, with any optimizer; compare over time, not between layers of different size.

    Args:
        optimizer: with parameters of the model.
        model: for the names.

    Returns:
        By name, for weights with two axes or more; infinite where the norm is 0.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> _ = nn.init.constant_(model.weight, 2.0)
        >>> rates = effective_learning_rates(torch.optim.SGD(model.parameters(), lr=0.8), model)
        >>> round(rates["weight"], 6)
        0.1
    """
    names = {id(p): name for name, p in model.named_parameters()}
    rates = {}
    for group in optimizer.param_groups:
        for p in group["params"]:
            if id(p) in names and p.ndim > 1:
                norm = float(p.detach().double().norm())
                size = norm if "betas" in group else norm**2
                rates[names[id(p)]] = float(group["lr"]) / size if size else float("inf")
    return rates
