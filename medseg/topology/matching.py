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
    sort_rows,
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
        for dim, match in match_direction(
            first[None], second[None], direction, wanted, positive, include_essential
        ).items()
    )


class FlatMatching(NamedTuple):
    """As `BettiMatching` for a stack of images: indices into the flattened stack in rows of 4, 2, 2 and 2, sorted."""

    matched: NDArray[np.int64]
    unmatched_pred: NDArray[np.int64]
    unmatched_target: NDArray[np.int64]
    essential: NDArray[np.int64]


def match_direction(
    preds: NDArray[np.float32],
    targets: NDArray[np.float32],
    direction: str,
    dims: tuple[int, ...],
    positive: bool,
    include_essential: bool,
) -> dict[int, FlatMatching]:
    """Match checked and framed images (N, spatial...), N > 0, in one direction, by dimension."""
    us, ts = (ascending(images, direction) for images in (preds, targets))
    essential = np.zeros((0, 2), np.int64)
    if include_essential:
        essential = np.stack([us.argmin(1), ts.argmin(1)], 1) + np.arange(len(us))[:, None] * us.shape[1]
    found = pair_images(us, ts, preds.shape[1:], dims, positive)
    return {
        dim: FlatMatching(
            sort_rows(bars.matched),
            sort_rows(bars.unmatched_u),
            sort_rows(bars.unmatched_t),
            essential if dim == 0 else essential[:0],
        )
        for dim, bars in found.items()
    }


def _to_matching(flat: FlatMatching, dim: int, direction: str, shape: tuple[int, ...], boundary: str) -> BettiMatching:
    return BettiMatching(dim, direction, *(to_coordinates(voxels, shape, boundary) for voxels in flat))
