"""Which data to train on: distance to prototypes, and the random subsets that any selection has to beat.

    difficulty of a sample    distance of its feature vector to the nearest centroid of k-means
    keep the hardest          when data are plentiful; the easiest when they are scarce

k of about the number of classes; the result hardly depends on it. A share of every group (class, site) stays, at least
`floor` of its fair one. Features come from an encoder, such as pooled bottleneck features of each volume.

Sources: Sorscher et al., "Beyond neural scaling laws: beating power law scaling via data pruning" (2022), for
prototypes; Okanovic et al., "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning" (2023), for RS2:
a fresh random share of the data in every epoch, without replacement across epochs, with a schedule that fits the fewer
steps.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.cluster import vq
from torch.utils.data import Sampler

_FEW = 50


def prototype_difficulty(
    features: ArrayLike, n_clusters: int = 1, *, metric: str = "cosine", n_init: int = 5, seed: int = 0
) -> np.ndarray:
    """Distance of every sample to the nearest prototype.

    Args:
        features: a vector for each sample, (n, d).
        n_clusters: number of prototypes, 1 to n; about the number of classes.
        metric: `cosine` (vectors scaled to length 1 first) or `euclidean`.
        n_init: starts of k-means; the one with the least spread is taken.
        seed: seed of the starts.

    Returns:
        Distances (n,): large is hard.

    Raises:
        ValueError: features are not a finite table, the metric is unknown, or there are more clusters than samples.

    Example:
        >>> prototype_difficulty([[0.0, 0.0], [0.0, 2.0], [0.0, 4.0]], metric="euclidean").tolist()
        [2.0, 0.0, 2.0]
    """
    table = np.asarray(features, dtype=np.float64)
    if table.ndim != 2 or not np.isfinite(table).all():
        raise ValueError(f"features must be a finite table (samples, values), got shape {table.shape}")
    if not 1 <= n_clusters <= len(table):
        raise ValueError(f"n_clusters must be 1 to the {len(table)} samples, got {n_clusters}")
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric must be cosine or euclidean, got {metric!r}")
    if metric == "cosine":
        table = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    random = np.random.default_rng(seed)
    found = [_cluster(table, n_clusters, random) for _ in range(max(1, n_init))]
    nearest = min((_squares(table, centres).min(1) for centres in found), key=lambda squares: squares.sum())
    return np.sqrt(nearest)


def select_subset(
    scores: ArrayLike,
    fraction: float,
    *,
    keep: str = "auto",
    groups: Sequence[object] | None = None,
    floor: float = 0.5,
) -> np.ndarray:
    """Indices of the samples to keep.

    Args:
        scores: difficulty of every sample, (n,).
        fraction: share to keep, in (0, 1].
        keep: `hard`, `easy`, or `auto`: easy below 50 samples, else hard.
        groups: group of each sample, such as its site or class; None for one group.
        floor: every group keeps at least this share of `fraction` of its samples.

    Returns:
        Indices in ascending order; ties go to the lower index.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> select_subset([0.1, 0.9, 0.5, 0.7], 0.5, keep="hard").tolist()
        [1, 3]
    """
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError("scores must be finite numbers in one dimension, at least one")
    if not 0 < fraction <= 1 or not 0 <= floor <= 1:
        raise ValueError(f"fraction must lie in (0, 1] and floor in [0, 1], got {fraction!r} and {floor!r}")
    if keep not in ("hard", "easy", "auto"):
        raise ValueError(f"keep must be hard, easy or auto, got {keep!r}")
    if groups is not None and len(groups) != len(values):
        raise ValueError(f"groups must be as long as scores, got {len(groups)} and {len(values)}")
    easy = keep == "easy" or (keep == "auto" and len(values) < _FEW)
    order = np.argsort(values if easy else -values, kind="stable")
    total = max(1, round(fraction * len(values)))
    kept = np.zeros(len(values), dtype=bool)
    if groups is not None:
        names = np.array([str(g) for g in groups])
        for name in np.unique(names):
            members = order[names[order] == name]
            kept[members[: round(floor * fraction * len(members))]] = True
    kept[order[~kept[order]][: max(0, total - int(kept.sum()))]] = True
    return np.flatnonzero(kept)


class RepeatedSubsetSampler(Sampler[int]):
    """Visit a fresh random share of the data in every epoch (RS2).

    Args:
        n: number of samples.
        fraction: share to visit in an epoch, in (0, 1].
        replacement: draw each epoch's share from all data; by default consecutive chunks of one shuffled order are
            taken, so that all data are seen before any is seen again.
        seed: seed of all orders.
        stratify: group of each sample; each epoch then holds the same share of every group. None for one group.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> sampler = RepeatedSubsetSampler(n=4, fraction=0.5)
        >>> first = list(sampler)
        >>> sampler.set_epoch(1)
        >>> sorted(first + list(sampler))
        [0, 1, 2, 3]
    """

    def __init__(
        self,
        n: int,
        fraction: float,
        replacement: bool = False,
        seed: int = 0,
        stratify: Sequence[object] | None = None,
    ) -> None:
        if n < 1 or not 0 < fraction <= 1:
            raise ValueError(f"n must be at least 1 and fraction in (0, 1], got {n} and {fraction!r}")
        if stratify is not None and len(stratify) != n:
            raise ValueError(f"stratify must name a group for each of the {n} samples, got {len(stratify)}")
        names = [""] * n if stratify is None else [str(group) for group in stratify]
        self.groups = [[i for i in range(n) if names[i] == name] for name in dict.fromkeys(names)]
        self.fraction, self.replacement, self.seed, self.epoch = fraction, replacement, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose share comes next; a resumed run sees what it would have seen."""
        self.epoch = int(epoch)

    def __len__(self) -> int:
        return sum(map(self._size, self.groups))

    def __iter__(self) -> Iterator[int]:
        chosen = [i for number, group in enumerate(self.groups) for i in self._choose(number, group)]
        order = self._permute((self.seed, self.epoch, len(self.groups)), len(chosen))
        return iter([chosen[i] for i in order])

    def _size(self, group: list[int]) -> int:
        return max(1, round(self.fraction * len(group)))

    def _choose(self, number: int, group: list[int]) -> list[int]:
        """The epoch's share of a group."""
        size, count = self._size(group), len(group)
        if self.replacement:
            return [group[i] for i in self._permute((self.seed, self.epoch, number), count)[:size]]
        # The endless sequence of shuffled orders, cut into shares: position p lies in order p // count.
        positions = range(self.epoch * size, (self.epoch + 1) * size)
        orders = {p // count for p in positions}
        shuffled = {at: self._permute((self.seed, at, number), count) for at in orders}
        return [group[shuffled[p // count][p % count]] for p in positions]

    def _permute(self, key: tuple[int, ...], count: int) -> list[int]:
        seed = int(np.random.SeedSequence(key).generate_state(1)[0])
        return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()


def _cluster(table: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # where samples coincide: a cluster left empty, a distance of 0
        centres, _ = vq.kmeans2(table, count, iter=100, minit="++", seed=random)  # pyright: ignore[reportCallIssue]
    return centres


def _squares(table: np.ndarray, centres: np.ndarray) -> np.ndarray:
    return ((table[:, None] - centres[None]) ** 2).sum(-1)
