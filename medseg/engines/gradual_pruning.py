"""Prune a network little by little while it trains.

The handler around `medseg.core.compress.prune_magnitude`: from iteration `begin` to `end` the sparsity rises along the
cubic schedule of Zhu and Gupta ("To prune, or not to prune", 2017), fast at first, and then stays. Between two
prunings, and afterwards, the masks hold whatever the optimizer does.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ignite.engine import Engine, Events
from torch import nn
from torch.optim import Optimizer

from medseg.core.compress import WeightMasks, cubic_sparsity, prune_magnitude

logger = logging.getLogger(__name__)


class GradualPruning:
    """Handler of a trainer that prunes by magnitude over all layers, in steps.

    The network's weights are zeros, nothing is renamed: checkpoints on the way are those of the dense network and load
    into its bundle. There is no state to save: a resumed run prunes what is zero first, and so goes on as it was.
    Average the weights only from `end` on, since older ones bring pruned weights back.

    Args:
        network: the network that is trained; the module inside a wrapper for several devices.
        optimizer: the trainer's.
        input_shape: (B, C, spatial...) to run the network on once a pruning; small is enough.
        end: iteration at which the final sparsity is reached, at least 1.
        sparsity: the final one, of the weights that may be pruned, in [0, 1].
        begin: iteration of the first pruning, before `end`.
        every: iterations between two prunings, at least 1.
        min_per_layer: largest weights of each layer that stay: a number if whole, a part of the layer if below 1.
        scale_aware: measure filters that a normalisation follows relative to their norm.
        exclude: names of layers to leave, beside the first convolution and the heads.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> import torch
        >>> model = nn.Conv2d(1, 1, 1)
        >>> handler = GradualPruning(model, torch.optim.SGD(model.parameters(), lr=0.1), [1, 1, 8, 8], end=100)
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: Optimizer,
        input_shape: Sequence[int],
        end: int,
        sparsity: float = 0.8,
        begin: int = 0,
        every: int = 100,
        min_per_layer: int | float = 0.001,
        scale_aware: bool = True,
        exclude: Sequence[str] = (),
    ) -> None:
        if not 0 <= begin < end:
            raise ValueError(f"0 <= begin < end is needed, in iterations, got begin {begin} and end {end}")
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        cubic_sparsity(0, 1, sparsity)  # refuses what is out of range now, not in the middle of a training
        self.network, self.optimizer, self.input_shape = network, optimizer, list(input_shape)
        self.sparsity, self.begin, self.end, self.every = sparsity, begin, end, every
        self.min_per_layer, self.scale_aware, self.exclude = min_per_layer, scale_aware, list(exclude)
        self._masks: WeightMasks | None = None

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._on_iteration)

    def _on_iteration(self, engine: Engine) -> None:
        done = engine.state.iteration - 1
        due = done == self.end or (self.begin <= done < self.end and (done - self.begin) % self.every == 0)
        resumed = self._masks is None and done > self.begin
        if not (due or resumed):
            return
        # A resumed run is given the sparsity of its last pruning.
        last = self.end if done >= self.end else done - (done - self.begin) % self.every
        target = cubic_sparsity(last - self.begin, self.end - self.begin, self.sparsity)
        found = prune_magnitude(
            self.network, target, self.input_shape, self.min_per_layer, self.scale_aware, exclude=self.exclude
        )
        if self._masks is None:
            self._masks = found
            self._masks.attach(self.optimizer)
        else:
            self._masks.load_state_dict(found.state_dict())
        logger.info("iteration %d: %.1f %% of the weights are pruned", done, 100 * found.sparsity)
