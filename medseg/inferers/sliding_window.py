"""Sliding windows whose blended answer leaves in slabs, so that it never exists as a whole.

    answer(v) = sum over windows w that cover v of  g_w(v) f(x_w)(v)  /  sum over the same windows of  g_w(v)

with the network f and the blending weight g, constant or a Gaussian around the window's centre. Windows are visited row
by row along one axis. No later row touches the slices below its own start, so these are finished: they are divided by
their weights and handed out, and their memory is used again. The accumulator therefore has the depth of one window
instead of the depth of the volume, for every class.

Unless told otherwise, windows lie where MONAI's `SlidingWindowInferer` puts them and weigh what they weigh there, so
both give the same answer to rounding. The Gaussian blend is that of F. Isensee et al., "nnU-Net: a self-configuring
method for deep learning-based biomedical image segmentation", 2021.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.data.utils import compute_importance_map
from monai.inferers import Inferer, SlidingWindowInferer
from monai.utils import ensure_tuple_rep, fall_back_tuple

# Logit of every class but the first where no window ran; the first has 0. Softmax makes it certain background.
_CERTAINLY_NOT = -30.0


@dataclass(frozen=True)
class Slab:
    """A finished part of a network's answer.

    Attributes:
        start: first slice along the slab axis, in voxels of the input.
        stop: slice after the last.
        logits: shape (K, spatial...), `stop - start` slices along the slab axis, float32. A view into memory that is
            used again as soon as the next slab is asked for; the receiver may overwrite it.
    """

    start: int
    stop: int
    logits: torch.Tensor


class StreamingSlidingWindowInferer(Inferer):
    """Sliding windows with a bounded accumulator, in 2D and 3D.

    Called like any MONAI inferer, it returns the whole answer; `slabs` hands it out in parts. The first seven arguments
    mean what they mean in MONAI's `SlidingWindowInferer`.

    Args:
        roi_size: window size in voxels; entries that are not positive stand for the whole extent.
        sw_batch_size: windows in one pass.
        overlap: overlap of neighbouring windows in [0, 1), one number or one an axis.
        mode: `constant` or `gaussian` blending.
        sigma_scale: standard deviation of the Gaussian in window sizes.
        padding_mode: how volumes smaller than a window are padded: `constant`, `reflect`, `replicate` or `circular`.
        cval: value of constant padding.
        skip_empty: do not run windows in which every voxel of every channel has the lowest value that this channel has
            in the whole volume: air that was clipped, masked or stored as one constant. Voxels that no window covers
            otherwise are background (class 0) with certainty. The first window always runs.
        convention: `monai` moves windows by whole steps and the last one back to the border, and its Gaussian never
            falls below 0.001 of its peak; `nnunet` spreads as many windows as needed evenly, and its Gaussian, centred
            on voxel n // 2, falls off freely.

    Raises:
        ValueError: an overlap outside [0, 1), a batch size below 1, or an unknown convention.

    Example:
        >>> inferer = StreamingSlidingWindowInferer(roi_size=[4, 4], overlap=0.5)
        >>> x = torch.arange(64.0).reshape(1, 1, 8, 8)
        >>> [(s.start, s.stop) for s in inferer.slabs(x, torch.nn.Identity(), axis=0)]
        [(0, 2), (2, 4), (4, 8)]
        >>> torch.allclose(inferer(x, torch.nn.Identity()), x)
        True
    """

    # Answers of K classes that the network gives side by side in its channels.
    sets = 1

    def __init__(
        self,
        roi_size: Sequence[int] | int,
        sw_batch_size: int = 1,
        overlap: Sequence[float] | float = 0.25,
        mode: Literal["constant", "gaussian"] = "constant",
        sigma_scale: Sequence[float] | float = 0.125,
        padding_mode: str = "constant",
        cval: float = 0.0,
        skip_empty: bool = False,
        convention: Literal["monai", "nnunet"] = "monai",
    ) -> None:
        super().__init__()
        if convention not in ("monai", "nnunet"):
            raise ValueError(f"convention must be monai or nnunet, got {convention!r}")
        overlaps = [overlap] if isinstance(overlap, (int, float)) else list(overlap)
        if not all(0 <= o < 1 for o in overlaps):
            raise ValueError(f"overlap must be in [0, 1), got {overlap}")
        if sw_batch_size < 1:
            raise ValueError(f"sw_batch_size must be at least 1, got {sw_batch_size}")
        self.roi_size = roi_size
        self.sw_batch_size = sw_batch_size
        self.overlap = overlap
        self.mode = mode
        self.sigma_scale = sigma_scale
        self.padding_mode = padding_mode
        self.cval = cval
        self.skip_empty = skip_empty
        self.convention = convention

    @classmethod
    def from_monai(cls, inferer: SlidingWindowInferer) -> StreamingSlidingWindowInferer:
        """Take over the windows and the blending of a MONAI inferer."""
        return cls(
            roi_size=inferer.roi_size,
            sw_batch_size=inferer.sw_batch_size,
            overlap=inferer.overlap,
            mode="gaussian" if str(inferer.mode) == "gaussian" else "constant",
            sigma_scale=inferer.sigma_scale,
            padding_mode=str(inferer.padding_mode),
            cval=float(inferer.cval),
        )

    def __call__(
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Infer the whole answer at once.

        Args:
            inputs: shape (B, C, spatial...).
            network: takes (windows, C, window...) and returns (windows, K, window...).
            *args: handed to the network.
            **kwargs: handed to the network.

        Returns:
            Logits, shape (B, K, spatial...), float32.
        """

        def call(windows: torch.Tensor) -> torch.Tensor:
            return network(windows, *args, **kwargs)

        items = []
        for item in inputs.split(1):
            items.append(torch.cat([s.logits.clone() for s in self.slabs(item, call, axis=0)], dim=1))
        return torch.stack(items)

    def slabs(
        self,
        inputs: torch.Tensor,
        network: Callable[[torch.Tensor], torch.Tensor],
        *,
        axis: int | None = None,
        on_windows: Callable[[int, int], None] | None = None,
    ) -> Iterator[Slab]:
        """Infer one volume and hand out finished slabs in order.

        Args:
            inputs: shape (1, C, spatial...).
            network: takes (windows, C, window...) and returns (windows, K, window...).
            axis: spatial axis along which slabs are cut, by default that of `slab_axis`.
            on_windows: told how many windows are done and how many there are, after each pass.

        Yields:
            Slabs from the first slice to the last, without gaps; see `Slab` for how long one is valid.

        Raises:
            ValueError: more than one volume, or an answer whose shape is not that of the window.
        """
        if inputs.shape[0] != 1:
            raise ValueError(f"inputs must hold one volume, shape (1, C, spatial...), got {tuple(inputs.shape)}")
        image = inputs.as_tensor() if isinstance(inputs, MetaTensor) else inputs
        size = tuple(image.shape[2:])
        axis = self.slab_axis(size) if axis is None else axis
        roi = self.window(size)
        before = [max(r - n, 0) // 2 for r, n in zip(roi, size, strict=True)]
        padded, content = self._pad(image, roi, before)
        starts = self.window_starts(size)
        weight = self._weigh(roi, image.device)
        rows = _Rows(padded, content, starts, roi, axis, self.sw_batch_size, on_windows, self.sets)
        for start, stop, logits in rows.run(network, weight):
            for dim, (n, lead) in enumerate(zip(size, before, strict=True)):
                if dim != axis:
                    logits = logits.narrow(dim + 1, lead, n)
            lead, last = before[axis], before[axis] + size[axis]
            first, end = max(start, lead), min(stop, last)
            if first < end:
                yield Slab(first - lead, end - lead, logits.narrow(axis + 1, first - start, end - first))

    def window(self, size: Sequence[int]) -> tuple[int, ...]:
        """Window size for a volume: `roi_size` with the extents filled in.

        Raises:
            ValueError: `roi_size` has another number of axes than the volume.
        """
        roi = self.roi_size
        if not isinstance(roi, int) and len(roi) != len(size):
            raise ValueError(f"roi_size {list(roi)} has {len(roi)} axes, the volume {len(size)}: {tuple(size)}")
        return tuple(int(r) for r in fall_back_tuple(roi, size))

    def window_starts(self, size: Sequence[int]) -> list[list[int]]:
        """First voxel of the windows along each axis, in voxels of the padded volume.

        Args:
            size: spatial shape of the volume.

        Returns:
            One ascending list an axis; the last window ends with the volume, so its overlap may be larger.
        """
        overlaps = ensure_tuple_rep(self.overlap, len(size))
        starts = []
        for n, r, overlap in zip(size, self.window(size), overlaps, strict=True):
            last, step = max(n - r, 0), max(int(r * (1 - overlap)), 1)
            if self.convention == "nnunet":
                intervals = math.ceil(last / max(r * (1 - overlap), 1))
                starts.append([round(last * i / intervals) for i in range(intervals)] + [last])
            else:
                starts.append([*range(0, last, step), last])
        return starts

    def slab_axis(self, size: Sequence[int]) -> int:
        """Axis along which the accumulator is smallest: the one with most windows' depths in the volume."""
        depths = [n / r for n, r in zip(size, self.window(size), strict=True)]
        return depths.index(max(depths))

    def _weigh(self, roi: tuple[int, ...], device: torch.device) -> torch.Tensor:
        """Blending weight of a window."""
        if self.convention == "monai" or self.mode == "constant":
            return compute_importance_map(roi, mode=self.mode, sigma_scale=self.sigma_scale, device=device)
        weight = torch.ones((), device=device)
        for n, scale in zip(roi, ensure_tuple_rep(self.sigma_scale, len(roi)), strict=True):
            offset = torch.arange(n, device=device) - n // 2
            weight = weight[..., None] * torch.exp(-0.5 * (offset / (scale * n)) ** 2)
        # The smallest number of half precision, in which nnU-Net keeps 10 times the weight.
        return weight.clamp(min=6e-9)

    def _pad(
        self, image: torch.Tensor, roi: Sequence[int], before: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Pad to a window at least; where empty windows are skipped, say as well where there is content."""
        size = image.shape[2:]
        margins: list[int] = []
        for n, r, lead in reversed(list(zip(size, roi, before, strict=True))):
            margins += [lead, max(r - n, 0) - lead]
        content = None
        if self.skip_empty:
            lowest = image.amin(dim=tuple(range(2, image.dim())), keepdim=True)
            content = F.pad((image > lowest).any(dim=1)[0], margins)
        if any(margins):
            value = self.cval if self.padding_mode == "constant" else None
            image = F.pad(image, margins, mode=self.padding_mode, value=value)
        return image, content


class _Rows:
    """Windows of one padded volume, row by row along the slab axis."""

    def __init__(
        self,
        image: torch.Tensor,
        content: torch.Tensor | None,
        starts: list[list[int]],
        roi: tuple[int, ...],
        axis: int,
        batch_size: int,
        on_windows: Callable[[int, int], None] | None,
        sets: int,
    ) -> None:
        self.image, self.content, self.starts, self.roi, self.axis = image, content, starts, roi, axis
        self.batch_size, self.sets = batch_size, sets
        self.on_windows = on_windows
        self.total = torch.Size(len(s) for s in starts).numel()
        self.done = 0
        self.sums: torch.Tensor | None = None

    def run(
        self, network: Callable[[torch.Tensor], torch.Tensor], weight: torch.Tensor
    ) -> Iterator[tuple[int, int, torch.Tensor]]:
        """Yield finished parts as (start, stop, logits)."""
        shape = list(self.image.shape[2:])
        shape[self.axis] = self.roi[self.axis]
        weights = torch.zeros(shape, device=self.image.device)
        rows = self.starts[self.axis]
        end = self.image.shape[self.axis + 2]
        for start, following in zip(rows, [*rows[1:], end], strict=True):
            for batch in self._batches(start):
                self._add(batch, network, weight, weights)
            self._tell()
            assert self.sums is not None  # the first window always runs
            step = following - start
            sums, total = self.sums.narrow(self.axis + 1, 0, step), weights.narrow(self.axis, 0, step)
            yield start, following, self._divide(sums, total)
            if following < end:
                _advance(self.sums, self.axis + 1, step)
                _advance(weights, self.axis, step)

    def _batches(self, start: int) -> Iterator[list[tuple[slice, ...]]]:
        """Windows of a row in batches, with the position inside the accumulator along the slab axis implied."""
        axes = [[start] if a == self.axis else s for a, s in enumerate(self.starts)]
        windows = [tuple(slice(s, s + r) for s, r in zip(at, self.roi, strict=True)) for at in product(*axes)]
        chosen = [w for w in windows if self.content is None or bool(self.content[w].any())]
        if self.sums is None and not chosen:
            chosen = windows[:1]
        self.done += len(windows) - len(chosen)
        for i in range(0, len(chosen), self.batch_size):
            yield chosen[i : i + self.batch_size]

    def _add(
        self,
        batch: list[tuple[slice, ...]],
        network: Callable[[torch.Tensor], torch.Tensor],
        weight: torch.Tensor,
        weights: torch.Tensor,
    ) -> None:
        answers = network(torch.cat([self.image[(slice(None), slice(None), *w)] for w in batch]))
        if not isinstance(answers, torch.Tensor) or tuple(answers.shape[2:]) != self.roi:
            got = tuple(answers.shape) if isinstance(answers, torch.Tensor) else type(answers).__name__
            raise ValueError(f"network must answer a window of {self.roi} with (B, K, *{self.roi}), got {got}")
        if self.sums is None:
            self.sums = weights.new_zeros((answers.shape[1], *weights.shape))
        for window, answer in zip(batch, answers, strict=True):
            place = tuple(slice(0, self.roi[a]) if a == self.axis else s for a, s in enumerate(window))
            self.sums[(slice(None), *place)].addcmul_(answer.to(self.sums), weight)
            weights[place] += weight
        self.done += len(batch)
        self._tell()

    def _tell(self) -> None:
        if self.on_windows is not None:
            self.on_windows(self.done, self.total)

    def _divide(self, sums: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        if self.content is None:
            return sums.div_(weights)
        uncovered = weights == 0
        sums.div_(weights.masked_fill(uncovered, 1))
        sums.unflatten(0, (self.sets, -1))[:, 1:].masked_fill_(uncovered, _CERTAINLY_NOT)
        return sums


def _advance(buffer: torch.Tensor, dim: int, step: int) -> None:
    """Move a buffer on by some slices: what is beyond comes to the front, the rest is zero."""
    size = buffer.shape[dim]
    for i in range(size - step):
        # One slice after the other, since source and target of a single copy would overlap.
        buffer.select(dim, i).copy_(buffer.select(dim, i + step))
    buffer.narrow(dim, size - step, step).zero_()
