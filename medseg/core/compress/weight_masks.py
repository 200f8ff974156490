"""Keep pruned weights at zero while a network goes on training.

The masked weights are zeros in the network itself. Before every step of the optimizer gradients are masked as well, so
that momentum, clipping inside the optimizer and norms of rows see the pruned network alone; after it the weights are. A
training step is thereby the one of `torch.nn.utils.prune` (the tests compare them), which was looked at first and does
not fit here for two reasons: it renames `weight` to `weight_orig`, so that checkpoints on the way load into no bundle;
and its `weight` is no leaf, so that the network cannot be copied after a forward pass, as averaging weights does. Masks
can be handed to it all the same: `prune.custom_from_mask(module, "weight", mask)`. There is nothing to make permanent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from medseg.core.compress.global_magnitude import global_magnitude_masks, magnitude_scores
from medseg.core.compress.prunable import find_prunable
from medseg.core.optim.scale_invariance import find_scale_invariant


class WeightMasks:
    """Masks of a network's weights, which are set to zero at once and kept so while it trains.

    Args:
        model: the network, changed in place.
        masks: by the parameter's name, True where a weight stays; of the parameter's shape.

    Raises:
        ValueError: a name is no parameter, or a shape differs.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> masks = WeightMasks(model, {"weight": torch.tensor([[True, False]])})
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> handles = masks.attach(optimizer)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> model.weight[0, 1].item(), masks.sparsity
        (0.0, 0.5)
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, torch.Tensor]) -> None:
        self.model = model
        self._masks: dict[str, torch.Tensor] = {}
        self.load_state_dict(masks)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The masks by parameter."""
        return dict(self._masks)

    def load_state_dict(self, state_dict: Mapping[str, torch.Tensor]) -> None:
        """Take other masks, and set to zero what they prune; what they do not is free to learn again.

        Args:
            state_dict: by the parameter's name, True where a weight stays.

        Raises:
            ValueError: a name is no parameter, or a shape differs.
        """
        parameters = dict(self.model.named_parameters())
        for name, mask in state_dict.items():
            shape = tuple(parameters[name].shape) if name in parameters else None
            if tuple(mask.shape) != shape:
                raise ValueError(
                    f"masks[{name!r}] has shape {tuple(mask.shape)}, but the parameter has {shape} (None: there is "
                    "none of this name); masks go with the network that they were made for"
                )
        self._masks = {name: mask.to(parameters[name].device, torch.bool) for name, mask in state_dict.items()}
        self._parameters = {name: parameters[name] for name in self._masks}
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Set the pruned weights to zero."""
        for name, mask in self._masks.items():
            self._parameters[name].masked_fill_(~mask.to(self._parameters[name].device), 0)

    def attach(self, optimizer: Optimizer) -> list[RemovableHandle]:
        """Mask gradients before each step of an optimizer and weights after it.

        Args:
            optimizer: any; wrappers too.

        Returns:
            Handles whose `remove()` ends it.
        """
        before = optimizer.register_step_pre_hook(lambda *_: self._mask_gradients())
        after = optimizer.register_step_post_hook(lambda *_: self.apply())
        return [before, after]

    @torch.no_grad()
    def _mask_gradients(self) -> None:
        for name, mask in self._masks.items():
            gradient = self._parameters[name].grad
            if gradient is not None:
                gradient.masked_fill_(~mask.to(gradient.device), 0)

    @property
    def sparsity(self) -> float:
        """Part of the weights under masks that is pruned."""
        total = sum(mask.numel() for mask in self._masks.values())
        return 1 - sum(self.kept.values()) / total if total else 0.0

    @property
    def kept(self) -> dict[str, int]:
        """Number of weights that stay, by parameter."""
        return {name: int(mask.sum()) for name, mask in self._masks.items()}


def prune_magnitude(
    model: nn.Module,
    sparsity: float,
    input_shape: Sequence[int],
    min_per_layer: int | float = 0.001,
    scale_aware: bool = True,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> WeightMasks:
    """Set the smallest weights of a network to zero, over all layers together.

    Call it again with a larger sparsity to go on: what is zero stays.

    Args:
        model: the network, changed in place.
        sparsity: part to prune of the weights that may be pruned, in [0, 1].
        input_shape: (B, C, spatial...) to run it on once; small is enough.
        min_per_layer: largest weights of each layer that stay: a number if whole, a part of the layer if below 1.
        scale_aware: measure filters that a normalisation follows relative to their norm.
        include: names of layers to prune that by default are not, see `find_prunable`.
        exclude: names of layers to leave.

    Returns:
        The masks; attach them to an optimizer to train on.

    Raises:
        ValueError: an option is out of range, a name fits no layer, or nothing may be pruned.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))
        >>> prune_magnitude(model, 0.75, [1, 1, 8, 8]).kept
        {'2.weight': 36}
    """
    weights = find_prunable(model, input_shape, include, exclude)
    if not weights:
        raise ValueError("found no layer to prune between the first one and the heads; name some in include")
    invariances = find_scale_invariant(model, input_shape) if scale_aware else None
    return WeightMasks(model, global_magnitude_masks(magnitude_scores(weights, invariances), sparsity, min_per_layer))
