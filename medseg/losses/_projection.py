"""Projections of labels: computed, or given by the caller in one of several shapes.

The projected axis stays in its place and counts the slabs, as in `medseg.core.kernels.max_projections`; a full
projection is one slab.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

Projections = Mapping[int, torch.Tensor]


def project_evenly(volume: torch.Tensor, axis: int, thickness: int | None) -> torch.Tensor:
    """Largest values of (B, C, spatial...) along a spatial axis; equal ones share the gradient."""
    slabs = volume.split(thickness or volume.shape[axis + 2], axis + 2)
    return torch.cat([slab.amax(axis + 2, keepdim=True) for slab in slabs], axis + 2)


def check_axes_of(given: Mapping[str, Projections], axes: Sequence[int]) -> None:
    """Refuse projections along other axes than the loss has, which nobody would look at."""
    for name, mips in given.items():
        if odd := sorted(set(mips) - set(axes), key=str):
            raise ValueError(f"{name} has projections along {odd}, but the loss projects along {list(axes)}")


def take_given(mips: Projections, axis: int, input: torch.Tensor, thickness: int | None) -> torch.Tensor | None:
    """The given projection along an axis in the shape of the prediction's, or None where none is given."""
    if axis not in mips:
        return None
    mip = mips[axis].detach().as_subclass(torch.Tensor)
    dim, expected = axis + 2, list(input.shape)
    expected[dim] = -(-input.shape[dim] // (thickness or input.shape[dim]))
    if expected[dim] == 1:
        if mip.ndim == input.ndim - 1:
            mip = mip.unsqueeze(dim)
        if mip.shape == input.shape:  # repeated along the axis, as `LabelMIPd` keeps it
            mip = mip.narrow(dim, 0, 1)
    if list(mip.shape) != expected:
        raise ValueError(
            f"target_mips and mip_mask along axis {axis} must have shape {tuple(expected)} for this input, "
            f"got {tuple(mips[axis].shape)}"
        )
    return mip
