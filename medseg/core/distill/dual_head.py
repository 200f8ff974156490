"""Distillation through a second head: the teacher's logits and the labels do not pull at the same last layer.

A loss on the teacher's logits and a loss on labels agree in the body of a network, but quarrel in its last, linear
layer. So the student gets a second head on the same features for the teacher alone, which is thrown away afterwards:

    L = loss(main head, labels) + weight * tau^2 * mean over voxels and classes of KL(p || q)
    p = sigmoid(teacher/tau),   q = sigmoid(second head/tau),   KL of two yes-or-no distributions for every class

    where the gradients of both at the shared features oppose each other (negative inner product, for each item), the
    second one loses its component along the first

Source: Yang et al., "Dual-Head Knowledge Distillation: Enhancing Logits Utilization with an Auxiliary Head" (2024).
Differs in that gradients are compared at the features rather than for all weights, which needs no second backward pass,
and in the factor tau^2, which keeps the size of the gradient whatever tau. For large tau the term is the mean of
(teacher - second head)^2/8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


def binary_distillation_loss(student: torch.Tensor, teacher: torch.Tensor, tau: float = 2.0) -> torch.Tensor:
    """Divergence of yes-or-no distributions, tau^2 KL(sigmoid(teacher/tau) || sigmoid(student/tau)), mean over all.

    Computed in float32 (float64 stays). The teacher gets no gradient.

    Args:
        student: logits, any shape.
        teacher: logits of the same shape.
        tau: temperature, above 0.

    Returns:
        A scalar.

    Raises:
        ValueError: shapes differ, or tau is not above 0.

    Example:
        >>> z = torch.tensor([[1.0, -2.0]])
        >>> binary_distillation_loss(z, z), binary_distillation_loss(z, z + 1, tau=100.0)       # 1/8
        (tensor(0.), tensor(0.1250))
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"student and teacher must have the same shape, got {(*student.shape,)} and {(*teacher.shape,)}"
        )
    _check_above_0(tau=tau)
    with torch.autocast(student.device.type, enabled=False):
        z, t = (x if x.dtype == torch.float64 else x.float() for x in (student, teacher.detach()))
        z, t = z / tau, t / tau
        p = torch.sigmoid(t)
        yes = p * (functional.logsigmoid(t) - functional.logsigmoid(z))
        no = (1 - p) * (functional.logsigmoid(-t) - functional.logsigmoid(-z))
        return tau**2 * (yes + no).mean()


