"""Say before a case runs how it is mapped back and about how much memory that takes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import nn

from medseg.engines.ways_back import Way

# Part of the free memory a plan may take; the rest is for the operating system and fragmentation.
_HEADROOM = 0.8


class InsufficientMemoryError(MemoryError):
    """A volume needs more memory than there is; raised before the network runs."""


@dataclass(frozen=True)
class MemoryPlan:
    """How a case is mapped back.

    Attributes:
        way: see `medseg.engines.ways_back`.
        bytes: estimate of what the run takes on top of what the process holds.
        available: bytes that may be taken.
    """

    way: Way
    bytes: int
    available: int


@dataclass(frozen=True)
class CaseSize:
    """What decides how much memory a case takes; sizes in voxels and bytes.

    Attributes:
        input_voxels: voxels of the input grid.
        network_shape: spatial shape on the network's grid.
        window: window shape.
        axis: axis along which slabs are cut.
        batch_size: windows in one pass.
        channels: input channels.
        num_classes: output channels.
        activations: bytes that the network holds for one window at its peak.
        preparing: bytes that the preprocessing, still to come, holds at its peak; over before the network runs.
    """

    input_voxels: int
    network_shape: tuple[int, ...]
    window: tuple[int, ...]
    axis: int
    batch_size: int
    channels: int
    num_classes: int
    activations: int = 0
    preparing: int = 0

    def needed(self, way: Way, *, keep: bool = False) -> int:
        """Estimate of the bytes one way takes."""
        network = torch.Size(self.network_shape).numel()
        depth = max(self.network_shape[self.axis], self.window[self.axis])
        slab = max(network, torch.Size(self.window).numel()) * self.window[self.axis] / depth
        window = torch.Size(self.window).numel()
        # Window, its answer and the copy that the back end hands over.
        running = self.batch_size * (4 * window * (self.channels + 2 * self.num_classes) + self.activations)
        accumulator = 4 * slab * (self.num_classes + 1) + 4 * self.channels * network + running
        kept = 4 * self.num_classes * self.input_voxels if keep else 0
        # Resampling by MONAI goes in float64, source and target at once.
        resampling = 8 * (network + 2 * self.input_voxels)
        fraction = self.window[self.axis] / depth
        extra = {
            "streamed": self.input_voxels * (1 + 24 * fraction),
            "low": network + resampling,
            "classwise": 4 * self.num_classes * network + resampling + 9 * self.input_voxels,
            "whole": 4 * self.num_classes * network + 12 * self.num_classes * (network + self.input_voxels),
        }
        return max(int(accumulator + extra[way] + kept), self.preparing)


def choose_plan(size: CaseSize, ways: Sequence[Way], available: int, *, keep: bool = False) -> MemoryPlan:
    """Take the first way that fits.

    Args:
        size: the case.
        ways: in order of preference.
        available: bytes that may be taken.
        keep: class probabilities are kept as well.

    Raises:
        InsufficientMemoryError: none fits.
    """
    for way in ways:
        needed = size.needed(way, keep=keep)
        if needed <= available:
            return MemoryPlan(way, needed, available)
    raise InsufficientMemoryError(_refusal(size.needed(ways[-1], keep=keep), available, ways[-1], keep))


def available_memory(max_memory: int | None) -> int:
    """Bytes a run may still take: of the budget of the whole process if there is one, else most of what is free."""
    if max_memory is None:
        return int(psutil.virtual_memory().available * _HEADROOM)
    return max_memory - psutil.Process().memory_info().rss


def resampling_bytes(channels: int, input_voxels: int, network_voxels: int) -> int:
    """Peak of bringing a case to the network's grid, on top of the case itself.

    MONAI copies the image to float64 and holds the sampling grid in float64, 3 coordinates in two layouts, beside
    the result.
    """
    return 8 * channels * input_voxels + 56 * network_voxels


def activation_bytes(network: nn.Module, window_shape: Sequence[int]) -> int:
    """Estimate what a network holds at its peak for one window, without computing anything.

    The largest three answers of its layers together: what a layer reads, what it writes, and a skip connection.

    Args:
        network: the network.
        window_shape: (C, window...).

    Returns:
        Bytes; 0 where the network does not run on shapes alone.
    """
    sizes: list[int] = []

    def record(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, torch.Tensor):
            sizes.append(output.numel() * output.element_size())

    try:
        shapes = copy.deepcopy(network).to("meta")
        leaves = [m for m in shapes.modules() if not any(True for _ in m.children())]
        hooks = [m.register_forward_hook(record) for m in leaves]
        with torch.no_grad():
            shapes(torch.empty((1, *window_shape), device="meta"))
        for hook in hooks:
            hook.remove()
    except (RuntimeError, NotImplementedError, TypeError, ValueError):
        return 0
    return sum(sorted(sizes)[-3:])


def _refusal(needed: int, available: int, way: Way, keep: bool) -> str:
    if keep:
        advice = "leave out --save-probabilities"
    elif way != "low":
        advice = "use --memory low"
    else:
        advice = "use a smaller --roi-size, crop or downsample the volume"
    return (
        f"needs about {needed / 1e9:.2f} GB of memory, {max(available, 0) / 1e9:.2f} GB may be used; {advice}, or "
        "allow more with --max-memory where there is more"
    )
