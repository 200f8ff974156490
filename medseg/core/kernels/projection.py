"""Maximum projections of a volume along several axes with the places of the maxima, from one read of the volume.

    value_a[b, c, u] = max over i of volume[b, c, u with i on axis a]
    index_a[b, c, u] = the first i that attains it

    d loss / d volume[b, c, v] = sum over a of gradient_a[b, c, v without a], where index_a[b, c, v without a] = v_a

Where a maximum occurs more than once along a line, the first voxel gets the whole gradient (`torch.max`);
`torch.amax` would divide it, for which it keeps the volume and compares it with its maxima again. NaN counts as the
largest value, so it propagates as in `torch.max` and `torch.amax`; -0.0 and +0.0 are equal. Values are copies of
voxels, bit for bit.

The backward of one projection is a scatter to places that differ, so nothing depends on an order: the same input gives
the same bits. It writes into one buffer for all axes, and can itself be differentiated (it is linear).

Maximum projections as a loss for thin vessels: Radhakrishna, Chintalapati, Kumar, Sutrave, Mattern, Speck, Nürnberger,
Chatterjee, "SPOCKMIP: Segmentation of Vessels in MRAs with Enhanced Continuity using Maximum Intensity Projection as
Loss", 2024. There `torch.amax` divides the gradient among equal maxima; see above. Slabs are an extension of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medseg.core.kernels.dispatch import check_backend, choose_backend

SUPPORTED = (torch.float32, torch.float16, torch.bfloat16)


class Projection(NamedTuple):
    """The maxima along one axis, and the index along that axis of the first voxel that attains each."""

    values: Tensor
    indices: Tensor


def max_projections(
    volume: Tensor,
    axes: Sequence[int] | None = None,
    *,
    slab_thickness: int | Sequence[int | None] | None = None,
    backend: str = "auto",
) -> tuple[Projection, ...]:
    """Project the maxima of a volume along each of some axes.

    Args:
        volume: (B, C, H, W) or (B, C, D, H, W) of any real dtype and any strides; no spatial extent may be 0.
        axes: spatial axes to project along, 0 being the first after the channels; None means all of them.
        slab_thickness: None projects the full extent. A number of voxels, at least 1, cuts each axis from index 0 on
            into slabs of that thickness, the last of which may be thinner; a sequence gives one entry per axis.
        backend: "auto", "torch" or "triton", see `medseg.core.kernels.choose_backend`.

    Returns:
        For each of `axes` the values, in the dtype of `volume`, and the int64 indices along the axis, counted from the
        start of the volume. Shape (B, C, other axes); with slabs, the axis stays in its place and counts the slabs.

    Raises:
        ValueError: wrong shape, dtype, axes, thickness or backend.
        ImportError: `backend="triton"`, and triton is not installed.

    Example:
        >>> volume = torch.zeros(1, 1, 2, 3, 4)
        >>> volume[0, 0, 1, 2, 3] = 5
        >>> front, top, side = max_projections(volume)
        >>> front.values.shape, front.values[0, 0, 2, 3].item(), front.indices[0, 0, 2, 3].item()
        (torch.Size([1, 1, 3, 4]), 5.0, 1)
        >>> side.indices[0, 0]
        tensor([[0, 0, 0],
                [0, 0, 3]])
    """
    _check_volume(volume)
    check_backend(backend)
    chosen = _read_axes(axes, volume.ndim - 2)
    slabs = _read_slabs(slab_thickness, volume, chosen)
    dims = [axis + 2 for axis in chosen]
    outputs = _project(volume, dims, slabs, backend)
    if slab_thickness is None:
        outputs = [output.squeeze(dim) for output, dim in zip(outputs, dims * 2, strict=True)]
    count = len(dims)
    return tuple(Projection(*pair) for pair in zip(outputs[:count], outputs[count:], strict=True))


# Outputs keep the projected dimension, so that `indices` fit gather and scatter along it; values come first, then
# indices. One operation for both, because that is what one read of the volume yields.
@torch.library.custom_op("medseg::max_projections", mutates_args=())
def _project(volume: Tensor, dims: Sequence[int], slabs: Sequence[int], backend: str) -> list[Tensor]:
    if choose_backend(backend, volume, SUPPORTED) == "triton":
        from medseg.core.kernels import projection_triton

        return projection_triton.project(volume, dims, slabs)
    found = [_project_one(volume, dim, slab) for dim, slab in zip(dims, slabs, strict=True)]
    return [values for values, _ in found] + [indices for _, indices in found]


def _project_one(volume: Tensor, dim: int, slab: int) -> tuple[Tensor, Tensor]:
    parts = [part.max(dim, keepdim=True) for part in volume.split(slab, dim)]
    values = torch.cat([part.values for part in parts], dim)
    return values, torch.cat([part.indices + slab * i for i, part in enumerate(parts)], dim)


@_project.register_fake
def _(volume: Tensor, dims: Sequence[int], slabs: Sequence[int], backend: str) -> list[Tensor]:
    shapes = [list(volume.shape) for _ in dims]
    for shape, dim, slab in zip(shapes, dims, slabs, strict=True):
        shape[dim] = (shape[dim] + slab - 1) // slab
    return [volume.new_empty(shape) for shape in shapes] + [
        volume.new_empty(shape, dtype=torch.int64) for shape in shapes
    ]


@torch.library.custom_op("medseg::max_projections_backward", mutates_args=())
def _spread(
    gradients: Sequence[Tensor],
    indices: Sequence[Tensor],
    dims: Sequence[int],
    slabs: Sequence[int],
    shape: Sequence[int],
    backend: str,
) -> Tensor:
    if choose_backend(backend, gradients[0], SUPPORTED) == "triton":
        from medseg.core.kernels import projection_triton

        return projection_triton.spread(gradients, indices, dims, slabs, shape)
    # Along one axis the places differ, so that reading, adding and writing back is free of races, unlike scatter_add.
    volume = gradients[0].new_zeros(shape)
    for gradient, index, dim in zip(gradients, indices, dims, strict=True):
        volume.scatter_(dim, index, volume.gather(dim, index) + gradient)
    return volume


@_spread.register_fake
def _(
    gradients: Sequence[Tensor],
    indices: Sequence[Tensor],
    dims: Sequence[int],
    slabs: Sequence[int],
    shape: Sequence[int],
    backend: str,
) -> Tensor:
    return gradients[0].new_empty(shape)


def _save_indices(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    volume, ctx.dims, ctx.slabs, ctx.backend = inputs
    ctx.shape = volume.shape
    ctx.save_for_backward(*output[len(ctx.dims) :])


def _project_backward(ctx: Any, gradients: list[Tensor | None]) -> tuple[Tensor | None, None, None, None]:
    used = [
        (gradient, index, dim, slab)
        for gradient, index, dim, slab in zip(gradients, ctx.saved_tensors, ctx.dims, ctx.slabs, strict=False)
        if gradient is not None
    ]
    if not used:
        return None, None, None, None
    values, indices, dims, slabs = (list(column) for column in zip(*used, strict=True))
    return _spread(values, indices, dims, slabs, ctx.shape, ctx.backend), None, None, None


def _save_places(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, indices, ctx.dims, *_ = inputs
    ctx.save_for_backward(*indices)


def _spread_backward(ctx: Any, gradient: Tensor) -> tuple[list[Tensor], list[None], None, None, None, None]:
    indices = ctx.saved_tensors
    gathered = [gradient.gather(dim, index) for index, dim in zip(indices, ctx.dims, strict=True)]
    return gathered, [None] * len(indices), None, None, None, None


_project.register_autograd(_project_backward, setup_context=_save_indices)
_spread.register_autograd(_spread_backward, setup_context=_save_places)


def _check_volume(volume: Tensor) -> None:
    if volume.ndim not in (4, 5) or 0 in volume.shape[2:]:
        raise ValueError(
            f"volume has shape {tuple(volume.shape)}; expected (B, C, H, W) or (B, C, D, H, W) without an extent of 0"
        )
    if volume.is_complex():
        raise ValueError(f"volume is {volume.dtype}, which has no order; project its magnitude: volume.abs()")


def _read_axes(axes: Sequence[int] | None, count: int) -> list[int]:
    chosen = list(range(count)) if axes is None else list(axes)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(count)):
        raise ValueError(f"axes is {axes}; expected different numbers from 0 to {count - 1}, the axes after (B, C)")
    return chosen


def _read_slabs(thickness: int | Sequence[int | None] | None, volume: Tensor, axes: Sequence[int]) -> list[int]:
    given = list(thickness) if isinstance(thickness, Sequence) else [thickness] * len(axes)
    if len(given) != len(axes) or any(slab is not None and slab < 1 for slab in given):
        raise ValueError(
            f"slab_thickness is {thickness}; expected None, voxels >= 1, or one of these for each of {axes}"
        )
    extents = [volume.shape[axis + 2] for axis in axes]
    return [extent if slab is None else min(slab, extent) for slab, extent in zip(given, extents, strict=True)]
