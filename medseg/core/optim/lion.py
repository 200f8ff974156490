"""Lion and its family Lion-K: steps of one size from a single momentum, with a bound on the weights.

    u = b1 m + (1 - b1) g,   w <- (1 - lr lam) w - lr dK(u),   m <- b2 m + (1 - b2) g,     m = 0 at the start

with dK a subgradient of a convex K. Lion is K = sum of |u|, dK = sign. It minimises f(w) + K*(lam w) / lam, where K* is
the convex conjugate: for Lion, f(w) subject to |w| <= 1 / lam for every weight. Outside the bound the distance to it
shrinks as exp(-lam lr t), whatever f is.

| kappa | dK(u) | what it does to lam w |
| --- | --- | --- |
| "l1" | sign(u) | every weight within 1 |
| "l2" | u / |u| of the parameter | a ball for each parameter |
| "group_l2" | u / |u| of each output channel | a ball for each filter |
| "huber" | clip(u / e, -1, 1) | within 1, and e/2 w^2 |
| "smooth_l1" | u / sqrt(u^2 + e^2) | within 1, and -e sqrt(1 - w^2) |
| "deadzone" | sign(u) where |u| > e, else 0 | within 1, and e |w|, which makes weights sparse |

Sources: Chen, Liang, Huang, Real, Wang, Liu, Pham, Dong, Luong, Hsieh, Lu, Le, "Symbolic Discovery of Optimization
Algorithms" (2023); Chen, Liu, Liang, Liu, "Lion Secretly Solves Constrained Optimization: As Lyapunov Predicts" (ICLR
2024). The spectral norm is left to torch.optim.Muon.

Advice of the first: a learning rate 3 to 10 times smaller, and a decay as many times larger, than for AdamW. Decay
neither biases nor normalisation (`decay_groups`): a bound below 1 would hold their scales down. Clipping gradients by
norm does next to nothing here; scaling the loss in half precision stays needed, since sign(0) = 0. A gradient of NaN or
infinity makes its weight NaN, where the sign alone would hide it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from medseg.core.optim._blocked import BlockedOptimizer, Group
from medseg.core.optim._blocks import Reach, Span
from medseg.core.optim._checks import check_betas, check_choice, check_least
from medseg.core.optim._row_sums import row_factors, row_sums

Elementwise = Callable[[torch.Tensor], torch.Tensor]
KAPPAS = ("l1", "l2", "group_l2", "huber", "smooth_l1", "deadzone")
STATE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Lion(BlockedOptimizer):
    """Lion, or with another `kappa` one of its family: half of Adam's memory, and a bound of 1 / weight_decay.

    Args:
        params: parameters, or groups of them, for which every option below can differ, `state_dtype` excepted.
        lr: learning rate; with "l1" how far every weight moves in a step.
        betas: b1 and b2, in [0, 1).
        weight_decay: lam; decoupled.
        kappa: a name from the table above, or a function of the elements of u (from torch, e.g. `torch.tanh`).
        kappa_eps: e of "huber", "smooth_l1" and "deadzone", above 0.
        channel_dim: axis of output channels for "group_l2": 0, or 1 for transposed convolutions. A bias has one
            element a channel.
        state_dtype: "bfloat16" halves the memory once more; by default that of the parameter, or float32 for parameters
            in half precision.
        foreach: all parameters at once (True) or piece by piece (False); by default at once on a GPU.
        maximize: go up instead of down.
        capturable: count steps on the device, for CUDA graphs.
        skip_nonfinite: drop the whole step, and count it in `num_skipped`, where a gradient holds NaN or infinity.

    Raises:
        ValueError: an option is out of range.
        TypeError: a parameter is complex.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = Lion([w], lr=0.1)
        >>> w.grad = torch.tensor([0.003, -40.0])
        >>> optimizer.step()
        >>> w.detach()
        tensor([ 0.9000, -1.9000])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: Sequence[float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        kappa: str | Elementwise = "l1",
        kappa_eps: float = 0.05,
        channel_dim: int = 0,
        state_dtype: str | None = None,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        skip_nonfinite: bool = False,
    ) -> None:
        check_choice("state_dtype", state_dtype, (None, *STATE_DTYPES))
        self._dtype = None if state_dtype is None else STATE_DTYPES[state_dtype]
        defaults = {
            "lr": lr,
            "betas": check_betas(betas),
            "weight_decay": weight_decay,
            "kappa": kappa,
            "kappa_eps": kappa_eps,
            "channel_dim": channel_dim,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
        }
        super().__init__(params, defaults, skip_nonfinite)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        group["betas"] = check_betas(group["betas"])
        for name in ("lr", "weight_decay"):
            check_least(name, group[name])
        if not callable(group["kappa"]):
            check_choice("kappa", group["kappa"], KAPPAS)
        if not group["kappa_eps"] > 0:
            raise ValueError(f"kappa_eps must be above 0, got {group['kappa_eps']}")
        check_choice("channel_dim", group["channel_dim"], (0, 1))

    def _state_dtype(self, param: torch.Tensor) -> torch.dtype:
        return self._dtype or super()._state_dtype(param)

    def _reach(self, group: Group, *, matrices: bool) -> Reach:
        if group["kappa"] == "l2":
            return "parameter"
        return "row" if group["kappa"] == "group_l2" else "element"

    def _update(self, span: Span, group: Group, *, matrices: bool) -> None:
        beta1, beta2 = group["betas"]
        ahead = [list(torch._foreach_lerp(b.states["exp_avg"], b.grads, 1 - beta1)) for b in span]
        if group["kappa"] in ("l2", "group_l2"):
            _normalise(span, ahead, by_row=group["kappa"] == "group_l2")
        else:
            for us in ahead:
                _apply(us, group["kappa"], group["kappa_eps"])
        for batch, us in zip(span, ahead, strict=True):
            if group["weight_decay"]:
                torch._foreach_mul_(batch.params, 1 - group["lr"] * group["weight_decay"])
            # Nothing times the gradient: sign(NaN) is 0, and would hide it.
            torch._foreach_add_(us, batch.grads, alpha=0.0)
            torch._foreach_mul_(us, -group["lr"])
            torch._foreach_add_(batch.params, us)
            torch._foreach_lerp_(batch.states["exp_avg"], batch.grads, 1 - beta2)


