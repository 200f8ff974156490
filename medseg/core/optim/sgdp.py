"""SGDP: momentum SGD without the part of the step that only makes scale-invariant weights grow.

    b = mu b + (1 - dampening) g  (b starts at 0);   d = b, or g + mu b with nesterov
    d loses its radial part and the decay is reduced by `wd_ratio` on the conditions of AdamP, see `adamp.py`
    w <- (1 - lr decay / (1 - mu)) w - lr d

Source: Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha, "AdamP: Slowing Down the Slowdown for Momentum Optimizers on
Scale-invariant Weights" (ICLR 2021).

Differs from the published code: the momentum keeps its radial part, as in the algorithm of the paper; there, without
nesterov, the projection is written into the buffer by accident. Beyond that as `AdamP`. Note that torch.optim.SGD
starts its buffer with the first gradient, whatever the dampening.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from medseg.core.optim._blocked import BlockedOptimizer, Group
from medseg.core.optim._blocks import Batch, Reach, Span
from medseg.core.optim._checks import check_share
from medseg.core.optim._radial import Choice, apply_steps
from medseg.core.optim.adamp import check_projection, radial_of, reach_of


class SGDP(BlockedOptimizer):
    """Momentum SGD that keeps scale-invariant weights from growing; nearly all weights of a U-Net are.

    Args:
        params: parameters, or groups of them, for which every option below can differ.
        lr: learning rate.
        momentum: in [0, 1); the paper takes 0.9.
        dampening: part of each gradient that does not enter the momentum, in [0, 1].
        weight_decay: decoupled: weights shrink by lr * weight_decay / (1 - momentum) a step.
        nesterov: look one step of the momentum ahead.
        delta: threshold of the test for scale invariance.
        wd_ratio: part of the decay that projected weights keep, in [0, 1].
        eps: added to norms.
        scale_invariant: "cosine" for the paper's test, True where it is known, False to project nothing.
        channel_dim: axis of output channels: 0, or 1 for transposed convolutions.
        channel_groups: take so many groups of channels as rows (group norm; 1 for layer norm), not single channels.
        foreach: all parameters at once (True) or piece by piece (False); by default at once on a GPU.
        maximize: go up instead of down.
        capturable: count steps on the device, for CUDA graphs.
        skip_nonfinite: drop the whole step, and count it in `num_skipped`, where a gradient holds NaN or infinity.

    Raises:
        ValueError: an option is out of range.
        TypeError: a parameter is complex.

    Example:
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = SGDP([w], lr=0.1, momentum=0.9)
        >>> for _ in range(2):
        ...     w.grad = torch.ones(2)
        ...     optimizer.step()
        >>> w.detach()                                          # 1 - 0.1 - 0.1 * (0.9 + 1)
        tensor([0.7100, 0.7100])
    """

    _state_names = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        eps: float = 1e-8,
        scale_invariant: Choice = "cosine",
        channel_dim: int = 0,
        channel_groups: int | None = None,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        skip_nonfinite: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "eps": eps,
            "scale_invariant": scale_invariant,
            "channel_dim": channel_dim,
            "channel_groups": channel_groups,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
        }
        super().__init__(params, defaults, skip_nonfinite)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        check_share("momentum", group["momentum"], with_one=False)
        check_share("dampening", group["dampening"])
        check_projection(group)

    def _reach(self, group: Group, *, matrices: bool) -> Reach:
        return reach_of(group, matrices=matrices)

    def _update(self, span: Span, group: Group, *, matrices: bool) -> None:
        steps = [self._steps(batch, group) for batch in span]
        decay = group["lr"] * group["weight_decay"] / (1 - group["momentum"])
        apply_steps(span, steps, radial_of(group, decay, matrices=matrices))

    def _steps(self, batch: Batch, group: Group) -> Sequence[torch.Tensor]:
        """Advance the momentum, and give what SGD would add to the weights."""
        buffers = batch.states["momentum_buffer"]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, batch.grads, alpha=1 - group["dampening"])
        if not group["nesterov"]:
            return torch._foreach_mul(buffers, -group["lr"])
        steps = torch._foreach_mul(batch.grads, -group["lr"])
        torch._foreach_add_(steps, buffers, alpha=-group["lr"] * group["momentum"])
        return steps
