"""Betti matching of many image pairs at once, as flat indices that a loss can gather with.

Items are independent; stretches of them are spread over threads, since the compiled code releases Python's lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from medseg.topology._inputs import IMAGE_BARS, check_dims, check_option, check_pair, frame_images, list_directions
from medseg.topology.matching import FlatMatching, match_direction

Job = tuple[int, str]
Found = dict[int, FlatMatching]


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

    Example:
        >>> targets = np.zeros((2, 3, 5))
        >>> targets[:, 1, [0, 4]] = 1
        >>> found = betti_matching_batch(0.8 * targets, targets)
        >>> found.matched.voxels.tolist(), found.matched.item.tolist()
        ([[9, 4, 9, 4], [24, 19, 24, 19]], [0, 1])
    """
    pairs = check_pair(preds, targets, ("preds", "targets"), batch=True)
    first, second = (frame_images(x, boundary, batch=True) for x in pairs)
    wanted = check_dims(dims, first.ndim - 1)
    positive = IMAGE_BARS[check_option(image_bars, "image_bars", tuple(IMAGE_BARS))]
    threads = count_threads(num_threads)
    # Two stretches a thread, so that none waits long for another; more would cost more than they balance.
    length = -(-len(first) // (2 * threads)) if threads > 1 else len(first)
    jobs = [
        (start, direction) for start in range(0, len(first), length or 1) for direction in list_directions(filtration)
    ]

    def work(job: Job) -> Found:
        items = slice(job[0], job[0] + length)
        return match_direction(first[items], second[items], job[1], wanted, positive, include_essential)

    return _collect(jobs, _run(work, jobs, threads), first.shape[1:])


def count_threads(num_threads: int | None) -> int:
    """The number of threads asked for; by default the number of cores that the process may use."""
    if num_threads is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if num_threads < 1:
        raise ValueError(f"num_threads is {num_threads}; expected at least 1, or None for every core.")
    return num_threads


def _run(work: Callable[[Job], Found], jobs: list[Job], threads: int) -> list[Found]:
    """The answers to all jobs, in their order; this thread works as well, since the others take a moment to start."""
    answers: list[Found] = [{}] * len(jobs)
    waiting = iter(range(len(jobs)))

    def take_jobs() -> None:
        for i in waiting:
            answers[i] = work(jobs[i])

    helpers = min(threads, len(jobs)) - 1
    if helpers < 1:
        take_jobs()
        return answers
    with ThreadPoolExecutor(helpers) as pool:
        started = [pool.submit(take_jobs) for _ in range(helpers)]
        take_jobs()
        for one in started:
            one.result()
    return answers


def _collect(jobs: list[Job], results: list[Found], shape: tuple[int, ...]) -> BatchMatching:
    """Join the answers of all jobs, field by field; the voxels of each are sorted already, item by item."""
    voxels = int(np.prod(shape))
    parts = [(job, dim, flat) for job, found in zip(jobs, results, strict=True) for dim, flat in found.items()]
    tables = []
    for field, columns in enumerate((4, 2, 2, 2)):
        rows = [flat[field] + job[0] * voxels for job, _, flat in parts]
        counts = [len(r) for r in rows]
        joined = np.concatenate([np.zeros((0, columns), np.int64), *rows])
        item = joined[:, 0] // voxels
        dim = np.repeat(np.array([dim for _, dim, _ in parts], np.int64), counts)
        sublevel = np.repeat(np.array([job[1] == "sublevel" for job, _, _ in parts], np.bool_), counts)
        order = np.argsort((item * 2 + sublevel) * 3 + dim, kind="stable")
        tables.append(BarTable(joined[order], item[order], dim[order], sublevel[order]))
    return BatchMatching(shape, *tables)
