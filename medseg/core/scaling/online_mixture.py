"""Mix data of several sites, or other groups, while training: learn in short probes which group helps whom, and shift.

Within a round the validation losses are taken to fall linearly in the shares p of the groups,

    L_i(t + 1) = L_i(t) - sum over j of A_ij p_j

A is measured by probes: a few updates each with a mixture that holds `one_hot` of one group and the rest evenly,
several sweeps over all groups in random order. With W the mixtures and d_i the mean falls of L_i, W A_i = d_i. Then

    A <- A less its smallest entry where that is negative, divided by its sum;    A <- (1 - ema) A + ema A_before
    p_j proportional to exp(eta sum over i of A_ij), with a floor

until the next round. Equal shares are hard to beat: compare with them, and count the validations, `sweeps` times the
number of groups and one more in each round, on a small fixed set.

Source: Chen et al., "Aioli: A Unified Optimization Framework for Language Model Data Mixing" (2024). Differs in the
floor, in probing the groups in random order (losses fall fastest at first, whoever's turn it is), and in counting
updates throughout, where the published code takes updates from a number of samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special
from torch.utils.data import Sampler


class OnlineDataMixer:
    """Shares of groups, adapted while training.

    Before every update: where `wants_losses`, give the validation losses of all groups to `observe`; draw the batch by
    `proportions`; after the update, `step`. `MixtureSampler` draws the batches.

    Args:
        groups: number of groups, at least 2.
        eta: how strongly the shares follow what was learnt.
        ema: share of the earlier A that stays, in [0, 1).
        one_hot: share of the probed group, above 1/groups and at most 1.
        sweeps: probes of each group in a round.
        steps: updates in a probe.
        every: updates in a round, probes included.
        floor: least share of a group, below 1/groups.
        seed: of the order of the probes.

    Raises:
        ValueError: an argument is out of range, or the probes leave nothing of a round.

    Example:
        >>> mixer = OnlineDataMixer(2, sweeps=1, steps=1, every=10)
        >>> losses = np.array([1.0, 1.0])
        >>> for _ in range(10):
        ...     if mixer.wants_losses:
        ...         mixer.observe(losses)
        ...     losses = losses - np.array([[0.02, 0.01], [0.01, 0.0]]) @ mixer.proportions   # an update
        ...     shares = mixer.proportions
        ...     mixer.step()
        >>> mixer.effects.round(2).tolist(), shares.round(3).tolist()
        ([[0.5, 0.25], [0.25, 0.0]], [0.522, 0.478])
    """

    def __init__(
        self,
        groups: int,
        eta: float = 0.2,
        ema: float = 0.1,
        one_hot: float = 0.625,
        sweeps: int = 4,
        steps: int = 4,
        every: int = 250,
        floor: float = 0.05,
        seed: int = 0,
    ) -> None:
        _check(groups, eta, ema, one_hot, sweeps, steps, every, floor)
        self.groups, self.eta, self.ema, self.one_hot = groups, float(eta), float(ema), float(one_hot)
        self.sweeps, self.steps, self.every, self.floor, self.seed = sweeps, steps, every, float(floor), seed
        self.effects: np.ndarray | None = None  # A as it is used, (groups, groups)
        self._shares = np.full(groups, 1 / groups)
        self._round = self._updates = self._seen = 0
        self._before, self._falls = np.zeros(groups), np.zeros((groups, groups))

    @property
    def wants_losses(self) -> bool:
        """Whether `observe` is due before the next update."""
        probe, within = divmod(self._updates, self.steps)
        return within == 0 and probe == self._seen <= self._probes

    @property
    def proportions(self) -> np.ndarray:
        """Shares of the groups by which to draw the next batch, (groups,), with sum 1."""
        probe = self._updates // self.steps
        return self._mixtures()[self._order()[probe]] if probe < self._probes else self._shares.copy()

    def observe(self, losses: ArrayLike) -> None:
        """Take the validation losses of all groups.

        Args:
            losses: one of each group, (groups,).

        Raises:
            ValueError: there are not as many finite losses as groups.
            RuntimeError: no losses are due.
        """
        values = np.asarray(losses, dtype=np.float64)
        if values.shape != (self.groups,) or not np.isfinite(values).all():
            raise ValueError(f"losses must be {self.groups} finite numbers, one of each group, got {losses!r}")
        if not self.wants_losses:
            raise RuntimeError("no losses are due; ask wants_losses first")
        if self._seen > 0:
            self._falls[self._order()[self._seen - 1]] += (self._before - values) / self.sweeps
        self._before, self._seen = values, self._seen + 1
        if self._seen > self._probes:
            self._learn()

    def step(self) -> None:
        """Count an update.

        Raises:
            RuntimeError: losses were due before it.
        """
        if self.wants_losses:
            raise RuntimeError("validation losses were due before this update; give them to observe")
        self._updates += 1
        if self._updates == self.every:
            self._round, self._updates, self._seen = self._round + 1, 0, 0
            self._falls = np.zeros((self.groups, self.groups))

    def state_dict(self) -> dict[str, Any]:
        """Everything that is needed to go on, as plain numbers and lists."""
        effects = None if self.effects is None else self.effects.tolist()
        return {"round": self._round, "updates": self._updates, "seen": self._seen, "effects": effects} | {
            key: getattr(self, f"_{key}").tolist() for key in ("shares", "before", "falls")
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: the state is of another number of groups.
        """
        if len(state["shares"]) != self.groups:
            raise ValueError(f"state is of {len(state['shares'])} groups, this mixer has {self.groups}")
        self._round, self._updates, self._seen = state["round"], state["updates"], state["seen"]
        self.effects = None if state["effects"] is None else np.array(state["effects"])
        self._shares, self._before, self._falls = (np.array(state[key]) for key in ("shares", "before", "falls"))

    @property
    def _probes(self) -> int:
        return self.sweeps * self.groups

    def _mixtures(self) -> np.ndarray:
        """Mixtures of the probes, one row for each group."""
        rest = (1 - self.one_hot) / (self.groups - 1)
        return np.full((self.groups, self.groups), rest) + (self.one_hot - rest) * np.eye(self.groups)

    def _order(self) -> np.ndarray:
        """Group of each probe of the round."""
        random = np.random.default_rng((self.seed, self._round))
        return np.concatenate([random.permutation(self.groups) for _ in range(self.sweeps)])

    def _learn(self) -> None:
        effects = np.linalg.solve(self._mixtures(), self._falls).T
        effects = effects - min(effects.min(), 0.0)
        total = effects.sum()
        effects = effects / total if total > 0 else np.full_like(effects, 1 / effects.size)
        if self.effects is not None:
            effects = (1 - self.ema) * effects + self.ema * self.effects
        self.effects = effects
        self._shares = (1 - self.groups * self.floor) * special.softmax(self.eta * effects.sum(0)) + self.floor


