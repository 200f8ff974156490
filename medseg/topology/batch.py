"""Betti matching of many image pairs at once, as flat indices that a loss can gather with.

Items are independent; they are spread over threads, since the compiled code releases Python's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray


class BarTable(NamedTuple):
    """Bars of a whole batch, one row each; sorted by item, direction, dimension, then voxels.

    Attributes:
        voxels: (n, k) int64, indices into the flattened batch `framed.reshape(-1)`, where `framed` has shape
            (N, *BatchMatching.shape).
        item: (n,) int64, which of the N pairs.
        dim: (n,) int64, dimension of the bar.
        sublevel: (n,) bool, True for bars of the sublevel direction.
    """

    voxels: NDArray[np.int64]
    item: NDArray[np.int64]
    dim: NDArray[np.int64]
    sublevel: NDArray[np.bool_]


class BatchMatching(NamedTuple):
    """Matched and unmatched bars of a batch.

    Attributes:
        shape: spatial shape that the indices refer to: that of the input, two larger on every axis with a frame.
        matched: k = 4 columns: birth and death in the prediction, birth and death in the target.
        unmatched_pred: k = 2 columns: birth, death.
        unmatched_target: k = 2 columns: birth, death.
        essential: k = 2 columns: births of the infinite bars of prediction and target; no rows unless asked for.
    """

    shape: tuple[int, ...]
    matched: BarTable
    unmatched_pred: BarTable
    unmatched_target: BarTable
    essential: BarTable


def betti_matching_batch(
    preds: ArrayLike,
    targets: ArrayLike,
    *,
    filtration: str = "superlevel",
    dims: Sequence[int] | None = None,
    boundary: str = "none",
    image_bars: str = "all",
    include_essential: bool = False,
    num_threads: int | None = None,
) -> BatchMatching:
    """Match N pairs of images and return flat voxel indices.

    With a `boundary` the indices refer to images padded by one voxel on every side with 0 ("background")
    or 1 ("foreground"), for instance by `torch.nn.functional.pad(x, [1] * 2 * D, value=...)`; the padding itself is
    done here, so pass unpadded images.

    Args:
        preds: finite values, shape (N, H, W) or (N, D, H, W); items and classes share the first axis.
        targets: values of the same shape.
        filtration: as in `betti_matching`.
        dims: as in `betti_matching`.
        boundary: as in `betti_matching`.
        image_bars: as in `betti_matching`.
        include_essential: as in `betti_matching`.
        num_threads: threads over items; by default as many as the process may use cores, at most N.

    Returns:
        The bars of all items. The result does not depend on `num_threads`.

    Raises:
        ValueError: as `betti_matching`, or `num_threads` below 1.
    """
    raise NotImplementedError
