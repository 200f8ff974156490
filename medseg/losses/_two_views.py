"""Two augmented views of the same samples: read them, and measure how far their features are apart.

With `align="inverse"` both feature maps are brought back into the frame of the image before its augmentation: a cell x
of that frame takes the features of view v at u = N_v^-1 x, where N_v maps normalised coordinates of the view to those
of the image as `torch.nn.functional.affine_grid` takes them. Cells that a view does not show do not count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from medseg.losses._inputs import in_full_precision

Views = torch.Tensor | Sequence[torch.Tensor]
DISTANCES = ("mse", "cosine", "l2")
ALIGNMENTS = ("none", "inverse", "pool")


def split_views(value: Views, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The first and the second view of a pair (B, ...), (B, ...), or of a tensor (2B, ...)."""
    if isinstance(value, torch.Tensor):
        if value.ndim < 1 or len(value) % 2 or not len(value):
            raise ValueError(
                f"{name} must hold both views, first all first views and then all second views, so an even number of "
                f"items, got shape {tuple(value.shape)}; or give a pair of tensors"
            )
        first, second = value.chunk(2)
    elif len(value) == 2 and all(isinstance(v, torch.Tensor) for v in value) and value[0].shape == value[1].shape:
        first, second = value
    else:
        got = [tuple(v.shape) if isinstance(v, torch.Tensor) else type(v).__name__ for v in value]
        raise ValueError(f"{name} must be one tensor (2B, ...) or two of equal shape (B, ...), got {got}")
    return first.as_subclass(torch.Tensor), second.as_subclass(torch.Tensor)


def join_views(value: Views, name: str) -> torch.Tensor:
    """Both views as one tensor (2B, ...), without a copy where they come as one."""
    first, second = split_views(value, name)
    return value.as_subclass(torch.Tensor) if isinstance(value, torch.Tensor) else torch.cat((first, second))


def feature_distance(
    features: Views, distance: str, align: str, view_affines: Views | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance between the features of the two views of every sample, and whether any cell was compared; both (B,)."""
    first, second = (in_full_precision(f) for f in split_views(features, "features"))
    shown = None
    if align == "pool":
        first, second = (f.flatten(2).mean(2) if f.ndim > 2 else f for f in (first, second))
    elif align == "inverse":
        pair = zip((first, second), _read_affines(view_affines, first), strict=True)
        (first, shown), (second, also) = (_undo(f, affine) for f, affine in pair)
        shown = shown & also
    cells = _compare(first, second, distance).reshape(len(first), -1)
    if shown is None:
        return cells.mean(1), torch.ones(len(cells), dtype=torch.bool, device=cells.device)
    count = shown.flatten(1).sum(1)
    total = torch.where(shown.flatten(1), cells, 0).sum(1)
    return total / count.clamp(min=1), count > 0


def _compare(first: torch.Tensor, second: torch.Tensor, distance: str) -> torch.Tensor:
    """Distance over the channels of every cell, (B, spatial...)."""
    if distance == "mse":
        return (first - second).square().mean(1)
    if distance == "cosine":
        return 1 - functional.cosine_similarity(first, second, dim=1)
    return torch.linalg.vector_norm(first - second, dim=1)


def _read_affines(view_affines: Views | None, features: torch.Tensor) -> list[torch.Tensor]:
    if view_affines is None:
        raise ValueError(
            'align="inverse" needs view_affines, the matrices that made the views; '
            'medseg.transforms.PairedViewsd gives them as "view_affine" and "view_affine_view2"'
        )
    batch, dims = len(features), features.ndim - 2
    affines = split_views(view_affines, "view_affines")
    for affine in affines:
        if dims not in (2, 3) or tuple(affine.shape) not in ((batch, dims, dims + 1), (batch, dims + 1, dims + 1)):
            raise ValueError(
                f"view_affines must have shape (B, d, d + 1) or (B, d + 1, d + 1) and features (B, D, d axes) with d 2 "
                f"or 3, got {tuple(affine.shape)} and {tuple(features.shape)}"
            )
    last = torch.eye(dims + 1, device=features.device, dtype=features.dtype)[-1:].expand(batch, 1, -1)
    return [torch.cat((affine[:, :dims].to(features), last), dim=1) for affine in affines]


def _undo(features: torch.Tensor, affine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Features in the frame of the image, and which of its cells the view shows (B, spatial...)."""
    back = torch.linalg.inv(affine)[:, :-1]
    grid = functional.affine_grid(back, list(features.shape), align_corners=False)
    # Rounding must not hide the cells at the rim of a view that is turned by a right angle.
    shown = (grid.abs() <= 1 + 1e-4).all(dim=-1)
    return functional.grid_sample(features, grid, padding_mode="border", align_corners=False), shown
