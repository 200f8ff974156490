"""FRUGAL: AdamW for a changing part of each weight matrix, signs of the gradient for the rest.

Every `update_gap` steps a part S of the entries of each matrix is drawn anew, and its moments start at zero:

    w <- (1 - lr decay) w
    in S:        w <- w - lr Adam(g)
    elsewhere:   w <- w - lr scale sign(g)       ("sgd": g itself, "none": nothing)

A matrix is a weight with two axes or more, seen as (channels, rest). S are some of its columns, rows or single entries,
or whole matrices ("block"). State: 2 density numbers for every weight, against 2 for AdamW; single entries need the
memory of another density for their places. Biases and normalisation keep plain AdamW, as do groups with density 1.

Source: Zmushko, Beznosikov, Takáč, Horváth, "FRUGAL: Memory-Efficient Optimization by Reducing State Overhead for
Scalable Training" (2024).

Differs from the published code: weights of convolutions; state that is plain tensors; every draw has a generator of its
own, from the seed, the draw and the number of the parameter, so that ranks and resumed runs draw alike; parameters may
lack a gradient. What it saves is small beside the activations of a 3D U-Net; it is meant for large transformers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from medseg.core.optim._adam import adam_steps
from medseg.core.optim._blocked import BlockedOptimizer, Group
from medseg.core.optim._checks import check_betas, check_choice, check_least, check_share, check_whole
from medseg.core.optim._frugal_parts import SELECTIONS, choose_matrices, draw_places, put_back, take_part

STATE_FREE = ("sign", "sgd", "none")


class FrugalAdamW(BlockedOptimizer):
    """AdamW with the state of a part of the weights, while the rest takes steps of the gradient's sign.

    Args:
        params: parameters, or groups of them, for which every option but the seed can differ.
        lr: learning rate.
        betas: decay rates of the means of gradient and squared gradient, in [0, 1).
        eps: added to the denominator.
        weight_decay: decoupled, for all entries.
        selection: what is drawn: whole matrices ("block"), "columns", "rows" or "entries".
        density: part of each matrix, or of all entries for "block", that has state, in [0, 1].
        update_gap: steps from one draw to the next.
        state_free: what the rest does: "sign", "sgd" or "none".
        state_free_lr_scale: the rest's learning rate in units of lr; 1 from scratch, 0.1 to fine-tune.
        seed: of all draws.
        foreach: all parameters at once (True) or one by one (False); by default at once on a GPU.
        maximize: go up instead of down.
        capturable: not supported, since draws are made on the host; must stay False.
        skip_nonfinite: drop the whole step, and count it in `num_skipped`, where a gradient holds NaN or infinity.

    Raises:
        ValueError: an option is out of range.
        TypeError: a parameter is complex.

    Example:
        >>> w = torch.nn.Parameter(torch.zeros(8, 8))
        >>> optimizer = FrugalAdamW([w], lr=0.1, selection="columns", density=0.25)
        >>> w.grad = torch.ones(8, 8)
        >>> optimizer.step()
        >>> optimizer.state[w]["exp_avg"].shape
        torch.Size([8, 2])
    """

    _state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: Sequence[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        selection: str = "block",
        density: float = 0.25,
        update_gap: int = 200,
        state_free: str = "sign",
        state_free_lr_scale: float = 1.0,
        seed: int = 0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        skip_nonfinite: bool = False,
    ) -> None:
        self.seed = seed
        defaults = {
            "lr": lr,
            "betas": check_betas(betas),
            "eps": eps,
            "weight_decay": weight_decay,
            "selection": selection,
            "density": density,
            "update_gap": update_gap,
            "state_free": state_free,
            "state_free_lr_scale": state_free_lr_scale,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
        }
        super().__init__(params, defaults, skip_nonfinite)

    def _check_group(self, group: Group) -> None:
        super()._check_group(group)
        group["betas"] = check_betas(group["betas"])
        for name in ("lr", "eps", "weight_decay", "state_free_lr_scale"):
            check_least(name, group[name])
        check_choice("selection", group["selection"], SELECTIONS)
        check_choice("state_free", group["state_free"], STATE_FREE)
        check_share("density", group["density"])
        check_whole("update_gap", group["update_gap"], 1)
        if group["capturable"]:
            raise ValueError("capturable must be False: what has state is drawn on the host; capture another optimizer")

    def _step_few(self, few: list[torch.Tensor], group: Group, *, foreach: bool) -> None:
        """One step of some parameters of one device, type and kind."""
        for run in [few] if foreach else [[p] for p in few]:
            self._step_lists(run, group, foreach=foreach)

    def _step_lists(self, owners: list[torch.Tensor], group: Group, *, foreach: bool) -> None:
        work = torch.promote_types(owners[0].dtype, torch.float32)
        grads = [_as_matrix(p.grad, work) for p in owners if p.grad is not None]
        if group["maximize"]:
            grads = [-grad for grad in grads]
        for p, grad in zip(owners, grads, strict=True):
            self._make_ready(p, grad, group)
        states = [self.state[p] for p in owners]
        moves = self._free_steps(grads, group, whole=[_is_whole(state) for state in states])
        held = [i for i, state in enumerate(states) if "exp_avg" in state]
        if held:
            parts = [take_part(grads[i], group["selection"], states[i].get("places")) for i in held]
            moments = [states[i]["exp_avg"] for i in held], [states[i]["exp_avg_sq"] for i in held]
            counts = [states[i]["since_draw"].item() for i in held]
            fused = not foreach and owners[0].device.type == "cpu"
            for i, step in zip(held, adam_steps(parts, moments, counts, group, fused=fused), strict=True):
                moves[i] = put_back(moves[i], step, group["selection"], states[i].get("places"))
        for p, move in zip(owners, moves, strict=True):
            weight = p.detach().to(work)
            weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(move.view(p.shape))
            if p.dtype != work:
                p.detach().copy_(weight)

    def _free_steps(self, grads: list[torch.Tensor], group: Group, *, whole: list[bool]) -> list[torch.Tensor]:
        """Steps without state, for whole matrices; where AdamW covers all of one, the gradient keeps the place."""
        rate = -group["lr"] * group["state_free_lr_scale"]
        if group["state_free"] == "none":
            return [torch.zeros_like(grad) for grad in grads]
        open_ = [grad for grad, covered in zip(grads, whole, strict=True) if not covered]
        signed = group["state_free"] == "sign"
        # Nothing times the gradient: sign(NaN) is 0, and would hide it.
        rest = iter([(grad.sign().add_(grad, alpha=0) if signed else grad.clone()).mul_(rate) for grad in open_])
        return [grad if covered else next(rest) for grad, covered in zip(grads, whole, strict=True)]

    def _make_ready(self, p: torch.Tensor, grad: torch.Tensor, group: Group) -> None:
        """Count the step, and draw anew where one is due."""
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["since_draw"] = torch.zeros((), dtype=torch.float32)
        count = int(state["step"].item())
        partial = p.ndim > 1 and group["density"] < 1
        if count % group["update_gap"] == 0 and (partial or count == 0):
            self._draw(p, grad, group, count // group["update_gap"], partial=partial)
        state["step"] += 1
        state["since_draw"] += 1

    def _draw(self, p: torch.Tensor, grad: torch.Tensor, group: Group, draw: int, *, partial: bool) -> None:
        state = self.state[p]
        for name in ("exp_avg", "exp_avg_sq", "places"):
            state.pop(name, None)
        state["since_draw"].zero_()
        size = grad.shape
        if partial:
            places = self._places(p, grad, group, draw)
            if places is None:
                return
            if group["selection"] != "block":
                state["places"] = places
                size = take_part(grad, group["selection"], places).shape
        for name in ("exp_avg", "exp_avg_sq"):
            state[name] = torch.zeros(size, dtype=grad.dtype, device=p.device)

    def _places(self, p: torch.Tensor, grad: torch.Tensor, group: Group, draw: int) -> torch.Tensor | None:
        """What of a matrix has state; None where nothing has."""
        if group["selection"] == "block":
            matrices = [q for q in group["params"] if q.ndim > 1 and q.requires_grad]
            chosen = choose_matrices([q.numel() for q in matrices], group["density"], (self.seed, draw))
            return torch.empty(0) if any(matrices[i] is p for i in chosen) else None
        number = next(i for i, q in enumerate(q for g in self.param_groups for q in g["params"]) if q is p)
        return draw_places(grad.shape, group["selection"], group["density"], (self.seed, draw, number), p.device)


def _is_whole(state: dict[str, Any]) -> bool:
    """Whether AdamW covers all of a parameter."""
    return "exp_avg" in state and "places" not in state


def _as_matrix(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """(channels, rest) in the order of the axes, whatever lies where in memory."""
    tensor = tensor.to(dtype)
    return tensor.reshape(len(tensor), -1) if tensor.ndim > 1 else tensor.reshape(-1)
