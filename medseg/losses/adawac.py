"""AdaWAC: for every training sample, learn whether its label or the agreement of two augmented views should teach.

For sample i with two augmented views, features phi (the deepest of the encoder) and d = `dice_weight`:

    ce_i = mean cross-entropy of the voxels of both views
    ac_i = lambda * mean over the features of (phi(view 1) - phi(view 2))^2,     both with gradient, no teacher
    s_i <- clamp(s_i + eta (ce_i - ac_i)),   w_i = sigmoid(s_i)                  before the loss of the same step
    L = mean over i of  d Dice + (1 - d) (w_i ce_i + (1 - w_i) ac_i)

Dice is that of the batch, averaged over the views: sums over all items, all classes with background, squared
denominators, 1e-5 added to both sides. Slices full of label drift to supervision, slices with hardly any to agreement.

Source: Dong, Xie, Ward, "Adaptively Weighted Data Augmentation Consistency Regularization for Robust Optimization under
Concept Shift" (ICML 2023).

Differs from the published code: one logit s_i in place of two float32 probabilities that are multiplied, which reach 0
within a few steps and stay there; that is the same mirror ascent, and `max_logit=None` gives it without the clamp. The
table is saved with the loss. Samples that stand twice in a batch count twice. Views may be aligned before their
features are compared: the published code compares equal grid positions of differently turned views.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from monai.losses import DiceLoss
from torch import nn
from torch.nn import functional

from medseg.losses._inputs import check_scores, in_full_precision, make_one_hot, refuse_stray_ids
from medseg.losses._sample_table import NO_SAMPLE, SampleTableLoss
from medseg.losses._two_views import ALIGNMENTS, DISTANCES, Views, feature_distance, join_views

BaseLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class AdaptiveWeightedConsistencyLoss(SampleTableLoss):
    """Supervised loss and agreement of two views, weighted for every sample by a table that learns.

    The table `weight_logits` (num_samples,) and `visits` are buffers: in `state_dict`, moved by `.to()`, unknown to the
    optimiser. They change in `train()` only; `eval()` reads them. Everything is computed in float32 (float64 stays),
    also under autocast. A sample whose losses are not finite keeps its entry and is counted in `nonfinite_updates`.
    Ranks of `torch.distributed` share one table: keep the loss outside of `DistributedDataParallel`, and call it
    equally often on all ranks. Accumulated gradients and activation checkpointing do no harm, as additions may come in
    any order and nothing here is computed twice; `torch.nn.DataParallel` is not supported.

    Set `consistency_weight` so that `last["ce"]` and `last["consistency"]` are alike in the first steps: features have
    the scale of their network. If in the end all samples lean to agreement, it is too large.

    Args:
        num_samples: number of training samples.
        step_size: eta; the published code takes 2 with a transformer and 8 with a U-Net. 0 keeps all weights at 1/2.
        consistency_weight: lambda; the published code takes 2.
        dice_weight: d, in [0, 1].
        max_logit: largest |s|, so that a sample can still change its mind; 20 is a weight within 2e-9 of 0 or 1. None
            is the exact algorithm.
        distance: over the channels: "mse", "cosine" (1 - cosine similarity) or "l2" (Euclidean length); then the mean
            over the grid.
        align: "none" as published; "inverse" compares features in the frame of the image before augmentation, the
            better choice in 3D and with large cells, and needs `view_affines`; "pool" compares means over the grid.
        supervised_loss: called with logits (2B, C, ...) and the target as it came; must give values for every item,
            (2B,) or (2B, ...), that is `reduction="none"`. By default cross-entropy, for one channel the binary one.
        dice_loss: called with logits (B, C, ...) and target of one view; must give one value. By default the Dice
            above.
        learn_weights: False reads the table and never writes it: as it starts, half supervision and half agreement.
        stateless: weights sigmoid(eta (ce - ac)) from the losses of the step alone, where a random patch is no sample
            that comes again. The table is not used.
        ignore_index: class id of voxels that do not count; a sample of nothing else has ce 0 and keeps its entry.
        sample_names: names in the order of the ids. With them, a saved table is only loaded for the same list, or by
            name with `load_state_dict(..., strict=False)`. The state keeps hashes of them.

    Raises:
        ValueError: an option is unknown or out of range.

    Example:
        >>> loss = AdaptiveWeightedConsistencyLoss(num_samples=10, step_size=2.0)
        >>> logits = torch.zeros(4, 2, 8, 8)                        # two samples in two views
        >>> label = torch.zeros(4, 1, 8, 8)
        >>> loss(logits, label, torch.zeros(4, 3, 2, 2), torch.tensor([7, 0]))
        tensor(0.5773)
        >>> loss.sample_weights(torch.tensor([0, 1]))               # ce is log 2 and agreement perfect; 1 was not seen
        tensor([[0.8000, 0.2000],
                [0.5000, 0.5000]])
    """

    weight_logits: torch.Tensor

    def __init__(
        self,
        num_samples: int,
        step_size: float = 1.0,
        consistency_weight: float = 1.0,
        dice_weight: float = 0.5,
        max_logit: float | None = 20.0,
        distance: str = "mse",
        supervised_loss: BaseLoss | None = None,
        dice_loss: BaseLoss | None = None,
        learn_weights: bool = True,
        *,
        align: str = "none",
        stateless: bool = False,
        ignore_index: int = -100,
        sample_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(num_samples, "weight_logits", sample_names)
        _check_numbers(step_size, consistency_weight, dice_weight, max_logit)
        for name, value, choices in (("distance", distance, DISTANCES), ("align", align, ALIGNMENTS)):
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if consistency_weight == 0:
            warnings.warn(
                "consistency_weight is 0: all weights will grow towards plain supervision", UserWarning, stacklevel=2
            )
        self.step_size, self.consistency_weight = float(step_size), float(consistency_weight)
        self.dice_weight, self.max_logit = float(dice_weight), max_logit
        self.distance, self.align, self.ignore_index = distance, align, ignore_index
        self.supervised_loss, self.dice_loss = supervised_loss, dice_loss
        self.learn_weights, self.stateless = learn_weights, stateless
        self._dice = DiceLoss(batch=True, squared_pred=True, smooth_nr=1e-5, smooth_dr=1e-5)
        self.last: dict[str, torch.Tensor] = {}

    def forward(
        self,
        logits: Views,
        target: Views,
        features: Views,
        sample_ids: torch.Tensor | None = None,
        view_affines: Views | None = None,
    ) -> torch.Tensor:
        """Update the weights of the samples, in `train()`, and compute the loss with them.

        Args:
            logits: both views, (2B, C, spatial...) in 2D or 3D with all first views first, or a pair (B, C, ...).
            target: class ids (2B, 1, spatial...) or (2B, spatial...), or masks (2B, C, spatial...), or a pair; each
                view's own.
            features: (2B, D, grid...), or a pair; see `medseg.networks.FeatureTap`.
            sample_ids: whole numbers (B,), one for each sample; a sample may occur several times. Only `stateless`
                needs none.
            view_affines: for `align="inverse"`: (2B, d + 1, d + 1), or a pair: the matrix with which `affine_grid`
                makes the view out of the image; see `medseg.transforms.PairedViewsd`.

        Returns:
            A scalar; float32, or float64 if the logits are. `last` then holds `ce` and `consistency` (B,), the latter
            times its weight, and `weights` (B, 2), detached.

        Raises:
            ValueError: shapes or types do not fit, or the target holds an id without a channel.
            IndexError: a sample id is out of range.
        """
        logits, target = join_views(logits, "logits"), join_views(target, "target")
        check_scores(logits, softmax=False)
        batch = len(logits) // 2
        ids = None
        if not self.stateless:
            if sample_ids is None:
                raise ValueError("sample_ids is None; give one id for each sample, or set stateless=True")
            ids = self.check_ids(sample_ids, batch)
        with torch.autocast(logits.device.type, enabled=False):
            scores = in_full_precision(logits)
            masks, valid = self._read_target(scores, target)
            supervised, labelled = self._supervised(scores, target, masks, valid)
            distance, seen = feature_distance(features, self.distance, self.align, view_affines)
            if len(distance) != batch:
                raise ValueError(f"features hold {len(distance)} samples in two views, logits {batch}; give them alike")
            consistency = self.consistency_weight * distance.to(scores)
            weights = self._weigh(ids, supervised, consistency, labelled & seen)
            self.last = {"ce": supervised.detach(), "consistency": consistency.detach(), "weights": weights}
            each = weights[:, 0] * supervised + weights[:, 1] * consistency
            return self.dice_weight * self._overlap(scores, target, masks, valid) + (1 - self.dice_weight) * each.mean()

    def update(self, sample_ids: torch.Tensor, supervised: torch.Tensor, consistency: torch.Tensor) -> None:
        """Move the logits of samples by `step_size` times the gap of their losses; `forward` does it in training.

        Args:
            sample_ids: whole numbers (B,).
            supervised: losses (B,).
            consistency: losses (B,), with the consistency weight in them.

        Raises:
            ValueError: shapes or types do not fit.
            IndexError: a sample id is out of range.
        """
        self._add_gap(self.check_ids(sample_ids, len(supervised)), supervised, consistency)

    def sample_weights(self, sample_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Give the weights of some or all samples.

        Args:
            sample_ids: whole numbers (n,); all samples by default.

        Returns:
            (n, 2), each row sums to 1: the weight of supervision, and that of agreement.

        Raises:
            ValueError: the ids are no whole numbers.
            IndexError: an id is out of range.
        """
        logits = self.weight_logits
        if sample_ids is not None:
            logits = logits[self.check_ids(sample_ids, len(sample_ids))]
        return _as_weights(logits)

    def extra_repr(self) -> str:
        """Show what decides the weights."""
        return f"{self.num_samples}, step_size={self.step_size}, consistency_weight={self.consistency_weight}"

    def _weigh(
        self, ids: torch.Tensor | None, supervised: torch.Tensor, consistency: torch.Tensor, counts: torch.Tensor
    ) -> torch.Tensor:
        """Weights (B, 2) after the update, if there is one."""
        if ids is None:
            return _as_weights(self.step_size * (supervised - consistency).detach())
        if self.training and self.learn_weights:
            self._add_gap(torch.where(counts.to(ids.device), ids, NO_SAMPLE), supervised, consistency)
        return _as_weights(self.weight_logits[ids].to(supervised))

    @torch.no_grad()
    def _add_gap(self, ids: torch.Tensor, supervised: torch.Tensor, consistency: torch.Tensor) -> None:
        self.add(ids, self.step_size * (supervised.detach() - consistency.detach()))
        if self.max_logit is not None:
            self.weight_logits.clamp_(-self.max_logit, self.max_logit)

    def _read_target(self, scores: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Masks of the logits' shape, and the voxels that count (2B, 1, spatial...), None for all."""
        channels, grid = scores.shape[1], tuple(scores.shape[2:])
        if scores.ndim not in (4, 5):
            raise ValueError(f"logits must have shape (2B, C, H, W) or (2B, C, H, W, D), got {tuple(scores.shape)}")
        if tuple(target.shape) == (len(scores), *grid):
            target = target.unsqueeze(1)
        if tuple(target.shape) not in (tuple(scores.shape), (len(scores), 1, *grid)):
            raise ValueError(
                f"target must be class ids {(len(scores), 1, *grid)} or masks {tuple(scores.shape)} for these logits, "
                f"got {tuple(target.shape)}"
            )
        if target.shape[1] > 1:
            return target.to(scores), None
        valid = target != self.ignore_index
        target = torch.where(valid, target, 0)
        if channels == 1:
            return target.to(scores), valid
        masks, stray = make_one_hot(target, channels)
        refuse_stray_ids(stray.tolist(), channels)
        return masks.to(scores), valid

    def _supervised(
        self, scores: torch.Tensor, target: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Loss of every sample (B,), mean over its voxels that count in both views, and whether there are any."""
        if valid is None:
            valid = torch.ones_like(masks[:, :1], dtype=torch.bool)
        valid = torch.cat(valid.chunk(2), dim=1).flatten(1)
        count = valid.sum(1)
        if self.supervised_loss is not None:
            values = _each_item(self.supervised_loss, scores, target)
            return torch.stack(values.chunk(2)).mean(0), count > 0
        if scores.shape[1] == 1:
            voxels = functional.binary_cross_entropy_with_logits(scores, masks, reduction="none")
        else:
            voxels = -(masks * scores.log_softmax(1)).sum(1, keepdim=True)
        voxels = torch.cat(voxels.chunk(2), dim=1).flatten(1)
        return torch.where(valid, voxels, 0).sum(1) / count.clamp(min=1), count > 0

    def _overlap(
        self, scores: torch.Tensor, target: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor | None
    ) -> torch.Tensor:
        """Dice loss of the batch, averaged over the views."""
        if self.dice_weight == 0:
            return scores.new_zeros(())
        if self.dice_loss is not None:
            pairs = zip(scores.chunk(2), target.chunk(2), strict=True)
            return sum((self.dice_loss(view, of) for view, of in pairs), scores.new_zeros(())) / 2
        probability = scores.sigmoid() if scores.shape[1] == 1 else scores.softmax(1)
        if valid is not None:
            probability, masks = probability * valid, masks * valid
        first, second = (self._dice(p, y) for p, y in zip(probability.chunk(2), masks.chunk(2), strict=True))
        return (first + second) / 2


def _as_weights(logits: torch.Tensor) -> torch.Tensor:
    return torch.stack((torch.sigmoid(logits), torch.sigmoid(-logits)), dim=-1)


def _each_item(loss: BaseLoss, scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Values of a given loss, one for each item; torch's cross-entropy wants class ids without a channel."""
    if isinstance(loss, nn.CrossEntropyLoss) and target.ndim == scores.ndim and target.shape[1] == 1:
        target = target[:, 0].long()
    values = loss(scores, target)
    if values.ndim == 0 or len(values) != len(scores):
        raise ValueError(
            f"supervised_loss must give a value for each of the {len(scores)} items, got shape {tuple(values.shape)}; "
            'set its reduction to "none"'
        )
    return values.flatten(1).mean(1) if values.ndim > 1 else values


def _check_numbers(step_size: float, consistency_weight: float, dice_weight: float, max_logit: float | None) -> None:
    for name, value in {"step_size": step_size, "consistency_weight": consistency_weight}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number, at least 0, got {value}")
    if not 0 <= dice_weight <= 1:
        raise ValueError(f"dice_weight must be between 0 and 1, got {dice_weight}")
    if max_logit is not None and not (math.isfinite(max_logit) and max_logit > 0):
        raise ValueError(f"max_logit must be a finite number above 0, or None for no limit, got {max_logit}")
