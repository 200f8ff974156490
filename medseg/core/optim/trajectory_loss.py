"""Trajectory loss: stay near what a running average of the weights says, which keeps training in flat regions.

    L = lambda T^2 mean over voxels of KL( softmax(z_teacher / T) || softmax(z / T) )

or, without softmax, of binary divergences summed over channels.

MESA takes the teacher from an exponential average of the weights (`EMATeacher`), on the same augmented patch; one more
pass without gradients is its price. SAF takes the student's own logits of some epochs ago, which patches with other
crops and flips do not have; it is not offered. For large T the gradient goes to lambda (z - z_teacher) / C, centred
over the C classes. Use it on the finest output only, beside the task's loss, from some epochs on (`start`).

Source: Du, Zhou, Feng, Tan, Zhou, "Sharpness-Aware Training for Free" (NeurIPS 2022). Differs from the paper's
formula: T^2, as in the published code, so that the size of the gradient does not depend on T. Differs from that code:
log-softmax, which does not underflow.
"""

from __future__ import annotations

import torch
from torch.nn import functional
from torch.nn.modules.loss import _Loss

from medseg.core.optim._checks import check_choice, check_least, check_whole


class TrajectoryLoss(_Loss):
    """Divergence of the student's voxel probabilities from the teacher's, at a high temperature.

    Args:
        lambda_: weight of the loss; the source takes 0.8 for MESA.
        temperature: T, above 0.
        start: number of calls in training that give 0 before it sets in: steps, as the loss is called once a step.
        softmax: classes exclude each other; otherwise every channel is a sigmoid of its own.
        reduction: "mean" over items and voxels, "sum", or "none" for (B, spatial...).

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> student = torch.tensor([[[2.0], [0.0]]])
        >>> loss = TrajectoryLoss(lambda_=1.0, temperature=5.0)
        >>> round(loss(student, student).item(), 6), round(loss(student, -student).item(), 3)
        (0.0, 1.974)
    """

    def __init__(
        self,
        lambda_: float = 0.8,
        temperature: float = 5.0,
        start: int = 0,
        softmax: bool = True,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        check_choice("reduction", reduction, ("mean", "sum", "none"))
        check_least("lambda_", lambda_)
        check_whole("start", start, 0)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        self.lambda_, self.temperature, self.start, self.softmax = lambda_, temperature, start, softmax
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss, in float32 or better.

        Args:
            input: the student's logits (B, C, spatial...).
            target: the teacher's, of the same shape; it gets no gradient.

        Raises:
            ValueError: the shapes differ.
        """
        if input.shape != target.shape or input.ndim < 2:
            shapes = f"{tuple(input.shape)} and {tuple(target.shape)}"
            raise ValueError(f"input and target must be logits (B, C, spatial...) of one shape, got {shapes}")
        dtype = torch.promote_types(input.dtype, torch.float32)
        student, teacher = (z.to(dtype) / self.temperature for z in (input, target.detach()))
        divergence = _divergence(student, teacher, softmax=self.softmax)
        waits = self.training and int(self.count) < self.start
        if self.training:
            self.count += 1
        each = divergence * (0.0 if waits else self.lambda_ * self.temperature**2)
        return each if self.reduction == "none" else getattr(each, self.reduction)()


def _divergence(student: torch.Tensor, teacher: torch.Tensor, *, softmax: bool) -> torch.Tensor:
    """KL(teacher || student) of each voxel, (B, spatial...)."""
    if softmax:
        ours, theirs = functional.log_softmax(student, dim=1), functional.log_softmax(teacher, dim=1)
        return (theirs.exp() * (theirs - ours)).sum(dim=1)
    there = torch.sigmoid(teacher) * (functional.logsigmoid(teacher) - functional.logsigmoid(student))
    absent = torch.sigmoid(-teacher) * (functional.logsigmoid(-teacher) - functional.logsigmoid(-student))
    return (there + absent).sum(dim=1)
