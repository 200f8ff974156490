"""nnU-Net trainers, one for each method, that differ from `nnUNetTrainer` in the one thing their name says.

Select one with `nnUNetv2_train DATASET CONFIGURATION FOLD -tr NAME`, after
`export nnUNet_extTrainer="$(medseg nnunet-path)"`; prediction needs the variable as well. Number of epochs, learning
rate and the rest are nnU-Net's; to change them, derive a class in a folder of your own.

The losses and networks are those of `medseg`: this file only puts them where nnU-Net looks. All losses give 1 - Dice
where nnU-Net gives -Dice, so curves lie about 1 higher.

Source of the interface: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation" (2021), code of version 2.8.
"""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # pyright: ignore[reportMissingImports]

from medseg.losses import BettiMatchingLoss, DiceCELoss, FocalTverskyLoss, SegWithMIPLoss, warm_up_factor
from medseg.nnunet.adaptive_step import AdaptiveStep
from medseg.nnunet.loss import NNUNetLoss, find_level_weights


class _LossTrainer(nnUNetTrainer):
    """A trainer whose loss comes from medseg."""

    takes_regions = True
    takes_ignored = False

    def make_loss(self, flags: dict[str, Any], level_weights: list[float] | None) -> NNUNetLoss:
        """Give the loss for logits read as `flags` say."""
        raise NotImplementedError

    def _build_loss(self) -> NNUNetLoss:
        labels = self.label_manager
        if labels.has_regions and not self.takes_regions:
            raise NotImplementedError(f"{type(self).__name__} needs labels, the data set has overlapping regions")
        if labels.has_ignore_label and (labels.has_regions or not self.takes_ignored):
            raise NotImplementedError(
                f"{type(self).__name__} knows no label to ignore, or none beside regions; nnUNetTrainerFusedDiceCE "
                "takes one beside labels"
            )
        regions = {"sigmoid": True}
        classes = {"softmax": True, "to_onehot_y": True, "include_background": False}
        return self.make_loss(regions if labels.has_regions else classes, self._level_weights())

    def _level_weights(self) -> list[float] | None:
        if not self.enable_deep_supervision:
            return None
        return find_level_weights(len(self._get_deep_supervision_scales()), keep_coarsest=self.is_ddp)

    def _overlap_and_entropy(self, flags: dict[str, Any], **more: Any) -> DiceCELoss:
        return DiceCELoss(**flags, batch=self.configuration_manager.batch_dice, **more)


class nnUNetTrainerFusedDiceCE(_LossTrainer):
    """Dice and cross-entropy in one pass, without one-hot labels in memory."""

    takes_ignored = True

    def make_loss(self, flags: dict[str, Any], level_weights: list[float] | None) -> NNUNetLoss:
        """Give the loss."""
        ignored = self.label_manager.ignore_label
        more = {} if ignored is None else {"ignore_index": ignored}
        return NNUNetLoss(self._overlap_and_entropy(flags, **more), level_weights)


class nnUNetTrainerFocalTversky(_LossTrainer):
    """The focal Tversky loss, for classes of few voxels."""

    def make_loss(self, flags: dict[str, Any], level_weights: list[float] | None) -> NNUNetLoss:
        """Give the loss."""
        return NNUNetLoss(FocalTverskyLoss(**flags), level_weights)


class nnUNetTrainerMIPLoss(_LossTrainer):
    """Focal Tversky and its maximum intensity projections (SPOCKMIP), for vessels."""

    def make_loss(self, flags: dict[str, Any], level_weights: list[float] | None) -> NNUNetLoss:
        """Give the loss."""
        return NNUNetLoss(SegWithMIPLoss(**flags), level_weights)


class nnUNetTrainerBettiMatching(_LossTrainer):
    """Dice and cross-entropy, with Betti matching at full resolution coming in over the first half of the epochs."""

    betti_weight = 0.1

    def make_loss(self, flags: dict[str, Any], level_weights: list[float] | None) -> NNUNetLoss:
        """Give the loss."""
        dice_ce = self._overlap_and_entropy(flags)
        return NNUNetLoss(dice_ce, level_weights, finest=BettiMatchingLoss(**flags), finest_weight=0.0)

    def on_train_epoch_start(self) -> None:
        """Let the weight of topology follow the epochs."""
        super().on_train_epoch_start()
        self.loss.finest_weight = self.betti_weight * warm_up_factor(2 * self.current_epoch / self.num_epochs)


class nnUNetTrainerAdaWAC(_LossTrainer):
    """AdaWAC on patches: each is taught by its labels or by the agreement of two views, as its losses of the step say.

    nnU-Net draws patches at random, none comes again, so the weights are those of the step (`stateless`). Without deep
    supervision, because the method knows one output.
    """

    takes_regions = False

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),
    ) -> None:
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False

    def initialize(self) -> None:
        """Make the network, then the step that listens to its encoder."""
        super().initialize()
        self.step = AdaptiveStep(self.network, self.optimizer, self.grad_scaler, seed=self.fold)

    def make_loss(self, flags: dict[str, Any], level_weights: list[float] | None) -> NNUNetLoss:
        """Give the loss of validation."""
        return NNUNetLoss(self._overlap_and_entropy(flags), level_weights)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Run both views and update the network."""
        return {"loss": self.step(batch["data"].to(self.device), batch["target"].to(self.device)).cpu().numpy()}
