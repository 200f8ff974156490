"""Loss of a dual-path network: every branch against its zones, an auxiliary task, and agreement on shared zones.

    loss = l_sup sum over branches of S_b + l_aux A + l_cot w(e) D
    S_b  = sum over the branch's zones and `rest` of weight (1 - Dice),    mean over the labelled items
    A    = mean over branches, items and zones that are there of the auxiliary loss
    D    = mean over items, pairs of branches and zones that both own of the disagreement
    w(e) = exp(-5 (1 - min(1, e / ramp))^2)    with e epochs behind

with Dice = (2 sum p g + 1) / (sum p + sum g + 1). D needs no labels, so unlabelled items may be in a batch. Auxiliary
losses: `sdf` smooth L1 (beta 0.1) of signed distances; `boundary` cross-entropy and Dice of contours one voxel wide;
`gland` Dice of the union of all zones; `reconstruction` mean square error of the image.

Sources: Das, Ghosh, Stober, "PI-RADS v2 Compliant Automated Segmentation of Prostate Zones Using co-training Motivated
Multi-task Dual-Path CNN" (2023); for the Dice term the code of Meyer et al., "Towards Patient-Individual PI-RADS v2
Sector Map" (ISBI 2019), whose text has squares in the denominator and no background (`squared_pred`,
`include_rest=False`). Form and weights of A and D are ours, see `medseg.networks.dual_path`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import combinations

import torch
from monai.losses.dice import DiceLoss
from torch.nn import functional
from torch.nn.modules.loss import _Loss

from medseg.losses._inputs import in_full_precision, make_one_hot, refuse_stray_ids
from medseg.losses.co_training import CoTrainingDisagreementLoss
from medseg.networks.dual_path import (
    BRANCHES,
    ZONES,
    DualPathOutput,
    branch_probabilities,
    check_aux,
    check_branches,
)


class DualPathZoneLoss(_Loss):
    """Loss of `medseg.networks.DualPathZoneNet`; `terms` gives its parts.

    Args:
        branches: names of the zones of each branch, as the network has them.
        zone_weights: weight of every zone in the Dice term, in the order of `zones`; 1 by default, as for `rest`.
        lambda_aux: weight of the auxiliary task.
        lambda_cot: weight of the disagreement; `medseg.engines.CoTrainingTrainer` leaves it out in the first stage.
        ramp_epochs: epochs over which the disagreement is faded in; 0 has it whole from the start.
        zones: names of the zones, in the order of labels 1, 2, ...
        lambda_sup: weight of the Dice terms. With 0 and a disagreement, constant branches are a minimiser.
        include_rest: whether the channel `rest` counts in the Dice term.
        squared_pred: squares in the denominator of Dice.
        aux: auxiliary task, as the network has it.
        disagreement: how branches are compared; the Dice form by default.

    Raises:
        ValueError: an option is out of range, or the groups do not fit the zones or each other.

    Example:
        >>> from medseg.networks import fuse_zones
        >>> logits = [torch.zeros(1, 3, 2, 2), torch.zeros(1, 4, 2, 2)]
        >>> output = DualPathOutput(fuse_zones(logits), logits, [])
        >>> loss = DualPathZoneLoss(aux=None)
        >>> found = loss.terms(output, torch.ones(1, 1, 2, 2))
        >>> round(found["disagreement"].item(), 3)     # 1/3 against 1/4 everywhere
        0.04
    """

    def __init__(
        self,
        branches: Sequence[Sequence[str]] = BRANCHES,
        zone_weights: Sequence[float] | None = None,
        lambda_aux: float = 0.1,
        lambda_cot: float = 1.0,
        ramp_epochs: float = 10.0,
        *,
        zones: Sequence[str] = ZONES,
        lambda_sup: float = 1.0,
        include_rest: bool = True,
        squared_pred: bool = False,
        aux: str | None = "sdf",
        disagreement: CoTrainingDisagreementLoss | None = None,
    ) -> None:
        super().__init__()
        self.zones, self.branches = tuple(zones), check_branches(branches, zones)
        numbers = {"lambda_sup": lambda_sup, "lambda_aux": lambda_aux, "lambda_cot": lambda_cot, "ramp": ramp_epochs}
        for name, number in numbers.items():
            if not (math.isfinite(number) and number >= 0):
                raise ValueError(f"{name} must be a finite number, at least 0, got {number}")
        weights = [1.0] * len(self.zones) if zone_weights is None else [float(w) for w in zone_weights]
        if len(weights) != len(self.zones) or not all(math.isfinite(w) and w >= 0 for w in weights):
            raise ValueError(f"zone_weights must be {len(self.zones)} numbers of at least 0, got {zone_weights}")
        check_aux(aux)
        if lambda_sup == 0 and lambda_cot > 0:
            warnings.warn(
                "lambda_sup is 0: branches that say the same everywhere minimise the disagreement, so they may "
                "collapse; keep labelled items in the batches",
                stacklevel=2,
            )
        self.lambda_sup, self.lambda_aux, self.lambda_cot = float(lambda_sup), float(lambda_aux), float(lambda_cot)
        self.ramp_epochs, self.include_rest, self.aux = float(ramp_epochs), include_rest, aux
        self.weights = dict(zip(self.zones, weights, strict=True))
        self.dice = DiceLoss(softmax=True, squared_pred=squared_pred, smooth_nr=1.0, smooth_dr=1.0, reduction="none")
        self.disagreement = CoTrainingDisagreementLoss() if disagreement is None else disagreement
        self.epoch = 0.0

    def set_epoch(self, epoch: float) -> None:
        """Say how many epochs of the second stage are behind, for the ramp."""
        self.epoch = float(epoch)

    @property
    def ramp(self) -> float:
        """Factor of the disagreement in this epoch, 0.0067 at first and 1 after the ramp."""
        done = 1.0 if self.ramp_epochs == 0 else min(1.0, self.epoch / self.ramp_epochs)
        return math.exp(-5 * (1 - done) ** 2)

    def forward(
        self,
        output: DualPathOutput,
        target: torch.Tensor,
        distance: torch.Tensor | None = None,
        image: torch.Tensor | None = None,
        labelled: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the loss; arguments as in `terms`.

        Returns:
            A scalar.
        """
        return self.weigh(self.terms(output, target, distance, image, labelled))

    def weigh(self, terms: dict[str, torch.Tensor], co_training: bool = True) -> torch.Tensor:
        """Sum of what `terms` gave with the weights of this epoch, with or without the disagreement."""
        total = self.lambda_sup * terms["supervised"] + self.lambda_aux * terms["auxiliary"]
        return total + self.lambda_cot * self.ramp * terms["disagreement"] if co_training else total

    def terms(
        self,
        output: DualPathOutput,
        target: torch.Tensor,
        distance: torch.Tensor | None = None,
        image: torch.Tensor | None = None,
        labelled: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Compute the parts of the loss, unweighted.

        Args:
            output: what the network gave in training.
            target: class ids (B, 1, spatial...), 0 for background, then the zones.
            distance: for "sdf", signed distances (B, zones, spatial...) as `medseg.transforms.ZoneDistanced` gives.
            image: for "reconstruction", the image.
            labelled: which items have a label, (B,) booleans; all by default. Labels of the others are not looked at.

        Returns:
            Scalars "supervised", "auxiliary" and "disagreement", float32 at least.

        Raises:
            ValueError: shapes do not fit, target holds an id without a zone, or what the auxiliary task needs is not
                given.
        """
        logits = [in_full_precision(maps) for maps in output.branch_logits]
        shape = (logits[0].shape[0], 1, *logits[0].shape[2:])
        if tuple(target.shape) != shape:
            raise ValueError(f"target must have shape {shape}, class ids, for this output, got {tuple(target.shape)}")
        keep = torch.ones(shape[0], dtype=torch.bool, device=target.device) if labelled is None else labelled
        ids = target.detach().as_subclass(torch.Tensor)[keep]
        masks, stray = make_one_hot(ids, len(self.zones) + 1) if len(ids) else (ids, torch.zeros(2))
        refuse_stray_ids(stray.tolist(), len(self.zones) + 1)
        with torch.autocast(target.device.type, enabled=False):
            nothing = sum(maps.sum() for maps in logits) * 0
            supervised = self._supervised([maps[keep] for maps in logits], masks[:, 1:]) if len(ids) else nothing
            found = {"supervised": supervised, "disagreement": self._disagreement(logits), "auxiliary": nothing}
            if self.aux is not None and len(ids):
                aux = [in_full_precision(maps)[keep] for maps in output.aux]
                beside = {"distance": distance, "image": image}
                found["auxiliary"] = self._auxiliary(aux, masks[:, 1:], beside, keep) + nothing
        return found

    def _supervised(self, logits: list[torch.Tensor], masks: torch.Tensor) -> torch.Tensor:
        """Weighted sum of the Dice losses of all branches, mean over items."""
        losses = []
        for maps, group in zip(logits, self.branches, strict=True):
            own = masks[:, [self.zones.index(zone) for zone in group]].to(maps)
            target = torch.cat([own, 1 - own.sum(dim=1, keepdim=True)], dim=1)
            each = self.dice(maps, target).flatten(1)
            weights = [self.weights[zone] for zone in group] + [float(self.include_rest)]
            losses.append((each * each.new_tensor(weights)).sum(dim=1).mean())
        return torch.stack(losses).sum()

    def _disagreement(self, logits: list[torch.Tensor]) -> torch.Tensor:
        probabilities = [branch_probabilities(maps) for maps in logits]
        first, second = [], []
        for (a, own), (b, other) in combinations(zip(probabilities, self.branches, strict=True), 2):
            for zone in (zone for zone in own if zone in other):
                first.append(a[:, own.index(zone)])
                second.append(b[:, other.index(zone)])
        return self.disagreement(torch.stack(first, dim=1), torch.stack(second, dim=1))

    def _auxiliary(
        self, aux: list[torch.Tensor], masks: torch.Tensor, beside: dict[str, torch.Tensor | None], keep: torch.Tensor
    ) -> torch.Tensor:
        if len(aux) != len(self.branches):
            raise ValueError(
                f"output.aux must hold {len(self.branches)} maps for aux={self.aux!r}, got {len(aux)}; build network "
                "and loss with the same aux"
            )
        needed = {"sdf": "distance", "reconstruction": "image"}.get(self.aux or "")
        given = None if needed is None else beside[needed]
        if needed is not None and given is None:
            hint = "; add medseg.transforms.ZoneDistanced to the transforms" if needed == "distance" else ""
            raise ValueError(f"{needed} is needed for aux={self.aux!r}, got None{hint}")
        extra = None if given is None else given.as_subclass(torch.Tensor)[keep]
        losses = []
        for maps, group in zip(aux, self.branches, strict=True):
            own = [self.zones.index(zone) for zone in group]
            losses.append(_AUXILIARY[self.aux or ""](maps, masks, own, extra))
        return torch.stack(losses).mean()


def _sdf(maps: torch.Tensor, masks: torch.Tensor, own: list[int], distance: torch.Tensor | None) -> torch.Tensor:
    """Smooth L1 of the zones that are there: one that lies outside of a crop says nothing about its distance."""
    assert distance is not None
    each = functional.smooth_l1_loss(maps, distance[:, own].to(maps), beta=0.1, reduction="none").flatten(2).mean(-1)
    there = masks[:, own].flatten(2).any(-1)
    return (each * there).sum() / there.sum().clamp_min(1)


def _boundary(maps: torch.Tensor, masks: torch.Tensor, own: list[int], _: torch.Tensor | None) -> torch.Tensor:
    zones = masks[:, own].to(maps)
    pool = functional.max_pool2d if maps.ndim == 4 else functional.max_pool3d
    contour = zones - (1 - pool(1 - zones, 3, stride=1, padding=1)).clamp_min(0)
    dice = DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)(maps, contour)
    return functional.binary_cross_entropy_with_logits(maps, contour) + dice


def _gland(maps: torch.Tensor, masks: torch.Tensor, own: list[int], _: torch.Tensor | None) -> torch.Tensor:
    gland = masks.any(dim=1, keepdim=True).to(maps)
    return DiceLoss(sigmoid=True, smooth_nr=1.0, smooth_dr=1.0)(maps, gland)


def _reconstruction(
    maps: torch.Tensor, masks: torch.Tensor, own: list[int], image: torch.Tensor | None
) -> torch.Tensor:
    assert image is not None
    return functional.mse_loss(maps, image.to(maps))


_AUXILIARY = {"sdf": _sdf, "boundary": _boundary, "gland": _gland, "reconstruction": _reconstruction}
