"""The best class at places between voxels, without holding all classes there.

    label(i) = the first class k with the largest v_k(i),    v_k(i) = sum over the neighbours j of place i of w_j z_k(j)

with trilinear weights w (bilinear in 2D) and the places of a grid: one list of fractional indices an axis. `argmax_at`
takes any such lists, `upsample_argmax` those of `torch.nn.functional.interpolate(align_corners=False)`.

Interpolating all classes and taking the argmax after it holds K volumes on the output grid. Here PyTorch holds one
class and the best value so far, and on a CPU in float32 compiled loops (`argmax_at_processor.py`) hold a row for each
thread; both add in the same order, axis after axis.

Where the classes of each voxel sum to 1, the best of K is at least 1 / K, and so is one of the voxels it was made of.
A `floor` just below that leaves classes out where they cannot win, which in a segmentation is nearly everywhere.

This is the export step of nnU-Net (Isensee et al., "nnU-Net: a self-configuring method for deep learning-based
biomedical image segmentation", 2021), there with all classes in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from medseg.core.kernels.dispatch import check_backend, choose_backend, wants_torch

SUPPORTED = (torch.float32, torch.float16, torch.bfloat16)


def upsample_argmax(logits: Tensor, size: Sequence[int], *, backend: str = "auto") -> Tensor:
    """Interpolate linearly to another size and take the class with the largest value.

    Equals `interpolate(logits, size, mode="trilinear", align_corners=False).argmax(1)` (bilinear in 2D) but where the
    best two classes are equal to rounding.

    Args:
        logits: (B, C, H, W) or (B, C, D, H, W), any float type; with probabilities the argmax is another one, since
            interpolation does not commute with a softmax.
        size: spatial shape of the result.
        backend: "auto", "torch" or "triton", see `medseg.core.kernels.choose_backend`.

    Returns:
        Class ids (B, spatial...), uint8 or, above 256 classes, int32.

    Raises:
        ValueError: wrong shape, size or backend.
        ImportError: `backend="triton"`, and triton is not installed.

    Example:
        >>> logits = torch.tensor([[[[0.0, 3.0]], [[1.0, 0.0]]]])      # two classes on a 1 x 2 image
        >>> upsample_argmax(logits, (1, 4))
        tensor([[[1, 0, 0, 0]]], dtype=torch.uint8)
    """
    if logits.ndim not in (4, 5) or 0 in logits.shape[1:]:
        raise ValueError(f"logits must be (B, C, H, W) or (B, C, D, H, W) without an extent of 0, got {logits.shape}")
    if len(size) != logits.ndim - 2 or min(size) < 1:
        raise ValueError(f"size is {tuple(size)}; expected {logits.ndim - 2} numbers of voxels, at least 1 each")
    # Rounding may leave the first voxel's place a bit below 0, and an extent of 1 has but one place.
    places = [
        ((torch.arange(new, dtype=torch.float64) + 0.5) * (old / new) - 0.5).clamp_(0, old - 1)
        for old, new in zip(logits.shape[2:], size, strict=True)
    ]
    if not len(logits):
        return torch.empty((0, *size), dtype=_label_type(logits.shape[1]), device=logits.device)
    labels = [argmax_at(item, places, backend=backend)[0] for item in logits]
    return torch.stack(labels) if len(labels) > 1 else labels[0][None]


def argmax_at(
    values: Tensor, places: Sequence[Tensor], *, floor: float | None = None, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Find the best class at the places of a grid.

    Args:
        values: (K, spatial...) in 2D or 3D, any float type.
        places: fractional indices along each spatial axis, 1D, inside [0, extent - 1], rising or falling, on the CPU.
        floor: classes may be left out where all neighbours are below this. None leaves out none.
        backend: "auto", "torch" or "triton", see `medseg.core.kernels.choose_backend`.

    Returns:
        Class ids, uint8 or, above 256 classes, int32; and their values, float32. Both have the lengths of `places`.
        Equal values give the lowest class. NaN never wins; where nothing else is, class 0 with -inf.

    Raises:
        ValueError: wrong shapes or backend, or places outside or in no order.
        ImportError: `backend="triton"`, and triton is not installed.

    Example:
        >>> values = torch.tensor([[[0.0, 3.0]], [[1.0, 0.0]]])
        >>> argmax_at(values, [torch.tensor([0.0]), torch.tensor([0.0, 0.5])])
        (tensor([[1, 0]], dtype=torch.uint8), tensor([[1.0000, 1.5000]]))
    """
    check_backend(backend)
    if values.ndim not in (3, 4) or len(places) != values.ndim - 1:
        raise ValueError(
            f"values must be (K, H, W) or (K, D, H, W) with places along each axis, got {tuple(values.shape)} and "
            f"{len(places)} lists of places"
        )
    for axis, (place, extent) in enumerate(zip(places, values.shape[1:], strict=True)):
        steps = place.diff()
        ordered = place.ndim == 1 and bool((steps >= 0).all() or (steps <= 0).all())
        if not ordered or (len(place) and not (place.min() >= 0 and place.max() <= extent - 1)):
            raise ValueError(f"places[{axis}] must be 1D, rising or falling, and inside [0, {extent - 1}]")
    return _argmax(values, [place.double() for place in places], floor, backend)


