"""A running average of a network's weights that runs as a network of its own: the teacher of MESA.

    teacher <- d_t teacher + (1 - d_t) student          after every optimizer step
    d_t = min(d, (1 + t) / (warmup_steps + t))          so that the first, random weights are forgotten soon

Source of its use: Du, Zhou, Feng, Tan, Zhou, "Sharpness-Aware Training for Free" (NeurIPS 2022), see `TrajectoryLoss`.
torch.optim.swa_utils.AveragedModel averages as well; here are the warm-up, buffers that follow the student, averages in
float32 beside half-precision weights, and a teacher that stays in evaluation.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from medseg.core.optim._checks import check_choice, check_share, check_whole


class EMATeacher(nn.Module):
    """The running average of a network, always in evaluation and without gradients.

    Args:
        model: the student; copied. Under DDP give the network inside: all ranks then average alike.
        decay: d, in [0, 1].
        warmup_steps: length scale of the warm-up, at least 1; with 1 there is none.
        update_buffers: "copy" the student's (running statistics), "average" those that are float, or "keep".

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> student = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.constant_(student.weight, 1.0)
        >>> teacher = EMATeacher(student, decay=0.9)
        >>> _ = nn.init.constant_(student.weight, 2.0)
        >>> teacher.update(student)
        >>> round(teacher(torch.ones(1, 1)).item(), 3)
        1.1
    """

    def __init__(
        self, model: nn.Module, decay: float = 0.999, warmup_steps: int = 1, update_buffers: str = "copy"
    ) -> None:
        super().__init__()
        check_share("decay", decay)
        check_whole("warmup_steps", warmup_steps, 1)
        check_choice("update_buffers", update_buffers, ("copy", "average", "keep"))
        self.decay, self.warmup_steps, self.update_buffers = decay, warmup_steps, update_buffers
        self.network = copy.deepcopy(model).requires_grad_(False)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        for p in self.network.parameters():
            p.data = p.data.to(torch.promote_types(p.dtype, torch.float32))
        self.train(False)

    def train(self, mode: bool = True) -> EMATeacher:
        """Stay in evaluation, whatever the surroundings switch to.

        Args:
            mode: has no effect.
        """
        return super().train(False)

    @torch.no_grad()
    def forward(self, *args: Any) -> Any:
        """What the average network answers.

        Args:
            args: as the student's.
        """
        return self.network(*args)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the student.

        Args:
            model: the student, after an optimizer step.

        Raises:
            ValueError: its parameters are others than at construction.
        """
        mine, theirs = dict(self.network.named_parameters()), dict(model.named_parameters())
        if mine.keys() != theirs.keys():
            odd = sorted(mine.keys() ^ theirs.keys())[:3]
            raise ValueError(f"model must have the parameters it was copied with; these differ: {', '.join(odd)}")
        step = int(self.count)
        decay = min(self.decay, (1 + step) / (self.warmup_steps + step))
        self.count += 1
        targets = [theirs[name].detach().to(p.device, p.dtype) for name, p in mine.items()]
        torch._foreach_lerp_([p.data for p in mine.values()], targets, 1 - decay)
        if self.update_buffers != "keep":
            for buffer, other in zip(self.network.buffers(), model.buffers(), strict=True):
                if self.update_buffers == "average" and buffer.is_floating_point():
                    buffer.lerp_(other.to(buffer), 1 - decay)
                else:
                    buffer.copy_(other)
