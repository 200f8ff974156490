"""How a bundle moves windows over a volume, whatever inferer it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.inferers import Inferer, SliceInferer, SlidingWindowInferer, SlidingWindowInfererAdapt

from medseg.inferers import MirrorInferer, Slab, StreamingSlidingWindowInferer

# Voxels in one pass on a CPU, where larger batches take memory and gain no time.
_CPU_BATCH_VOXELS = 2**18


class Windows:
    """A bundle's inferer, taken apart into windows and mirroring.

    MONAI's sliding windows become streaming ones with the same answer, those of a `SliceInferer` with windows that are
    one voxel thick; any other inferer runs as it is, and its answer counts as one slab.

    Args:
        inferer: the bundle's inferer.
        mirror_axes: axes of mirroring if the inferer has none of its own.
        tta: `auto` (mirror as the inferer says), `none`, or `mirror`.
        settings: `overlap`, `roi_size`, `sw_batch_size`, `skip_empty` where they replace the inferer's; None keeps it.

    Raises:
        ValueError: a setting is out of range, or the inferer has no such setting.
    """

    def __init__(
        self, inferer: Inferer, mirror_axes: Sequence[int] | None = None, tta: str = "auto", **settings: Any
    ) -> None:
        if tta not in ("auto", "none", "mirror"):
            raise ValueError(f"tta must be auto, none or mirror, got {tta!r}")
        mirror = inferer if isinstance(inferer, MirrorInferer) else None
        inner = mirror.inferer if mirror is not None else inferer
        self.slice_dim = inner.spatial_dim if type(inner) is SliceInferer else None
        self.inferer = _streaming(inner)
        if tta == "mirror" and mirror is None:
            if not mirror_axes:
                raise ValueError(
                    "tta 'mirror': the bundle names no mirror_axes that its network was trained for; use none"
                )
            mirror = MirrorInferer(self.inferer, mirror_axes)
        self.mirror = None if tta == "none" else mirror
        for name, value in settings.items():
            if value is not None:
                self._set(name, value)

    @property
    def streaming(self) -> StreamingSlidingWindowInferer | None:
        """The sliding windows, or None where the bundle has another inferer."""
        return self.inferer if isinstance(self.inferer, StreamingSlidingWindowInferer) else None

    @property
    def batch_size(self) -> int:
        """Windows in one pass."""
        return self.streaming.sw_batch_size if self.streaming else 1

    @property
    def fixed_shape(self) -> tuple[int, ...] | None:
        """Spatial shape that the network sees, 2D for slices, where it does not depend on the volume."""
        roi = self.streaming.roi_size if self.streaming else None
        if roi is None or isinstance(roi, int) or any(r is None or r <= 0 for r in roi):
            return None
        return tuple(r for dim, r in enumerate(roi) if dim != self.slice_dim)

    def shape(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Window shape for a volume."""
        return self.streaming.window(size) if self.streaming else size

    def axis(self, size: tuple[int, ...]) -> int:
        """Axis along which slabs are cut."""
        return self.streaming.slab_axis(size) if self.streaming else 0

    def limit_batch(self) -> None:
        """Take no more windows in one pass than help on a CPU."""
        if self.streaming and self.fixed_shape:
            voxels = int(np.prod(self.fixed_shape))
            self.streaming.sw_batch_size = min(self.batch_size, max(_CPU_BATCH_VOXELS // voxels, 1))

    def slabs(
        self,
        image: torch.Tensor,
        network: Callable[[torch.Tensor], torch.Tensor],
        axis: int,
        on_windows: Callable[[int, int], None] | None = None,
    ) -> Iterator[Slab]:
        """Run a network over one volume, shape (1, C, spatial...)."""
        network = self.mirror.mirrored(network) if self.mirror is not None else network
        if self.slice_dim is not None:
            network = _on_slices(network, self.slice_dim + 2)
        if self.streaming:
            yield from self.streaming.slabs(image, network, axis=axis, on_windows=on_windows)
        else:
            answer = self.inferer(image, cast("torch.nn.Module", network))
            yield Slab(0, image.shape[axis + 2], answer[0].float())

    def _set(self, name: str, value: Any) -> None:
        if name == "overlap" and not 0 <= value < 1:
            raise ValueError(f"overlap must be in [0, 1), got {value}")
        if not hasattr(self.inferer, name):
            kind = type(self.inferer).__name__
            raise ValueError(f"{name} was given, but the bundle's inferer {kind} has no such setting")
        if name == "roi_size":
            value = _with_slice(value, self.slice_dim)
        setattr(self.inferer, name, value)


def _with_slice(roi_size: Sequence[int], slice_dim: int | None) -> tuple[int, ...]:
    roi = list(roi_size)
    if slice_dim is not None and len(roi) == 2:
        roi.insert(slice_dim, 1)
    return tuple(roi)


def _on_slices(network: Callable[[torch.Tensor], torch.Tensor], dim: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Let a 2D network run on windows that are one voxel thick."""
    return lambda windows: network(windows.squeeze(dim)).unsqueeze(dim)


def _streaming(inferer: Inferer) -> Inferer:
    if type(inferer) is SliceInferer:
        streaming = StreamingSlidingWindowInferer.from_monai(inferer)
        streaming.roi_size = _with_slice(inferer.orig_roi_size, inferer.spatial_dim)
        return streaming
    # Subclasses may do more than move windows.
    if type(inferer) in (SlidingWindowInferer, SlidingWindowInfererAdapt):
        plain = cast("SlidingWindowInferer", inferer)
        if not plain.with_coord:
            return StreamingSlidingWindowInferer.from_monai(plain)
    return inferer
