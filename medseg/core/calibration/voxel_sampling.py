"""Choose the voxels that a calibrator is fitted to: half of them near the borders of the labels.

Most voxels of a volume are air or deep inside a structure, where every network is sure and right. A uniform draw hardly
holds the others, which are those whose probability matters.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def near_boundary(labels: torch.Tensor, width: int = 2) -> torch.Tensor:
    """Find the voxels that have another label within a distance.

    Args:
        labels: class ids, (B, 1, spatial...) or (B, spatial...) in 2D or 3D, integers.
        width: voxels along any axis, diagonals included.

    Returns:
        Booleans of the same shape.

    Raises:
        ValueError: the shape does not fit, or `width` is below 1.

    Example:
        >>> near_boundary(torch.tensor([[[[0, 0, 0, 1, 1, 1]]]]), width=1).int()
        tensor([[[[0, 0, 1, 1, 0, 0]]]], dtype=torch.int32)
    """
    if width < 1:
        raise ValueError(f"width must be 1 voxel or more, got {width}")
    volume = labels if labels.ndim >= 4 and labels.shape[1] == 1 else labels[:, None]
    if volume.ndim not in (4, 5):
        raise ValueError(f"labels must be (B, spatial...) or (B, 1, spatial...) in 2D or 3D, got {tuple(labels.shape)}")
    pool = functional.max_pool2d if volume.ndim == 4 else functional.max_pool3d
    values = volume.double()
    highest, lowest = (s * pool(s * values, 2 * width + 1, stride=1, padding=width) for s in (1, -1))
    return (highest != lowest).reshape(labels.shape)


def sample_voxels(
    logits: torch.Tensor,
    labels: torch.Tensor,
    count: int = 100_000,
    *,
    boundary_share: float = 0.5,
    width: int = 2,
    mask: torch.Tensor | None = None,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw voxels without replacement, so many of them near a border of the labels.

    Args:
        logits: (B, C, spatial...) in 2D or 3D.
        labels: class ids, (B, 1, spatial...).
        count: voxels over the whole batch; all of a kind where there are fewer.
        boundary_share: share of them within `width` of another label, in [0, 1].
        width: voxels, see `near_boundary`.
        mask: (B, 1, spatial...), true where a voxel may be drawn; all by default.
        seed: of the draw.

    Returns:
        Logits (N, C) and labels (N,) of at most `count` voxels, for `fit`.

    Raises:
        ValueError: shapes do not fit, or an option is out of range.

    Example:
        >>> labels = torch.zeros(1, 1, 8, 8, 8, dtype=torch.int64)
        >>> labels[..., 4:] = 1
        >>> logits, ids = sample_voxels(torch.zeros(1, 2, 8, 8, 8), labels, 100)
        >>> logits.shape, ids.shape
        (torch.Size([100, 2]), torch.Size([100]))
    """
    expected = (logits.shape[0], 1, *logits.shape[2:])
    for name, value in (("labels", labels), ("mask", mask)):
        if value is not None and tuple(value.shape) != expected:
            raise ValueError(
                f"{name} must have shape {expected} for logits {tuple(logits.shape)}, got {tuple(value.shape)}"
            )
    if count < 1 or not 0 <= boundary_share <= 1:
        raise ValueError(f"count must be 1 or more and boundary_share in [0, 1], got {count} and {boundary_share}")
    allowed = torch.ones_like(labels, dtype=torch.bool) if mask is None else mask.bool()
    near = near_boundary(labels, width)
    generator = torch.Generator().manual_seed(seed)
    wanted = round(count * boundary_share)
    chosen = torch.cat(
        [
            _draw((near & allowed).flatten(), wanted, generator),
            _draw((~near & allowed).flatten(), count - wanted, generator),
        ]
    )
    return logits.movedim(1, -1).flatten(0, -2)[chosen], labels.flatten()[chosen].long()


def _draw(kind: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Places of so many voxels of a kind."""
    places = kind.nonzero()[:, 0]
    return places[torch.randperm(len(places), generator=generator)[:count].to(places.device)]
