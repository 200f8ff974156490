"""What the optimizers of this package share: the step around an update rule that is written for lists of tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch.optim import Optimizer

from medseg.core.optim._blocks import (
    Reach,
    Slot,
    Span,
    cut_spans,
    is_dense,
    row_layout,
    runs_of,
    same_layout,
    whole_span,
)
from medseg.core.optim._checks import check_choice

Group = dict[str, Any]
HALF = (torch.float16, torch.bfloat16)


class BlockedOptimizer(Optimizer):
    """Base: counts steps, keeps moments, hands parameters to the rule in lists; see `_blocks` for how they are cut.

    Parameters in half precision keep float32 moments, and their step is computed in float32. Gradients are never
    changed. `num_skipped` counts the steps that `skip_nonfinite` dropped.

    Args:
        params: parameters, or groups of them.
        defaults: options of a group; `foreach`, `maximize` and `capturable` among them.
        skip_nonfinite: whether a gradient with NaN or infinity drops the whole step, instead of entering the weights.
    """

    _state_names: tuple[str, ...] = ("exp_avg",)

    def __init__(self, params: Iterable[Any], defaults: Group, skip_nonfinite: bool = False) -> None:
        self.skip_nonfinite = skip_nonfinite
        self.num_skipped = 0
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its options are checked like the constructor's.

        Args:
            param_group: `params`, and options that differ from the constructor's.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        self._check_group(group)
        for p in group["params"]:
            if p.is_complex():
                raise TypeError(f"{type(self).__name__} takes real parameters only; split a complex one into two")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Do one step.

        Args:
            closure: computes the loss and its gradients anew; most loops do that themselves and give none.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.skip_nonfinite and not self._gradients_are_finite():
            self.num_skipped += 1
            return loss
        for group in self.param_groups:
            for owners in self._buckets(group):
                self._step_bucket(owners, group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where another optimizer stopped; moments keep the precision they were saved in.

        Args:
            state_dict: what `state_dict()` gave.
        """
        super().load_state_dict(state_dict)
        # torch casts moments to the parameter's type, which would round the float32 moments of half-precision weights.
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        here = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(saved, here, strict=True):
            for name, value in state_dict["state"].get(number, {}).items():
                if isinstance(value, torch.Tensor) and value.dtype != self.state[p][name].dtype:
                    self.state[p][name] = value.to(self.state[p][name].device, copy=True)

    def _update(self, span: Span, group: Group, *, matrices: bool) -> None:
        """Change the weights of a span in place; `matrices` says whether they have two axes or more."""
        raise NotImplementedError(f"{type(self).__name__} must define _update, or _step_few")

    def _check_group(self, group: Group) -> None:
        """Check the options of a group; subclasses add theirs."""
        check_choice("foreach", group["foreach"], (None, True, False))
        check_choice("maximize", group["maximize"], (True, False))
        check_choice("capturable", group["capturable"], (True, False))

    def _reach(self, group: Group, *, matrices: bool) -> Reach:
        """What the rule must have seen whole before it can change any of it."""
        return "element"

    def _state_dtype(self, param: torch.Tensor) -> torch.dtype:
        return torch.float32 if param.dtype in HALF else param.dtype

    def _gradients_are_finite(self) -> bool:
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        return not grads or bool(torch.stack([g.isfinite().all().to(grads[0].device) for g in grads]).all())

    def _buckets(self, group: Group) -> Iterator[list[torch.Tensor]]:
        """Parameters that have a gradient, in lists of one device, type and kind."""
        found: dict[Any, list[torch.Tensor]] = {}
        for p in group["params"]:
            if p.grad is None:
                continue
            if p.grad.is_sparse:
                raise RuntimeError(f"{type(self).__name__} does not take sparse gradients; set sparse=False")
            found.setdefault((p.device, p.dtype, p.grad.dtype, p.ndim > 1), []).append(p)
        yield from found.values()

    def _step_bucket(self, owners: list[torch.Tensor], group: Group) -> None:
        foreach = group["foreach"]
        if foreach is None:
            foreach = owners[0].device.type != "cpu" or torch.compiler.is_compiling()
        # Without foreach few parameters at a time are made ready: copies in full precision never hold all of them.
        for few in [owners] if foreach else runs_of(owners):
            self._step_few(few, group, foreach=foreach)

    def _step_few(self, few: list[torch.Tensor], group: Group, *, foreach: bool) -> None:
        """Count and do a step of some parameters of one device, type and kind."""
        matrices = few[0].ndim > 1
        slots = [self._slot(p, group) for p in few]
        for span in [whole_span(slots)] if foreach else cut_spans(slots, self._reach(group, matrices=matrices)):
            self._update(span, group, matrices=matrices)
        for p, slot in zip(few, slots, strict=True):
            self._write_back(p, slot, group)

    def _slot(self, p: torch.Tensor, group: Group) -> Slot:
        """Views of a parameter and its moments, or copies in full precision where there can be no view."""
        state = self._ready_state(p, group)
        work = torch.float32 if p.dtype in HALF else p.dtype
        weight = p.detach() if is_dense(p) else p.detach().contiguous()
        order, shape = self._layout(weight, group)

        def rows(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(work).permute(order).reshape(shape)

        assert p.grad is not None
        grad = rows(-p.grad if group["maximize"] else p.grad)
        step = state["step"]
        count = step if group["capturable"] or torch.compiler.is_compiling() else step.item()
        return Slot(rows(weight), grad, {name: rows(state[name]) for name in self._state_names}, count)

    def _ready_state(self, p: torch.Tensor, group: Group) -> dict[str, Any]:
        """State with its step counted; moments lie in memory as the parameter does, even after it was moved."""
        state = self.state[p]
        if not state:
            device = p.device if group["capturable"] else "cpu"
            state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            for name in self._state_names:
                state[name] = torch.zeros_like(p, dtype=self._state_dtype(p), memory_format=torch.preserve_format)
        state["step"] += 1
        for name in self._state_names:
            if is_dense(p) and not same_layout(state[name], p):
                state[name] = torch.empty_like(p, dtype=state[name].dtype).copy_(state[name])
        return state

    def _layout(self, weight: torch.Tensor, group: Group) -> tuple[list[int], tuple[int, int, int]]:
        channel_dim, groups = group.get("channel_dim", 0), group.get("channel_groups")
        return row_layout(tuple(weight.shape), weight.stride(), channel_dim, groups)

    def _write_back(self, p: torch.Tensor, slot: Slot, group: Group) -> None:
        """Store what was computed in copies."""
        weight = p.detach()
        pairs = [(weight, slot.param), *((self.state[p][name], slot.states[name]) for name in self._state_names)]
        like = weight if is_dense(weight) else weight.contiguous()
        order, _ = self._layout(like, group)
        back = sorted(range(len(order)), key=order.__getitem__)
        for stored, computed in pairs:
            if stored.dtype != computed.dtype or not is_dense(stored):
                stored.copy_(computed.view([like.shape[axis] for axis in order]).permute(back))