class MixtureSampler(Sampler[int]):
    """Draw samples by the shares that a mixer gives at the time of the draw; within a group evenly, with replacement.

    Workers of a data loader fetch ahead, so that a change of the shares arrives some batches late; probes of a few
    updates want `num_workers=0`.

    Args:
        group_of: group of every sample, from 0 to `mixer.groups` - 1; each group must have samples.
        mixer: gives the shares.
        num_samples: draws in an epoch; as many as samples by default.
        seed: of the draws; `set_epoch` varies them.

    Raises:
        ValueError: a group has no samples, or a sample no group.

    Example:
        >>> sampler = MixtureSampler([0, 0, 0, 1], OnlineDataMixer(2), num_samples=5)
        >>> len(sampler), len(list(sampler))
        (5, 5)
    """

    def __init__(
        self, group_of: Sequence[int], mixer: OnlineDataMixer, num_samples: int | None = None, seed: int = 0
    ) -> None:
        self.members = [np.flatnonzero(np.asarray(group_of) == group) for group in range(mixer.groups)]
        if sum(map(len, self.members)) != len(group_of) or not all(map(len, self.members)):
            raise ValueError(
                f"group_of must name a group from 0 to {mixer.groups - 1} for every sample, and each group at least "
                f"once, got {sorted(set(group_of))}"
            )
        self.mixer, self.seed, self.epoch = mixer, seed, 0
        self.num_samples = len(group_of) if num_samples is None else num_samples

    def set_epoch(self, epoch: int) -> None:
        """Draw anew."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_samples

    def __iter__(self) -> Iterator[int]:
        random = np.random.default_rng((self.seed, self.epoch))
        for _ in range(self.num_samples):
            yield int(random.choice(self.members[random.choice(self.mixer.groups, p=self.mixer.proportions)]))


def _check(
    groups: int, eta: float, ema: float, one_hot: float, sweeps: int, steps: int, every: int, floor: float
) -> None:
    if groups < 2:
        raise ValueError(f"groups must be at least 2, got {groups}")
    if not (np.isfinite(eta) and eta >= 0):
        raise ValueError(f"eta must be a finite number, at least 0, got {eta}")
    if not 0 <= ema < 1:
        raise ValueError(f"ema must be at least 0 and below 1, got {ema}")
    if not 1 / groups < one_hot <= 1:
        raise ValueError(f"one_hot must be above 1/groups, {1 / groups:.3g}, and at most 1, got {one_hot}")
    if not 0 <= floor < 1 / groups:
        raise ValueError(f"floor must be at least 0 and below 1/groups, {1 / groups:.3g}, got {floor}")
    if min(sweeps, steps) < 1:
        raise ValueError(f"sweeps and steps must be at least 1, got {sweeps} and {steps}")
    if every <= sweeps * groups * steps:
        raise ValueError(
            f"every must exceed the {sweeps * groups * steps} updates of the probes (sweeps x groups x steps), got "
            f"{every}; take fewer sweeps or steps, or longer rounds"
        )
