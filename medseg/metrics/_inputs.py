"""Checks that every metric function makes on its inputs, and the loop over batch and channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Real

import numpy as np
import torch

from medseg.metrics.empty import CASES, CaseName, EmptyPolicy, name_case
from medseg.metrics.surface import SurfaceDistances, check_spacing, diagonal_mm, flat_axis, surface_distances

Spacing = float | Sequence[float] | Sequence[Sequence[float]] | None


def as_masks(y_pred: torch.Tensor, y: torch.Tensor, include_background: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Check two one-hot tensors (B, C, spatial...) and give them as booleans."""
    for name, value in (("y_pred", y_pred), ("y", y)):
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
        if value.ndim not in (4, 5):
            raise ValueError(f"{name} must have shape (B, C, H, W) or (B, C, H, W, D), got {tuple(value.shape)}")
    if y_pred.shape != y.shape:
        raise ValueError(f"y_pred has shape {tuple(y_pred.shape)}, but y has {tuple(y.shape)}; give one-hot tensors")
    first = 0 if include_background or y.shape[1] == 1 else 1
    return as_bool(y_pred[:, first:], "y_pred"), as_bool(y[:, first:], "y")


def case_codes(y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Tell for every sample and channel which masks are empty, as an index into `CASES`, shape (B, C)."""
    dims = tuple(range(2, y.ndim))
    no_pred, no_ref = ~y_pred.any(dim=dims), ~y.any(dim=dims)
    codes = torch.zeros(no_ref.shape, dtype=torch.float32, device=y.device)
    codes[no_pred & no_ref] = CASES.index("both_empty")
    codes[no_pred & ~no_ref] = CASES.index("missed")
    codes[~no_pred & no_ref] = CASES.index("hallucinated")
    return codes


def fill_empty(
    values: torch.Tensor, codes: torch.Tensor, empty: EmptyPolicy, best: float, worst: float
) -> torch.Tensor:
    """Put the policy's values where a mask is empty."""
    for case in CASES[1:]:
        values = torch.where(codes == CASES.index(case), empty.value(case, best=best, worst=worst), values)
    return values


def spacing_per_sample(spacing: Spacing, batch: int, dims: int) -> list[tuple[float, ...]]:
    """Spread a spacing (None, a number, one for each axis, or one such list for each sample) over a batch."""
    if spacing is None or isinstance(spacing, Real):
        size = 1.0 if spacing is None else float(spacing)  # type: ignore[arg-type]
        return [check_spacing((size,) * dims, dims)] * batch
    sizes = np.asarray(spacing, dtype=np.float64)
    if sizes.ndim == 1:
        return [check_spacing(sizes.tolist(), dims)] * batch
    if sizes.ndim == 2 and len(sizes) == batch:
        return [check_spacing(row, dims) for row in sizes.tolist()]
    raise ValueError(
        f"spacing must be a number, {dims} numbers, or {batch} lists of {dims} numbers in mm, got shape {sizes.shape}"
    )


def per_surface_pair(
    y_pred: torch.Tensor,
    y: torch.Tensor,
    *,
    spacing: Spacing,
    include_background: bool,
    measure: Callable[[SurfaceDistances], float],
    value_if_empty: Callable[[CaseName, float], float],
    connectivity: int = 1,
) -> torch.Tensor:
    """Apply a measure to the surface distances of every sample and channel.

    Args:
        y_pred: one-hot prediction (B, C, spatial...).
        y: one-hot reference.
        spacing: voxel size in mm, see `spacing_per_sample`.
        include_background: whether channel 0 counts.
        measure: turns distances into the metric.
        value_if_empty: gives the metric for an empty case and an image diagonal in mm.
        connectivity: which neighbours make a surface voxel, see `medseg.metrics.surface.surface_voxels`.

    Returns:
        Values of shape (B, C), float32, on the device of `y_pred`.
    """
    pred, ref = (m.cpu().numpy() for m in as_masks(y_pred, y, include_background))
    sizes = spacing_per_sample(spacing, pred.shape[0], pred.ndim - 2)
    values, flat = np.empty(pred.shape[:2], dtype=np.float32), flat_axis(pred.shape[2:])
    for b, c in np.ndindex(*values.shape):
        case = name_case(int(pred[b, c].any()), int(ref[b, c].any()))
        if case == "present":
            one, two, size = pred[b, c], ref[b, c], sizes[b]
            if flat is not None:
                one, two, size = one.squeeze(flat), two.squeeze(flat), size[:flat] + size[flat + 1 :]
            values[b, c] = measure(surface_distances(one, two, size, connectivity))
        else:
            values[b, c] = value_if_empty(case, diagonal_mm(pred.shape[2:], sizes[b]))
    return torch.from_numpy(values).to(y_pred.device)


def as_bool(mask: torch.Tensor, name: str) -> torch.Tensor:
    """Give a tensor of 0 and 1 as booleans."""
    # MONAI's MetaTensor would carry its metadata through every comparison; the plain tensor is what is needed.
    mask = mask.detach().as_subclass(torch.Tensor)
    if mask.dtype == torch.bool:
        return mask
    result = mask != 0
    if not torch.equal(result.to(mask.dtype), mask):
        raise ValueError(
            f"{name} must hold 0 and 1 only (one-hot); apply argmax or a threshold, then AsDiscrete, first"
        )
    return result
