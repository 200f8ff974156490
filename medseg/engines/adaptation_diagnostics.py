"""Watch an adaptation without labels: what is logged for each epoch, and when to distrust it.

    soft ratio: the share of a class by its probabilities;   hard ratio: by the class chosen in each voxel
    alarm for a class, over the images q expects it in:  |mean hard - mean soft| > 0.5 mean q

"Every voxel has the expected probability" meets the expected ratio exactly and finds nothing: the soft ratio is right,
the hard one is 0. That is what the alarm is for. A ratio that agrees proves nothing either: the voxels may lie
elsewhere.

Source: Bateson, Kervadec, Dolz, Lombaert, Ben Ayed, "Source-Free Domain Adaptation for Image Segmentation" (Medical
Image Analysis, 2022) for the terms; the alarm is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from medseg.losses import ClassRatioKLLoss, SourceFreeAdaptationLoss, WeightedEntropyLoss

ALARM = 0.5


@dataclass(frozen=True)
class AdaptationDiagnostics:
    """What can be said of a network on unlabelled images.

    Attributes:
        images: number of images (or cases, where patches are counted together).
        loss: mean of the loss; None where none was computed.
        entropy: mean entropy of the voxels in nats, without class weights.
        kl: mean divergence between estimated and expected ratios.
        expected_ratio: mean expected share of each class.
        soft_ratio: mean share of each class by its probabilities.
        hard_ratio: mean share of each class by the class chosen in each voxel.
        contradicted: share of the images that lack a class the prior expects, or show one it excludes.
        alarms: classes whose hard and soft ratio part; while there are any, do not trust the result.
    """

    images: int
    loss: float | None
    entropy: float
    kl: float
    expected_ratio: tuple[float, ...]
    soft_ratio: tuple[float, ...]
    hard_ratio: tuple[float, ...]
    contradicted: float
    alarms: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> AdaptationDiagnostics:
        """Read what `to_dict` gave."""
        values: dict[str, Any] = {f.name: content[f.name] for f in fields(cls)}
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values)


class DiagnosticsMeter:
    """Collect what one epoch shows, batch by batch.

    Args:
        loss: the loss in use; its flags and estimator of ratios apply. Others than the losses of this package are
            taken to work on logits for a softmax.

    Example:
        >>> meter = DiagnosticsMeter()
        >>> meter.update(torch.zeros(1, 2, 4, 4), torch.tensor([[0.5, 0.5]]))
        >>> meter.compute().hard_ratio, meter.compute().alarms      # ties go to the first class
        ((1.0, 0.0), (1,))
    """

    def __init__(self, loss: Callable[..., torch.Tensor] | None = None) -> None:
        self.prior_loss = prior_loss_of(loss)
        flags = {name: getattr(self.prior_loss, name) for name in ("softmax", "sigmoid", "other_act")}
        self.entropy_loss = WeightedEntropyLoss(**flags, reduction="none")
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self._losses: list[float] = []
        self._rows: dict[Any, list[torch.Tensor]] = {}

    @torch.no_grad()
    def update(
        self,
        logits: torch.Tensor,
        ratio: torch.Tensor,
        mask: torch.Tensor | None = None,
        *,
        loss: torch.Tensor | None = None,
        cases: Sequence[str] | None = None,
    ) -> None:
        """Take in one batch.

        Args:
            logits: what the network gave, (B, C, spatial...).
            ratio: the expected ratios, (B, C).
            mask: the voxels that count, (B, 1, spatial...).
            loss: the loss of the batch.
            cases: the case of each item, so that patches of one case count as one image.
        """
        logits = logits.detach()
        soft = self.prior_loss.estimate(logits, mask)
        entropy = self.entropy_loss(logits, mask)
        rows = torch.cat((ratio.to(soft), soft, self._hard(logits, mask), entropy[:, None]), dim=1).double().cpu()
        first = len(self._rows)
        for number, row in enumerate(rows):
            self._rows.setdefault(cases[number] if cases is not None else first + number, []).append(row)
        if loss is not None:
            self._losses.append(float(loss.detach()))

    def compute(self) -> AdaptationDiagnostics:
        """The numbers so far.

        Raises:
            ValueError: nothing was collected.
        """
        if not self._rows:
            raise ValueError("there is nothing to compute from; update with at least one batch")
        rows = torch.stack([torch.stack(found).mean(0) for found in self._rows.values()])
        channels = (rows.shape[1] - 1) // 3
        expected, soft, hard = rows[:, :-1].split(channels, dim=1)
        classes = range(0 if self.prior_loss.is_channelwise(channels) else 1, channels)
        wrong = ((expected > 0) != (hard > 0))[:, classes.start :].any(1)
        return AdaptationDiagnostics(
            images=len(rows),
            loss=sum(self._losses) / len(self._losses) if self._losses else None,
            entropy=float(rows[:, -1].mean()),
            kl=float(self._divergence(soft, expected)),
            expected_ratio=tuple(expected.mean(0).tolist()),
            soft_ratio=tuple(soft.mean(0).tolist()),
            hard_ratio=tuple(hard.mean(0).tolist()),
            contradicted=float(wrong.double().mean()),
            alarms=tuple(c for c in classes if _part(expected[:, c], soft[:, c], hard[:, c])),
        )

    def _hard(self, logits: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Share of each class by the class chosen in each voxel, (B, C)."""
        channels = logits.shape[1]
        if self.prior_loss.is_channelwise(channels):
            threshold = 0.0 if self.prior_loss.sigmoid else 0.5
            chosen = (logits > threshold).float()
        else:
            ids = logits.argmax(1, keepdim=True)
            chosen = torch.cat([ids == c for c in range(channels)], dim=1).float()
        if mask is None:
            return chosen.flatten(2).mean(-1)
        weight = mask.to(chosen)
        return (chosen * weight).flatten(2).sum(-1) / weight.flatten(2).sum(-1).clamp(min=1e-6)

    def _divergence(self, soft: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
        """KL of ratios that are already estimated: maps of one voxel with these probabilities."""
        plain = ClassRatioKLLoss(self.prior_loss.direction, eps=self.prior_loss.eps, softmax=False)
        if self.prior_loss.is_channelwise(soft.shape[1]):
            soft, expected = (torch.stack((1 - r, r), dim=2).flatten(0, 1) for r in (soft, expected))
            return plain(soft[:, :, None, None], expected) * (len(soft) / len(self._rows))
        return plain(soft[:, :, None, None], expected)


def prior_loss_of(loss: Callable[..., torch.Tensor] | None) -> ClassRatioKLLoss:
    """The loss on ratios inside a loss, else one as it comes."""
    if isinstance(loss, SourceFreeAdaptationLoss):
        return loss.prior
    return loss if isinstance(loss, ClassRatioKLLoss) else ClassRatioKLLoss()


def _part(expected: torch.Tensor, soft: torch.Tensor, hard: torch.Tensor) -> bool:
    """Whether the hard ratio of a class is far from its soft one where it is expected."""
    there = expected > 0
    return bool(there.any()) and float((hard[there].mean() - soft[there].mean()).abs()) > ALARM * float(
        expected[there].mean()
    )
