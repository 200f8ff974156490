"""Weights that a loss learned for its training samples, told apart by how much label a sample holds.

A sample is label-dense if at least a given share of its voxels is foreground, else label-sparse. The area under the
curve (AUC) is the chance that a dense sample drawn at random leans more to supervision than a sparse one, ties counted
half: 0.5 says that the weights know nothing of the label, 1 that they tell both kinds apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from medseg.data import atomic_path

GROUPS = ("dense", "sparse")
_COLOURS = {"dense": "#0072b2", "sparse": "#d55e00"}
_QUANTILES = {"q25": 25, "median": 50, "q75": 75}


def summarise_sample_weights(weights: np.ndarray, dense: np.ndarray) -> dict[str, float]:
    """Describe the weights of supervision of both kinds of samples.

    Args:
        weights: weight of supervision of every sample, (n,); any number that grows with it, such as the logit, gives
            the same AUC and does not saturate.
        dense: whether each sample is label-dense, (n,).

    Returns:
        `{group}_samples`, `{group}_mean`, `{group}_q25`, `{group}_median`, `{group}_q75` for dense and sparse, and
        `auc`; nan where a group is empty.

    Raises:
        ValueError: the arrays differ in shape.

    Example:
        >>> found = summarise_sample_weights(np.array([0.9, 0.4, 0.1, 0.4]), np.array([True, True, False, False]))
        >>> found["dense_mean"], found["auc"]
        (0.65, 0.875)
    """
    weights, dense = np.asarray(weights, float), np.asarray(dense, bool)
    if weights.ndim != 1 or weights.shape != dense.shape:
        raise ValueError(f"weights and dense must have one shape (n,), got {weights.shape} and {dense.shape}")
    found: dict[str, float] = {}
    for group, members in (("dense", weights[dense]), ("sparse", weights[~dense])):
        found[f"{group}_samples"] = len(members)
        found[f"{group}_mean"] = float(members.mean()) if len(members) else np.nan
        for name, percent in _QUANTILES.items():
            found[f"{group}_{name}"] = float(np.percentile(members, percent)) if len(members) else np.nan
    n_dense, n_sparse = int(dense.sum()), int((~dense).sum())
    # Mann and Whitney's statistic over the number of pairs.
    pairs = rankdata(weights)[dense].sum() - n_dense * (n_dense + 1) / 2
    found["auc"] = float(pairs / (n_dense * n_sparse)) if n_dense and n_sparse else np.nan
    return found


def draw_sample_weights(path: str | Path, history: Sequence[Mapping[str, float]], *, along: str = "epoch") -> None:
    """Draw median and quartiles of both kinds of samples over the training, and the AUC, as PNG.

    Args:
        path: the file to write.
        history: what `summarise_sample_weights` gave, with the entry `along` in each.
        along: name of the horizontal axis.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # pyright: ignore[reportMissingImports]
        from matplotlib.figure import Figure  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError('drawing weights needs matplotlib; install it with: pip install "medseg[plot]"') from error
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axis: Any = figure.subplots()
    at = [row[along] for row in history]
    for group in GROUPS:
        low, middle, high = ([row[f"{group}_{name}"] for row in history] for name in _QUANTILES)
        axis.fill_between(at, low, high, color=_COLOURS[group], alpha=0.2, linewidth=0)
        last = int(history[-1][f"{group}_samples"]) if history else 0
        axis.plot(at, middle, color=_COLOURS[group], label=f"label-{group} ({last}): median, quartiles")
    axis.plot(at, [row["auc"] for row in history], color="0.4", linestyle=":", label="AUC")
    axis.set(xlabel=along, ylabel="weight of supervision", ylim=(-0.02, 1.02))
    axis.legend(fontsize=8, loc="best")
    with atomic_path(path) as part:
        FigureCanvasAgg(figure).print_png(str(part))
