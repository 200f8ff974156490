"""Compare methods pair by pair, image by image and seed by seed: records in, a table and a figure out.

A record is what one run of one method left: {"set", "method", "seed", "cases": {image: {metric: value}}}. For each set
and metric, with d = value of the method - value of the baseline for the same image and the same seed,

    difference = mean of d,    interval = 2.5th to 97.5th percentile of that mean when images and seeds are both drawn
                               anew, crossed: the runs of one seed share their weights, those of one image its pixels

The Wilcoxon signed-rank p looks at all pairs as if they were independent, which they are not: read it as a lower bound.
It is not corrected for the number of tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from medseg.data import atomic_path
from medseg.engines.case_statistics import compare_paired

Record = Mapping[str, Any]
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def compare_methods(
    records: Sequence[Record], *, baseline: str, larger_is_better: Mapping[str, bool], resamples: int = 5000
) -> list[dict[str, Any]]:
    """Give one row for each set, metric and method: its mean, and its paired difference to the baseline."""
    rows = []
    for name in dict.fromkeys(r["set"] for r in records):
        here = [r for r in records if r["set"] == name]
        for metric, larger in larger_is_better.items():
            values = {m: _values(here, m, metric) for m in dict.fromkeys(r["method"] for r in here)}
            if any(np.isnan(v).all() for v in values.values()):
                continue  # a metric that this set does not have, such as cavities in 2D
            for method, value in values.items():
                row = {"set": name, "metric": metric, "method": method, "mean": float(np.nanmean(value))}
                paired = {} if method == baseline else _pair(value, values[baseline], larger, resamples)
                rows.append(row | paired)
    return rows


def _values(records: Sequence[Record], method: str, metric: str) -> np.ndarray:
    """Values of a method, shape (images, seeds); images and seeds in one order for all methods."""
    runs = sorted((r for r in records if r["method"] == method), key=lambda r: r["seed"])
    cases = sorted(runs[0]["cases"])
    return np.array([[run["cases"][case].get(metric, np.nan) for run in runs] for case in cases], float)


def _pair(value: np.ndarray, reference: np.ndarray, larger_is_better: bool, resamples: int) -> dict[str, Any]:
    found = compare_paired(value.ravel(), reference.ravel(), resamples=0)
    up, down = found.n_first_larger, found.n_second_larger
    better, worse = (up, down) if larger_is_better else (down, up)
    return {
        "difference": found.mean_difference,
        "ci95": crossed_interval(value - reference, resamples=resamples),
        "p_wilcoxon": found.p_wilcoxon,
        "pairs": found.n,
        "better": better,
        "worse": worse,
    }


def crossed_interval(difference: np.ndarray, *, resamples: int, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean of a table (images, seeds) when rows and columns are drawn anew, with replacement."""
    random = np.random.default_rng(seed)
    rows, columns = (random.multinomial(n, np.full(n, 1 / n), resamples) / n for n in difference.shape)
    means = np.einsum("ri,ij,rj->r", rows, difference, columns)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def markdown_table(
    rows: Sequence[Mapping[str, Any]],
    *,
    baseline: str,
    methods: Mapping[str, str],
    metrics: Mapping[str, str],
    digits: Mapping[str, int],
) -> str:
    """Write the rows as one Markdown table a set; `methods` and `metrics` give the names that readers see."""
    lines = []
    for name in dict.fromkeys(r["set"] for r in rows):
        here = [r for r in rows if r["set"] == name]
        lines += [f"### {name}", "", f"| metric | method | mean | difference to {methods[baseline]} (95 % interval) |"]
        lines[-1] += " Wilcoxon p | better / worse / equal |"
        lines.append("|---|---|---:|---:|---:|---:|")
        for row in here:
            cells = [metrics[row["metric"]], methods[row["method"]], *_cells(row, digits[row["metric"]])]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _cells(row: Mapping[str, Any], digits: int) -> list[str]:
    mean = f"{row['mean']:.{digits}f}"
    if "difference" not in row:
        return [mean, "", "", ""]
    low, high = row["ci95"]
    equal = row["pairs"] - row["better"] - row["worse"]
    return [
        mean,
        f"{row['difference']:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})",
        f"{row['p_wilcoxon']:.2g}",
        f"{row['better']} / {row['worse']} / {equal}",
    ]


def draw_differences(
    path: Path,
    records: Sequence[Record],
    *,
    baseline: str,
    methods: Mapping[str, str],
    metrics: Mapping[str, str],
    larger_is_better: Mapping[str, bool],
) -> bool:
    """Draw every paired difference as a dot, with the losing side of zero shaded; False where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    sets = list(dict.fromkeys(r["set"] for r in records))
    others = [m for m in methods if m != baseline]
    figure = Figure(figsize=(2.6 * len(metrics), 0.8 + 1.5 * len(sets)), layout="constrained")
    axes = figure.subplots(len(sets), len(metrics), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        axis.set_title(metrics[metric], fontsize=9)
    for line, name in zip(axes, sets, strict=True):
        here = [r for r in records if r["set"] == name]
        for axis, metric in zip(line, metrics, strict=True):
            reference = _values(here, baseline, metric)
            for height, method in enumerate(others):
                _strip(axis, (_values(here, method, metric) - reference).ravel(), height, _COLOURS[height % 6])
            axis.set_ylim(len(others) - 0.4, -0.6)
            _dress(axis, larger_is_better[metric], [methods[m] for m in others] if axis is line[0] else [])
        line[0].set_ylabel(name, fontsize=9)
    figure.supxlabel(f"difference to {methods[baseline]}, same image and seed; shaded: worse", fontsize=9)
    with atomic_path(path) as part:
        FigureCanvasAgg(figure).print_png(str(part))
    return True


def _strip(axis: Any, values: np.ndarray, height: int, colour: str) -> None:
    jitter = np.random.default_rng(0).uniform(-0.25, 0.25, len(values))
    axis.scatter(values, height + jitter, s=9, color=colour, alpha=0.6, linewidths=0)
    axis.plot([np.nanmean(values)] * 2, [height - 0.35, height + 0.35], color=colour, linewidth=2)


def _dress(axis: Any, larger_is_better: bool, names: Sequence[str]) -> None:
    reach = max(map(abs, axis.get_xlim()))
    axis.axvspan(*((-reach, 0) if larger_is_better else (0, reach)), color="0.93", zorder=0)
    axis.axvline(0, color="0.4", linewidth=0.8)
    axis.set_xlim(-reach, reach)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.tick_params(axis="x", labelsize=7)