@torch.library.custom_op("medseg::argmax_at", mutates_args=())
def _argmax(values: Tensor, places: Sequence[Tensor], floor: float | None, backend: str) -> tuple[Tensor, Tensor]:
    if choose_backend(backend, values, SUPPORTED) == "triton":
        from medseg.core.kernels import argmax_at_triton

        return argmax_at_triton.find(values, places)
    if values.device.type == "cpu" and values.dtype == torch.float32 and not wants_torch(backend):
        from medseg.core.kernels import argmax_at_processor

        return argmax_at_processor.find(values, places, floor)
    shape = [len(place) for place in places]
    labels = torch.zeros(shape, dtype=_label_type(len(values)), device=values.device)
    best = torch.full(shape, -torch.inf, device=values.device)
    for k, volume in enumerate(values):
        _compete(labels, best, k, volume, places, floor)
    return labels, best


@_argmax.register_fake
def _(values: Tensor, places: Sequence[Tensor], floor: float | None, backend: str) -> tuple[Tensor, Tensor]:
    shape = [place.shape[0] for place in places]
    labels = values.new_empty(shape, dtype=_label_type(values.shape[0]))
    return labels, values.new_empty(shape, dtype=torch.float32)


def _compete(
    labels: Tensor, best: Tensor, k: int, volume: Tensor, places: Sequence[Tensor], floor: float | None
) -> None:
    """Let class k win where it is larger, looking only at the box of voxels where it reaches the floor."""
    box = [slice(0, n) for n in volume.shape] if floor is None else _bounding_box(volume >= floor)
    if box is None:
        return
    block, window = volume[tuple(box)].float(), []
    for axis, place in enumerate(places):
        chosen = ((place >= box[axis].start) & (place <= box[axis].stop - 1)).nonzero()[:, 0]
        first, stop = (int(chosen[0]), int(chosen[-1]) + 1) if len(chosen) else (0, 0)
        window.append(slice(first, stop))
        block = interpolate_along(block, axis, place[first:stop] - box[axis].start)
    best_here = best[tuple(window)]
    won = block > best_here
    labels[tuple(window)].masked_fill_(won, k)
    best_here.copy_(torch.where(won, block, best_here))


def _bounding_box(mask: Tensor) -> list[slice] | None:
    """Smallest box around the true voxels, widened by one where there is room; None if there are none."""
    box = []
    for axis in range(mask.dim()):
        found = mask.any(dim=tuple(a for a in range(mask.dim()) if a != axis)).nonzero()[:, 0]
        if not len(found):
            return None
        box.append(slice(max(int(found[0]) - 1, 0), min(int(found[-1]) + 2, mask.shape[axis])))
    return box


def interpolate_along(values: Tensor, axis: int, places: Tensor) -> Tensor:
    """Interpolate linearly along one axis.

    Args:
        values: any shape.
        axis: the axis.
        places: fractional indices along it, shape (N,), all inside [0, size - 1].

    Returns:
        `values` with N entries along the axis; a view where the places are all its own voxels in order.

    Example:
        >>> interpolate_along(torch.tensor([0.0, 10.0, 20.0]), 0, torch.tensor([0.5, 2.0]))
        tensor([ 5., 20.])
    """
    if not len(places):
        return values.narrow(axis, 0, 0)
    lower = places.floor().long()
    fraction = (places - lower).to(values.dtype)
    low = _take(values, axis, lower)
    if not fraction.any():
        return low
    high = _take(values, axis, (lower + 1).clamp(max=values.shape[axis] - 1))
    shape = [-1 if a == axis else 1 for a in range(values.dim())]
    return torch.lerp(low, high, fraction.reshape(shape).to(values.device))


def _take(values: Tensor, axis: int, indices: Tensor) -> Tensor:
    first = int(indices[0])
    if torch.equal(indices, torch.arange(first, first + len(indices))):
        return values.narrow(axis, first, len(indices))
    return values.index_select(axis, indices.to(values.device))


def _label_type(classes: int) -> torch.dtype:
    return torch.uint8 if classes <= 256 else torch.int32
