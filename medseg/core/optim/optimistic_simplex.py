"""Weights over classes, sites or loss terms that follow the losses, by optimistic mirror descent on the simplex.

Play x_t, see the losses' gradient g_t, and expect the next to be alike (the hint M = g_{t-1}):

    entropy:    x_t ~ x'_t exp(-eta_t M_t),            x'_{t+1} ~ x'_t exp(-eta_t g_t)            (normalised)
    euclidean:  x_t = project(x'_t - eta_t M_t),       x'_{t+1} = project(x'_t - eta_t g_t)

    adaptive:   eta_t = D / sqrt(4 G^2 + sum of |g_s - g_{s-1}|^2),   D^2 = log n (entropy), 1 (euclidean)

with G the largest |g| so far, in the maximum norm for entropy. The regret is small where losses drift slowly, and never
worse than without the hint.

Source: Chen, Tu, Zhao, Zhang, "Optimistic Online Mirror Descent for Bridging Stochastic and Adversarial Online Convex
Optimization" (JMLR 2024). D and the running G are our choice; the paper takes known bounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from medseg.core.optim._checks import check_choice, check_whole


class OptimisticSimplexWeights:
    """Positive weights of sum 1 that go to the large losses, or to the small ones.

    Feed the losses of groups (classes, sites, terms) after each step or epoch, and weigh the groups by the answer: with
    `maximize_loss` this is robust training for the worst group.

    Args:
        n: number of groups, at least 2.
        eta: step size above 0, or "adaptive".
        mirror: "entropy" (factors) or "euclidean" (weights may become exactly 0).
        floor: least weight of a group, below 1/n: the weights are mixed with even ones.
        maximize_loss: whether large losses gain weight; otherwise small ones do.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> groups = OptimisticSimplexWeights(3, eta=0.5)
        >>> [round(w, 3) for w in groups.update([0.2, 0.2, 0.9]).tolist()]      # twice 0.5 * 0.7 apart
        [0.249, 0.249, 0.502]
    """

    def __init__(
        self,
        n: int,
        eta: float | str = "adaptive",
        mirror: str = "entropy",
        floor: float = 0.0,
        maximize_loss: bool = True,
    ) -> None:
        check_whole("n", n, 2)
        check_choice("mirror", mirror, ("entropy", "euclidean"))
        if eta != "adaptive" and (isinstance(eta, str) or not eta > 0):
            raise ValueError(f'eta must be above 0 or "adaptive", got {eta!r}')
        if not 0 <= floor < 1 / n:
            raise ValueError(f"floor must be in [0, 1/n), that is below {1 / n:.3g} for n = {n}, got {floor}")
        self.n, self.eta, self.mirror, self.floor, self.maximize_loss = n, eta, mirror, floor, maximize_loss
        even = torch.full((n,), 1 / n, dtype=torch.float64)
        self._base, self._hint, self._played = even, torch.zeros_like(even), even.clone()
        self._changes, self._largest = 0.0, 0.0

    @property
    def weights(self) -> torch.Tensor:
        """The weights to use now, (n,) in float64; even at first."""
        return (1 - self.n * self.floor) * self._played + self.floor

    def update(self, losses: torch.Tensor | Sequence[float]) -> torch.Tensor:
        """Take the losses under the last weights.

        Args:
            losses: one for each group; NaN for a group that did not occur, whose share then stays.

        Returns:
            The next weights.

        Raises:
            ValueError: there are not n losses, or one is infinite.
        """
        values = torch.as_tensor(losses).detach().to("cpu", torch.float64)
        if values.shape != (self.n,) or bool(values.isinf().any()):
            raise ValueError(f"losses must be {self.n} finite numbers, or NaN for an absent group, got {losses}")
        seen = ~values.isnan()
        slopes = torch.where(seen, -values if self.maximize_loss else values, self._hint)
        eta = self._step_size(slopes)
        if bool(seen.any()):
            share = self._base[seen].sum()
            self._base = self._base.clone()
            self._base[seen] = share * self._move(self._base[seen] / share, slopes[seen], eta)
        self._hint = slopes
        self._played = self._move(self._base, self._hint, eta)
        return self.weights

    def state_dict(self) -> dict[str, object]:
        """Everything that the next update needs."""
        tensors = {"base": self._base, "hint": self._hint, "played": self._played}
        return {**tensors, "changes": self._changes, "largest": self._largest}

    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Go on where another one stopped.

        Args:
            state_dict: what `state_dict()` gave.

        Raises:
            ValueError: it is of another number of groups.
        """
        base, hint, played = (torch.as_tensor(state_dict[key]) for key in ("base", "hint", "played"))
        if base.shape != (self.n,):
            raise ValueError(f"state_dict must be of {self.n} groups, got {len(base)}")
        self._base, self._hint, self._played = base.clone(), hint.clone(), played.clone()
        self._changes, self._largest = float(state_dict["changes"]), float(state_dict["largest"])  # pyright: ignore

    def _step_size(self, slopes: torch.Tensor) -> float:
        if self.eta != "adaptive":
            return float(self.eta)
        order, reach = (math.inf, math.sqrt(math.log(self.n))) if self.mirror == "entropy" else (2, 1.0)
        self._largest = max(self._largest, float(torch.linalg.vector_norm(slopes, order)))
        self._changes += float(torch.linalg.vector_norm(slopes - self._hint, order)) ** 2
        return reach / math.sqrt(4 * self._largest**2 + self._changes) if self._largest else 0.0

    def _move(self, weights: torch.Tensor, slopes: torch.Tensor, eta: float) -> torch.Tensor:
        if self.mirror == "entropy":
            return torch.softmax(weights.log() - eta * slopes, dim=0)
        return project_to_simplex(weights - eta * slopes)


def project_to_simplex(point: torch.Tensor) -> torch.Tensor:
    """The nearest point with coordinates of at least 0 and sum 1.

    Args:
        point: (n,).

    Example:
        >>> project_to_simplex(torch.tensor([0.9, 0.5, -3.0]))
        tensor([0.7000, 0.3000, 0.0000])
    """
    ordered = point.sort(descending=True).values
    ranks = torch.arange(1, len(point) + 1, dtype=point.dtype)
    shifts = (ordered.cumsum(0) - 1) / ranks
    last = int((ordered > shifts).nonzero()[-1])
    return (point - shifts[last]).clamp(min=0)