class DualHeadDistillation(nn.Module):
    """A student with a second head for its teacher; in evaluation it is the student.

    In training, `forward` gives the student's output and leaves the weighted term of the second head in
    `distillation_loss`, which `DistilledLoss` adds. `student` is the product; its weights are the part of the state
    dict under `student.`, and the teacher is not in it.

    Args:
        student: the network to train.
        teacher: gives logits (B, out_channels, spatial...) for the same input; frozen, kept in evaluation.
        layer: name of the student's submodule whose output the last layer reads, as `named_modules` has it.
        in_channels: channels of that output.
        out_channels: channels of the teacher's logits.
        spatial_dims: 2 or 3.
        weight: of the term.
        tau: temperature.
        hidden_channels: width of a hidden layer of the second head; 0 makes it linear.
        align: whether the term's gradient gives way where it opposes the other.

    Raises:
        ValueError: the layer does not exist, or an argument is out of range.

    Example:
        >>> def make(width):
        ...     return nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 2, 1))
        >>> network = DualHeadDistillation(make(4), make(16), "1", 4, 2, spatial_dims=2)
        >>> network(torch.zeros(1, 1, 8, 8)).shape, network.distillation_loss.ndim
        (torch.Size([1, 2, 8, 8]), 0)
    """

    teacher: nn.Module

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        layer: str,
        in_channels: int,
        out_channels: int,
        *,
        spatial_dims: int = 3,
        weight: float = 1.0,
        tau: float = 2.0,
        hidden_channels: int = 0,
        align: bool = True,
    ) -> None:
        super().__init__()
        _check_above_0(weight=weight, tau=tau)
        if layer not in dict(student.named_modules()):
            known = ", ".join(name for name, _ in student.named_modules() if name)
            raise ValueError(f"layer must be a submodule of student, got {layer!r}; there are: {known}")
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}")
        self.student, self.layer = student, layer
        conv = nn.Conv2d if spatial_dims == 2 else nn.Conv3d
        hidden = [conv(in_channels, hidden_channels, 1), nn.LeakyReLU()] if hidden_channels else []
        self.head = nn.Sequential(*hidden, conv(hidden_channels or in_channels, out_channels, 1))
        self.weight, self.tau, self.align = float(weight), float(tau), align
        self.distillation_loss: torch.Tensor | None = None
        # Not a submodule: it is neither trained nor saved.
        object.__setattr__(self, "teacher", teacher.eval().requires_grad_(False))

    def forward(self, x: torch.Tensor) -> Any:
        """Give the student's output; in training, look at its features and ask the teacher as well."""
        self.distillation_loss = None
        if not self.training:
            return self.student(x)
        seen: list[torch.Tensor] = []

        def fork(_: nn.Module, __: Any, features: torch.Tensor) -> torch.Tensor:
            main, second = _Fork.apply(features, self.align)  # type: ignore[misc]
            seen.append(second)
            return main

        handle = self.student.get_submodule(self.layer).register_forward_hook(fork)
        try:
            output = self.student(x)
        finally:
            handle.remove()
        with torch.no_grad():
            expected = self.teacher(x)
        self.distillation_loss = self.weight * self._compare(self.head(seen[-1]), expected)
        return output

    def _compare(self, logits: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
        if logits.shape[2:] != expected.shape[2:]:
            mode = "bilinear" if logits.ndim == 4 else "trilinear"
            logits = functional.interpolate(logits, expected.shape[2:], mode=mode, align_corners=False)
        return binary_distillation_loss(logits, expected, self.tau)

    def _apply(self, fn: Callable, recurse: bool = True) -> DualHeadDistillation:
        self.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)


class DistilledLoss(nn.Module):
    """A loss on labels and the term that a network's second head has left.

    Args:
        base: loss of (input, target); in a bundle a nested `_target_`.
        network: the `DualHeadDistillation` in training; in a bundle "@network".

    Raises:
        TypeError: the network is another one.

    Example:
        >>> network = DualHeadDistillation(nn.Conv2d(1, 1, 1), nn.Conv2d(1, 1, 1), "", 1, 1, spatial_dims=2)
        >>> loss = DistilledLoss(nn.BCEWithLogitsLoss(), network)
        >>> loss(network(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4)).backward()
    """

    network: DualHeadDistillation

    def __init__(self, base: Callable[[Any, torch.Tensor], torch.Tensor], network: DualHeadDistillation) -> None:
        super().__init__()
        if not isinstance(network, DualHeadDistillation):
            raise TypeError(f"network must be a DualHeadDistillation, got {type(network).__name__}")
        self.base = base
        # Not a submodule: its weights belong to the network.
        object.__setattr__(self, "network", network)

    def forward(self, input: Any, target: torch.Tensor) -> torch.Tensor:
        """Compute the loss on labels, and in training add the term."""
        value, term = self.base(input, target), self.network.distillation_loss
        return value if term is None else value + term


class _Fork(torch.autograd.Function):
    """Two copies of features; backwards their gradients meet again, the second without what opposes the first."""

    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, align: bool) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.align = align
        return features.view_as(features), features.view_as(features)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, main: torch.Tensor, second: torch.Tensor) -> tuple[torch.Tensor, None]:
        if ctx.align:
            a, b = main.flatten(1).float(), second.flatten(1).float()
            share = (a * b).sum(1) / (a * a).sum(1).clamp(min=torch.finfo(torch.float32).tiny)
            share = share.clamp(max=0).to(second.dtype).view(-1, *(1,) * (second.ndim - 1))
            second = second - share * main
        return main + second, None


def _check_above_0(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a finite number above 0, got {value}")
