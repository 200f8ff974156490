"""One training step of AdaWAC on nnU-Net's patches.

The second view is the patch mirrored along a random axis, with noise of a random strength; both go through the network
in one call. Their deepest features are compared in the frame of the patch.

Source: Dong, Xie, Ward, "Adaptively Weighted Data Augmentation Consistency Regularization for Robust Optimization under
Concept Shift" (ICML 2023). Differs in that weights come from the losses of the step alone, as a random patch is no
sample that comes again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from medseg.losses import AdaptiveWeightedConsistencyLoss
from medseg.networks import FeatureTap

_MAX_NOISE = 0.3  # standard deviations of the normalised image
_MAX_GRADIENT = 12.0  # nnU-Net's


class AdaptiveStep:
    """A callable that makes a second view, computes AdaWAC's loss and updates the network.

    Args:
        network: nnU-Net's network with an `encoder`, possibly compiled or in `DistributedDataParallel`.
        optimizer: its optimiser.
        grad_scaler: of mixed precision, or None.
        seed: of the views.

    Raises:
        ValueError: the network has no encoder with stages.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        grad_scaler: Any = None,
        *,
        seed: int = 0,
    ) -> None:
        inside = getattr(network, "_orig_mod", getattr(network, "module", network))
        stages = getattr(getattr(inside, "encoder", None), "stages", None)
        if stages is None:
            raise ValueError(f"network {type(inside).__name__} has no encoder.stages, whose end AdaWAC listens to")
        prefix = next((f"{name}." for name in ("_orig_mod", "module") if hasattr(network, name)), "")
        self.tap = FeatureTap(network, f"{prefix}encoder.stages.{len(stages) - 1}")
        self.optimizer, self.grad_scaler = optimizer, grad_scaler
        self.loss = AdaptiveWeightedConsistencyLoss(1, align="inverse", stateless=True)
        self._random = torch.Generator().manual_seed(seed)

    def __call__(self, data: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Update the network.

        Args:
            data: images (B, C, spatial...).
            target: class ids (B, 1, spatial...).

        Returns:
            The loss, detached.
        """
        axis = int(torch.randint(2, data.ndim, (), generator=self._random))
        noise = torch.randn(data.shape, generator=self._random).to(data)
        view = data.flip(axis) + _MAX_NOISE * float(torch.rand((), generator=self._random)) * noise
        affines = _mirror_matrices(len(data), data.ndim - 2, axis - 2, data.device)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(data.device.type, enabled=data.device.type == "cuda"):
            logits, features = self.tap(torch.cat((data, view)))
            loss = self.loss(logits, torch.cat((target, target.flip(axis))), features, view_affines=affines)
        self._update(loss)
        return loss.detach()

    def _update(self, loss: torch.Tensor) -> None:
        scaler = self.grad_scaler
        if scaler is not None:
            scaler.scale(loss).backward()
            scaler.unscale_(self.optimizer)
        else:
            loss.backward()
        nn.utils.clip_grad_norm_(self.tap.parameters(), _MAX_GRADIENT)
        if scaler is not None:
            scaler.step(self.optimizer)
            scaler.update()
        else:
            self.optimizer.step()


def _mirror_matrices(batch: int, axes: int, axis: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrices of `affine_grid` for the patch as it is and for its mirror image; the last axis comes first there."""
    same = torch.eye(axes + 1, device=device).repeat(batch, 1, 1)
    mirrored = same.clone()
    row = axes - 1 - axis
    mirrored[:, row, row] = -1
    return same, mirrored
