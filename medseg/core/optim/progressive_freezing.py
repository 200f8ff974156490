"""Freeze a network's layers one after another during fine-tuning, from the input on; or thaw them from the head on.

    freezing:  layer g stops learning at step milestones[g];     thawing:  layer g starts learning then

A frozen layer costs no gradients and no optimizer state, its normalisation uses stored statistics and leaves them
alone. The head is never frozen. Goes with `layerwise_param_groups`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer

from medseg.core.optim.layerwise import Layers, split_parameters

STATISTICS = (nn.modules.batchnorm._NormBase,)


def freezing_milestones(layers: int, total_steps: int, first: float = 0.2, last: float = 0.8) -> list[int]:
    """Even steps at which all layers but the head are frozen.

    Args:
        layers: number of layers, the head included; at least 2.
        total_steps: of the training.
        first: part of the training after which layer 0 is frozen, in [0, 1].
        last: the same for the layer before the head, at least `first`.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> freezing_milestones(4, total_steps=1000)
        [200, 500, 800]
    """
    if layers < 2 or total_steps < 1 or not 0 <= first <= last <= 1:
        got = f"{layers}, {total_steps}, {first}, {last}"
        raise ValueError(f"layers >= 2, total_steps >= 1 and 0 <= first <= last <= 1 are needed, got {got}")
    gaps = max(layers - 2, 1)
    return [round(total_steps * (first + (last - first) * g / gaps)) for g in range(layers - 1)]


class ProgressiveFreezing:
    """Says which layers learn at a step; call `step` before each optimizer step, after `model.train()`.

    It holds no state but the arguments, so a resumed run calls it with its step and is right.

    Args:
        model: the network; parameters that do not learn at construction never will.
        layers: from stem to head, as in `layerwise_param_groups`.
        milestones: a step for every layer but the head, see `freezing_milestones`; from the stem on: rising to freeze,
            falling to thaw.
        optimizer: if given, forgets the state of layers that are frozen.
        freeze_norm_stats: put the batch normalisation of frozen layers in evaluation.
        unfreeze: thaw instead: everything but the head begins frozen.

    Raises:
        ValueError: there are not as many milestones as layers without the head, or a parameter is in no layer.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> freezing = ProgressiveFreezing(model, [["0"], ["1"]], milestones=[10])
        >>> freezing.step(9), freezing.step(10), model[0].weight.requires_grad
        ([], [0], False)
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Layers,
        milestones: Sequence[int],
        optimizer: Optimizer | None = None,
        freeze_norm_stats: bool = True,
        unfreeze: bool = False,
    ) -> None:
        if len(milestones) != len(layers) - 1:
            below = len(layers) - 1
            raise ValueError(f"milestones must have a step for each of the {below} layers below the head: {milestones}")
        self.model, self.milestones, self.optimizer = model, list(milestones), optimizer
        self.freeze_norm_stats, self.unfreeze = freeze_norm_stats, unfreeze
        self._layers = [[p for p in params if p.requires_grad] for params in split_parameters(model, layers)]
        owners = {id(p): number for number, params in enumerate(self._layers) for p in params}
        self._norms: list[tuple[nn.Module, int]] = []
        for module in model.modules():
            own = [owners[id(p)] for p in module.parameters(recurse=False) if id(p) in owners]
            if isinstance(module, STATISTICS) and own:
                self._norms.append((module, own[0]))

    def step(self, count: int) -> list[int]:
        """Freeze and thaw for the step that follows.

        Args:
            count: optimizer steps done.

        Returns:
            Numbers of the frozen layers.
        """
        frozen = [g for g, milestone in enumerate(self.milestones) if (count >= milestone) is not self.unfreeze]
        for number, params in enumerate(self._layers):
            for p in params:
                p.requires_grad_(number not in frozen)
                if number in frozen:
                    p.grad = None
                    if self.optimizer is not None:
                        self.optimizer.state.pop(p, None)
        if self.freeze_norm_stats:
            for module, number in self._norms:
                module.train(self.model.training and number not in frozen)
        return frozen
