"""WSD-S: models at growing budgets from one run, each decay starting from where the last one ended.

    budgets T1 < T2 < ...: stable until T_k - d_k, decay over d_k = round(f T_k) steps, save; then on from the decayed
    weights at the full rate at once, without a new warm-up

Optimizer state (momentum, second moments) is kept across the jump. Plain WSD rolls back to the weights before the
decay instead, and pays for each decay again.

Source: Wen et al., "Understanding Warmup-Stable-Decay Learning Rates: A River Valley Loss Landscape Perspective"
(2025). Beyond the paper: without `budgets` the decays are started by hand, whenever a model is wanted.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from medseg.core.schedules.closed_form import ClosedFormLR, check_length, check_ratio, check_shape, decay, warm_up


class WSDSLR(ClosedFormLR):
    """Decay before each budget, then go on at the full rate from the decayed weights.

    Args:
        optimizer: the optimizer whose groups' rates are scaled.
        warmup_steps: length of the warm-up in optimizer steps, at least 0.
        budgets: numbers of steps at which a decayed model is wanted, ascending; after the last the minimum holds. None
            (open end): the rate stays until `start_decay`.
        decay_fraction: length of a decay as a share of its budget, in (0, 1); at least one step.
        decay_shape: `linear`, `cosine`, `1-sqrt`, `inverse_linear` or `exponential`; the last two need a minimum.
        min_lr_ratio: factor at the end of a decay, in [0, 1).
        last_epoch: steps taken already; -1 starts anew.

    Raises:
        ValueError: budgets do not ascend or leave no room for a decay after the budget or the warm-up before, or
            another argument is out of range.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = WSDSLR(optimizer, warmup_steps=0, budgets=[10, 20], decay_fraction=0.2)
        >>> [round(schedule.factor(step), 2) for step in (7, 8, 9, 10)], schedule.checkpoint_steps
        ([1.0, 0.18, 0.1, 1.0], [10, 20])
    """

    def __init__(
        self,
        optimizer: Optimizer,
        warmup_steps: int,
        budgets: Sequence[int] | None = None,
        decay_fraction: float = 0.1,
        decay_shape: str = "inverse_linear",
        min_lr_ratio: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        self.warmup_steps = check_length("warmup_steps", warmup_steps)
        if not 0 < decay_fraction < 1:
            raise ValueError(f"decay_fraction must lie between 0 and 1, got {decay_fraction!r}; 0.1 is usual")
        self.min_lr_ratio = check_ratio("min_lr_ratio", min_lr_ratio)
        self.decay_shape = check_shape(decay_shape, self.min_lr_ratio)
        self.open_ended = budgets is None
        # Start, length and step of the return to the full rate (None: never) of every decay; part of the state.
        self.decays: list[tuple[int, int, int | None]] = []
        if budgets is not None:
            self.decays = _plan(budgets, decay_fraction, self.warmup_steps)
        super().__init__(optimizer, last_epoch)

    @property
    def checkpoint_steps(self) -> list[int]:
        """Numbers of steps taken at which a decay is complete: save the model there."""
        return [start + length for start, length, _ in self.decays]

    def factor(self, step: int) -> float:
        """Rate at a step over the initial rate."""
        begun = [entry for entry in self.decays if entry[0] <= step]
        start, length, resume = begun[-1] if begun else (step, 0, step)
        if resume is not None and step >= resume:
            return warm_up(step, self.warmup_steps)
        return warm_up(start, self.warmup_steps) * decay(self.decay_shape, step, start, length, self.min_lr_ratio)

    def start_decay(self, n_steps: int) -> None:
        """Begin a decay with the step that comes next; only with an open end.

        Args:
            n_steps: its length, at least 1; the minimum holds until `resume_stable`.

        Raises:
            RuntimeError: the budgets are fixed, or a decay is under way.
        """
        self._check_open()
        if self.decays and self.decays[-1][2] is None:
            raise RuntimeError("a decay is under way or complete; call resume_stable before the next")
        self.decays.append((self.last_epoch, check_length("n_steps", n_steps, 1), None))
        self._apply()

    def resume_stable(self) -> None:
        """Return to the full rate with the step that comes next; only with an open end.

        Raises:
            RuntimeError: the budgets are fixed, or no decay was started.
        """
        self._check_open()
        if not self.decays or self.decays[-1][2] is not None:
            raise RuntimeError("there is no decay to return from; call start_decay first")
        start, length, _ = self.decays[-1]
        self.decays[-1] = (start, length, self.last_epoch)
        self._apply()

    def _check_open(self) -> None:
        if not self.open_ended:
            raise RuntimeError("the decays follow from budgets; build WSDSLR with budgets=None to start them by hand")


def _plan(budgets: Sequence[int], fraction: float, warmup: int) -> list[tuple[int, int, int | None]]:
    steps = [check_length("budgets", budget, 1) for budget in budgets]
    if not steps:
        raise ValueError("budgets is empty; give ascending numbers of steps, or None for an open end")
    plan: list[tuple[int, int, int | None]] = []
    before = warmup
    for number, budget in enumerate(steps):
        length = max(1, round(fraction * budget))
        if budget - length < before:
            raise ValueError(
                f"budgets must ascend with room for each decay: {budget} less its decay of {length} steps lies before "
                f"{before}, where the budget or warm-up before it ends; take budgets further apart or a smaller "
                "decay_fraction"
            )
        plan.append((budget - length, length, budget if number + 1 < len(steps) else None))
        before = budget
    return plan
