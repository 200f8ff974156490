"""AdamP: Adam without the part of the step that only makes scale-invariant weights grow.

A convolution before a normalisation is scale-invariant: f(c w) = f(w). Its gradient is then orthogonal to w, every step
makes w longer, momentum more so, and the step of the direction w/|w| shrinks before its time. For gradient g, step t:

    m = b1 m + (1 - b1) g,   v = b2 v + (1 - b2) g^2,   d = m / (sqrt(v / (1 - b2^t)) + eps)
    for every row (output channel), else for the whole weight:  if the largest |cos(g, w)| < delta / sqrt(row length):
        d <- d - w^ <w^, d>  with w^ = w / (|w| + eps),  and weight decay times `wd_ratio`
    w <- (1 - lr decay) w - lr / (1 - b1^t) d

Source: Heo, Chun, Oh, Han, Yun, Kim, Uh, Ha, "AdamP: Slowing Down the Slowdown for Momentum Optimizers on
Scale-invariant Weights" (ICLR 2021).

Differs from the published code: rows follow `channel_dim` (1 for transposed convolutions), so that each of their output
channels is projected; layers that are known to be scale-invariant can say so (`scale_invariant=True`, see
`scale_invariant_param_groups`) instead of passing a test that random gradients pass in about 8 % of the steps;
channels_last weights work; nothing waits for the GPU. With the defaults the numbers are those of the published code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from medseg.core.optim._adam import adam_steps
from medseg.core.optim._blocked import BlockedOptimizer, Group
from medseg.core.optim._blocks import Batch, Reach, Span
from medseg.core.optim._checks import check_betas, check_choice, check_least, check_share
from medseg.core.optim._radial import Choice, Radial, apply_steps


class AdamP(BlockedOptimizer):
    """Adam that keeps scale-invariant weights from growing, so that their effective learning rate is the scheduled one.

    Args:
        params: parameters, or groups of them, for which every option below can differ.
        lr: learning rate.
        betas: decay rates of the means of gradient and squared gradient, in [0, 1).
        eps: added to the denominator and to norms.
        weight_decay: decoupled: weights shrink by lr * weight_decay a step.
        delta: threshold of the test for scale invariance.
        wd_ratio: part of the decay that projected weights keep, in [0, 1]; for them decay only counters growth.
        nesterov: look one step of the momentum ahead.
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
        >>> w = torch.nn.Parameter(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = AdamP([w], lr=0.1, scale_invariant=True)
        >>> w.grad = torch.tensor([[1.0, 0.0]])
        >>> optimizer.step()
        >>> step = w.detach() - torch.tensor([[3.0, 4.0]])      # at right angles to the weight
        >>> abs(round((step * torch.tensor([3.0, 4.0])).sum().item(), 5))
        0.0
    """

    _state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
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
            "betas": check_betas(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "delta": delta,
            "wd_ratio": wd_ratio,
            "nesterov": nesterov,
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
        group["betas"] = check_betas(group["betas"])
        check_projection(group)

    def _reach(self, group: Group, *, matrices: bool) -> Reach:
        return reach_of(group, matrices=matrices)

    def _update(self, span: Span, group: Group, *, matrices: bool) -> None:
        steps = [self._steps(batch, group) for batch in span]
        apply_steps(span, steps, radial_of(group, group["lr"] * group["weight_decay"], matrices=matrices))

    def _steps(self, batch: Batch, group: Group) -> Sequence[torch.Tensor]:
        """Advance the moments, and give what Adam would add to the weights."""
        moments = batch.states["exp_avg"], batch.states["exp_avg_sq"]
        fused = batch.is_on_cpu and group["foreach"] is not True
        return adam_steps(batch.grads, moments, batch.steps, group, nesterov=group["nesterov"], fused=fused)


def check_projection(group: Group) -> None:
    """Check the options that AdamP and SGDP share.

    Raises:
        ValueError: one is out of range.
    """
    for name in ("lr", "eps", "weight_decay", "delta"):
        check_least(name, group[name])
    check_share("wd_ratio", group["wd_ratio"])
    check_choice("scale_invariant", group["scale_invariant"], (True, False, "cosine"))
    check_choice("channel_dim", group["channel_dim"], (0, 1))
    if group["channel_groups"] is not None and group["channel_groups"] < 1:
        raise ValueError(
            f"channel_groups must be at least 1, or None for single channels, got {group['channel_groups']}"
        )


def radial_of(group: Group, decay: float, *, matrices: bool) -> Radial:
    """The options of a projection; weights with one axis are never projected."""
    mode = group["scale_invariant"] if matrices else False
    return Radial(mode, group["delta"], decay, group["wd_ratio"], group["eps"])


def reach_of(group: Group, *, matrices: bool) -> Reach:
    """What a projection sums over."""
    if not matrices or group["scale_invariant"] is False:
        return "element"
    return "parameter" if group["scale_invariant"] == "cosine" else "row"
