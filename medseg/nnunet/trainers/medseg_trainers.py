"""nnU-Net trainers, one for each method, that differ from `nnUNetTrainer` in the one thing their name says.

Select one with `nnUNetv2_train DATASET CONFIGURATION FOLD -tr NAME`, after
`export nnUNet_extTrainer="$(medseg nnunet-path)"`; prediction needs the variable as well. Number of epochs, learning
rate and the rest are nnU-Net's; to change them, derive a class in a folder of your own.

Serial training over modalities, as Turbolift does it, needs no trainer of its own: give the checkpoint of the stage
before with nnU-Net's `-pretrained_weights`, to any of these.

The losses and networks are those of `medseg`: this file only puts them where nnU-Net looks. All losses give 1 - Dice
where nnU-Net gives -Dice, so curves lie about 1 higher.

nnU-Net's SGD decays every parameter, by 3e-5: too little to matter for scales of norms and biases. Decay of AdamP and
Lion is 300 and 3000 times as large, so theirs is kept to the matrices of convolutions, as in `decay_groups`. Of AdamP's
weights those whose convolution is followed by a norm are found by running the network once on a patch of zeros.

Source of the interface: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image
segmentation" (2021), code of version 2.8.
"""

from __future__ import annotations

from typing import Any

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer  # pyright: ignore[reportMissingImports]

from medseg.core.norm import convert_norm
from medseg.core.optim import AdamP, Lion, decay_groups, scale_invariant_param_groups
from medseg.core.schedules import WSDLR, PolyLR
from medseg.losses import BettiMatchingLoss, DiceCELoss, FocalTverskyLoss, SegWithMIPLoss, warm_up_factor
from medseg.nnunet.adaptive_step import AdaptiveStep
from medseg.nnunet.loss import NNUNetLoss, find_level_weights
from medseg.nnunet.trainer_norms import TRAINER_NORMS


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


class nnUNetTrainerAdamP(nnUNetTrainer):
    """AdamP, told which weights stand in front of a norm, with nnU-Net's polynomial decay of the rate."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLR]:
        """Give optimizer and schedule; nnU-Net steps it by epochs."""
        self.initial_lr, self.weight_decay = 1e-3, 1e-2
        # What torch.compile makes of the network would hide its operations.
        network = getattr(self.network, "_orig_mod", self.network)
        patch = (1, self.num_input_channels, *self.configuration_manager.patch_size)
        groups = scale_invariant_param_groups(network, patch, self.weight_decay)
        optimizer = AdamP(groups, lr=self.initial_lr, nesterov=True)
        return optimizer, PolyLR(optimizer, self.num_epochs)


class nnUNetTrainerLion(nnUNetTrainer):
    """Lion, at a tenth of AdamP's rate and ten times its decay, which bounds the weights that decay by 10."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLR]:
        """Give optimizer and schedule; nnU-Net steps it by epochs."""
        self.initial_lr, self.weight_decay = 1e-4, 1e-1
        optimizer = Lion(decay_groups(self.network, self.weight_decay), lr=self.initial_lr)
        return optimizer, PolyLR(optimizer, self.num_epochs)


class nnUNetTrainerWSD(nnUNetTrainer):
    """nnU-Net's optimizer at a constant rate, with a decay over the last fifth: a run that can be prolonged."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WSDLR]:
        """Give optimizer and schedule; nnU-Net steps it by epochs."""
        optimizer, _ = super().configure_optimizers()
        decay = max(round(0.2 * self.num_epochs), 1)
        return optimizer, WSDLR(optimizer, 0, self.num_epochs - decay, decay)


class _NormTrainer(nnUNetTrainer):
    """A trainer whose network has other norms; `TRAINER_NORMS` says which, for prediction as well."""

    @classmethod
    def build_network_architecture(
        cls,
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> torch.nn.Module:
        """Give nnU-Net's network with its norms exchanged."""
        network = nnUNetTrainer.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        norm = next(TRAINER_NORMS[kind.__name__] for kind in cls.__mro__ if kind.__name__ in TRAINER_NORMS)
        convert_norm(network, norm, spatial_dims=len(configuration_manager.patch_size))
        return network


class nnUNetTrainerGroupNorm(_NormTrainer):
    """Group normalisation, 8 groups."""


class nnUNetTrainerPowerNorm(_NormTrainer):
    """PowerNorm, whose statistics are running quadratic means."""


class nnUNetTrainerUnifiedNorm(_NormTrainer):
    """Unified Normalization, which folds into the convolutions for inference."""


class nnUNetTrainerEvoNorm(_NormTrainer):
    """EvoNorm S0, normalisation and activation in one; nnU-Net's activation still follows."""
