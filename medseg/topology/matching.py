"""Betti matching: which topological features of two images are the same feature in space.

A bar of the prediction and a bar of the target match if both map to the same bar of the comparison image, whose
sublevel sets are the unions of those of the two images:

    u = 1 - pred, t = 1 - target (superlevel), c = min(u, t)
    a bar of c that dies at cell s matches bar a of u and bar b of t, where a and b are the births that die at s in the
    image of H(u) -> H(c) and of H(t) -> H(c)

Sources: Stucki, Paetzold, Shit, Menze, Bauer, "Topologically Faithful Image Segmentation via Induced Matching of
Persistence Barcodes" (ICML 2023); Stucki, Bürgin, Paetzold, Bauer, "Efficient Betti Matching Enables Topology-Aware 3D
Segmentation via Persistent Homology" (2024); Bauer, Lesnick, "Induced matchings and the algebraic stability of
persistence barcodes" (2015).

Pairs are those of the authors' C++ code, voxel for voxel. Differences: dimensions in which one image has no bar are
not matched at all (nothing can match there), `image_bars="positive"` offers the theory's rule that the image bar must
not be empty, and a frame has the same constant in both images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.topology._inputs import (
    IMAGE_BARS,
    ascending,
    check_dims,
    check_option,
    check_pair,
    frame_images,
    list_directions,
    to_coordinates,
)
from medseg.topology._pairing import pair_images


class BettiMatching(NamedTuple):
    """Matched and unmatched bars of two images in one dimension and one direction, as voxel coordinates (int64).

    Attributes:
        dim: 0 components, 1 loops (tunnels in 3D), 2 cavities.
        filtration: "superlevel" or "sublevel".
        matched: (M, 4, D): birth and death in the prediction, birth and death in the target.
        unmatched_pred: (P, 2, D): birth, death.
        unmatched_target: (Q, 2, D): birth, death.
        essential: (1, 2, D): births of the two infinite bars, prediction and target, if asked for and dim is 0; else
            (0, 2, D).
    """

    dim: int
    filtration: str
    matched: NDArray[np.int64]
    unmatched_pred: NDArray[np.int64]
    unmatched_target: NDArray[np.int64]
    essential: NDArray[np.int64]


def betti_matching(
    pred: ArrayLike,
    target: ArrayLike,
    *,
    filtration: str = "superlevel",
    dims: Sequence[int] | None = None,
    boundary: str = "none",
    image_bars: str = "all",
    include_essential: bool = False,
) -> tuple[BettiMatching, ...]:
    """Match the topological features of a prediction with those of a target.

    Args:
        pred: finite values, probabilities as a rule, shape (H, W) or (D, H, W); computed in float32.
        target: values of the same shape, a binary mask as a rule.
        filtration: "superlevel" (features of the foreground), "sublevel" (of the background) or "bothlevels"
            (superlevel entries first, then sublevel).
        dims: dimensions wanted, each below the number of axes; all by default.
        boundary: "none", or a frame one voxel wide of "background" (0) or "foreground" (1) around both images; a frame
            voxel has a coordinate of -1 or n.
        image_bars: "all" matches as the published code does; "positive" only through non-empty image bars.
        include_essential: also give the birth voxels of the two infinite bars.

    Returns:
        One `BettiMatching` for each direction and dimension; rows are sorted lexicographically.

    Raises:
        ValueError: shapes differ, not 2 or 3 axes, an empty axis, NaN or infinite values, unknown option.

    Example:
        >>> target = np.zeros((3, 5))
        >>> target[1, [0, 4]] = 1
        >>> components, loops = betti_matching(0.8 * target, target)
        >>> components.matched.tolist()
        [[[1, 4], [0, 4], [1, 4], [0, 4]]]
    """
    first, second = (frame_images(x, boundary) for x in check_pair(pred, target, ("pred", "target")))
    wanted = check_dims(dims, first.ndim)
    positive = IMAGE_BARS[check_option(image_bars, "image_bars", tuple(IMAGE_BARS))]
    return tuple(
        _to_matching(match, dim, direction, first.shape, boundary)
        for direction in list_directions(filtration)
        for dim, match in match_direction(first, second, direction, wanted, positive, include_essential).items()
    )


class FlatMatching(NamedTuple):
    """As `BettiMatching`, with flat voxel indices of the framed grid in rows of 4, 2, 2 and 2, not yet sorted."""

    matched: NDArray[np.int64]
    unmatched_pred: NDArray[np.int64]
    unmatched_target: NDArray[np.int64]
    essential: NDArray[np.int64]


def match_direction(
    pred: NDArray[np.float32],
    target: NDArray[np.float32],
    direction: str,
    dims: tuple[int, ...],
    positive: bool,
    include_essential: bool,
) -> dict[int, FlatMatching]:
    """Match two checked and framed images in one direction, by dimension."""
    u, t = ascending(pred, direction), ascending(target, direction)
    oldest = np.array([[u.argmin(), t.argmin()]], np.int64)
    result = {}
    for dim, (bars_u, bars_t, rows) in pair_images(u, t, pred.shape, dims, positive).items():
        matched = np.concatenate((bars_u[rows[:, 0]], bars_t[rows[:, 1]]), axis=1)
        rest = _leave_out(bars_u, rows[:, 0]), _leave_out(bars_t, rows[:, 1])
        result[dim] = FlatMatching(matched, *rest, oldest[: int(include_essential and dim == 0)])
    return result


def _leave_out(bars: NDArray[np.int64], rows: NDArray[np.int32]) -> NDArray[np.int64]:
    keep = np.ones(len(bars), np.bool_)
    keep[rows] = False
    return bars[keep]


def _to_matching(flat: FlatMatching, dim: int, direction: str, shape: tuple[int, ...], boundary: str) -> BettiMatching:
    return BettiMatching(dim, direction, *(to_coordinates(voxels, shape, boundary) for voxels in flat))
