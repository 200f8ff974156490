"""Several cheap steps for one dear loss: minimise a surrogate of the loss in the space of the network's outputs.

For outputs z = f(theta) of a batch of B items with loss l, take G = dl/dz once, at theta_t, and do m steps on

    g(theta) = <G, z - z_t> + |z - z_t|^2 / (2 eta B)

which needs passes through the network, but not the loss. Where B l is 1/eta-smooth in z, l(z_t) + g is an upper bound
of the loss. It pays where the loss takes seconds on a CPU (persistent homology, distance maps) and the network does
not. With m = 1 it is the optimizer's own step, bit for bit, whatever eta is.

Source: Lavington, Vaswani, Babanezhad, Schmidt, Le Roux, "Target-based Surrogates for Stochastic Optimization" (ICML
2023). Differs from the published code: eta is the paper's, any optimizer does the inner steps (there, a line search),
and random states and buffers are such that all passes see the same network function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from medseg.core.optim._checks import check_choice, check_whole
from medseg.core.optim._wrapper import OptimizerWrapper

Outputs = torch.Tensor | Sequence[torch.Tensor]


class TargetSurrogateOptimizer(OptimizerWrapper):
    """Any optimizer, taking several steps for one evaluation of the loss.

    Args:
        optimizer: does the inner steps; in a bundle, a nested `_target_`.
        inner_steps: m; 2 to 8 for a loss that is dear.
        eta: trust in the gradient, in units of logit^2 per loss: large steps away from z_t cost less when it is large.
        eta_schedule: "constant", or "inv_sqrt" for eta / sqrt(t) as in the paper's stochastic case.
        stop_ratio: stop early once the gradient's norm is below this part of the first; never by default.
        model: if given, buffers (running statistics of batch norm) are those after the first pass, as in one step.

    Raises:
        ValueError: an option is out of range.
        TypeError: there is no optimizer inside.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(1, 1))
        >>> optimizer = TargetSurrogateOptimizer(torch.optim.SGD([w], lr=0.25), inner_steps=3, eta=1.0)
        >>> loss = optimizer.step(lambda: w * 1.0, lambda z: (z - 2).square().sum())
        >>> round(loss.item(), 3), round(w.item(), 4)          # towards z - eta G = 4; the loss was computed once
        (4.0, 2.3125)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        inner_steps: int = 5,
        eta: float = 1.0,
        eta_schedule: str = "constant",
        stop_ratio: float | None = None,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__(optimizer)
        check_whole("inner_steps", inner_steps, 1)
        check_choice("eta_schedule", eta_schedule, ("constant", "inv_sqrt"))
        if not eta > 0:
            raise ValueError(f"eta must be above 0, got {eta}")
        if stop_ratio is not None and not 0 < stop_ratio < 1:
            raise ValueError(f"stop_ratio must be in (0, 1), or None to do all steps, got {stop_ratio}")
        self.inner_steps, self.eta, self.eta_schedule = inner_steps, eta, eta_schedule
        self.stop_ratio, self.model, self.count = stop_ratio, model, 0

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, forward: Callable[[], Outputs], loss_fn: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        """Evaluate the loss once and do the inner steps; gradients are cleared by itself.

        Args:
            forward: runs the network on the batch; called once an inner step, with the same random state. Gives logits
                (B, ...), or a list of them under deep supervision.
            loss_fn: of what `forward` gives; called once.

        Returns:
            The loss before the steps, without a gradient.
        """
        self.count += 1
        eta = self.eta if self.eta_schedule == "constant" else self.eta / self.count**0.5
        with torch.enable_grad():
            random = _random_states()
            outputs = forward()
            single = isinstance(outputs, torch.Tensor)
            now = _as_list(outputs)
            start = [z.detach().clone().requires_grad_() for z in now]
            loss = loss_fn(start[0] if single else start)
            slopes = torch.autograd.grad(loss, start)
            buffers = [] if self.model is None else [(b, b.clone()) for b in self.model.buffers()]
            first = self._inner_step(now, start, slopes, eta)
            for _ in range(self.inner_steps - 1):
                _set_random_states(random)
                size = self._inner_step(_as_list(forward()), start, slopes, eta)
                if self.stop_ratio is not None and size <= self.stop_ratio * first:
                    break
        with torch.no_grad():
            for buffer, kept in buffers:
                buffer.copy_(kept)
        return loss.detach()

    def state_dict(self) -> dict[str, object]:
        """State of the optimizer inside, and the count of steps."""
        return {"optimizer": self.optimizer.state_dict(), "count": self.count}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Go on where another one stopped.

        Args:
            state_dict: what `state_dict()` gave.
        """
        super().load_state_dict(state_dict["optimizer"])  # pyright: ignore[reportArgumentType]
        self.count = int(state_dict["count"])  # pyright: ignore[reportArgumentType]

    def _inner_step(
        self, now: list[torch.Tensor], start: list[torch.Tensor], slopes: Sequence[torch.Tensor], eta: float
    ) -> float:
        """One step on the surrogate; the norm of its gradient where somebody asks for it."""
        self.optimizer.zero_grad()
        pull = [g + (z.detach() - z0.detach()) / (eta * len(z)) for z, z0, g in zip(now, start, slopes, strict=True)]
        torch.autograd.backward(now, pull)
        size = 0.0
        if self.stop_ratio is not None:
            grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
            size = float(torch.nn.utils.get_total_norm(grads))
        self.optimizer.step()
        return size


def _as_list(outputs: Outputs) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)


def _random_states() -> tuple[torch.Tensor, list[torch.Tensor]]:
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _set_random_states(states: tuple[torch.Tensor, list[torch.Tensor]]) -> None:
    torch.set_rng_state(states[0])
    if states[1]:
        torch.cuda.set_rng_state_all(states[1])