def _apply(us: list[torch.Tensor], kappa: str | Elementwise, eps: float) -> None:
    """Replace every u by dK(u), in place."""
    if callable(kappa):
        for u in us:
            u.copy_(kappa(u))
    elif kappa == "l1":
        torch._foreach_sign_(us)
    elif kappa == "huber":
        torch._foreach_div_(us, eps)
        torch._foreach_clamp_min_(us, -1.0)
        torch._foreach_clamp_max_(us, 1.0)
    elif kappa == "smooth_l1":
        squares = torch._foreach_mul(us, us)
        torch._foreach_add_(squares, eps**2)
        torch._foreach_sqrt_(squares)
        torch._foreach_div_(us, squares)
    else:
        for u in us:
            u.copy_(torch.nn.functional.hardshrink(u, eps))
        torch._foreach_sign_(us)


def _normalise(span: Span, ahead: list[list[torch.Tensor]], *, by_row: bool) -> None:
    """Divide u by its norm over the row or the parameter, in place; zeros stay zeros."""
    squares = row_sums(span, [[(us, us)] for us in ahead])[..., 0]
    if not by_row:
        squares = squares.sum(dim=1, keepdim=True).expand_as(squares)
    factors = torch.where(squares > 0, squares.rsqrt(), 0.0)
    for us, scale in zip(ahead, row_factors(span, factors), strict=True):
        torch._foreach_mul_(us, scale)
