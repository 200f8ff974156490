"""What `adawac.py` leaves: the table of its records, the weights that were learned, and pictures of both."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from paired_comparison import compare_methods, draw_differences, markdown_table
from run_files import say, write_text

from medseg.data import atomic_path
from medseg.report import draw_sample_weights

METHODS = {
    "erm": "ERM",
    "trim-train": "trim-train",
    "trim-ratio": "trim-ratio",
    "acr": "ACR-only",
    "pseudo": "pseudo",
    "adawac": "AdaWAC",
    "aligned": "AdaWAC, aligned",
    "one-view": "ERM, one view",
}
SIX = tuple(METHODS)[:6]
METRICS = {"dice": "Dice", "hd95": "HD95 mm", "false_slices": "false slices"}
LARGER_IS_BETTER = {"dice": True, "hd95": False, "false_slices": False}
DIGITS = {"dice": 4, "hd95": 2, "false_slices": 3}
BASELINE = "erm"
EFFICIENCY = {"volumes-1": 1, "volumes-2": 2, "half-volume": 4, "full": 8}  # training volumes of subsets


def write_report(out: Path, records: list[dict[str, Any]]) -> Path:
    """Write the table as JSON and Markdown, what the weights learned, and the pictures."""
    rows = compare_methods(records, baseline=BASELINE, larger_is_better=LARGER_IS_BETTER)
    weights = [
        {
            "set": r["set"],
            "method": r["method"],
            "seed": r["seed"],
            "lambda": r["settings"]["lambda"],
            **r["course"][-1],
        }
        for r in records
        if r["course"]
    ]
    write_text(out / "results.json", json.dumps({"rows": rows, "weights": weights}, indent=1))
    table = markdown_table(rows, baseline=BASELINE, methods=METHODS, metrics=METRICS, digits=DIGITS)
    write_text(out / "results.md", f"{table}\n{weights_table(weights)}")
    try:
        draw_pictures(out, records, rows)
    except ImportError:
        say("pictures are left out: they need matplotlib (pip install matplotlib)")
    return out / "results.md"


def weights_table(weights: Sequence[dict[str, Any]]) -> str:
    """Learned weights at the end of training, means over the seeds."""
    lines = [
        "### Weights of supervision",
        "",
        "| set | method | lambda | dense | sparse | AUC, seed by seed |",
        "|---|---|---:|---:|---:|---|",
    ]
    for name, method in dict.fromkeys((w["set"], w["method"]) for w in weights):
        here = [w for w in weights if (w["set"], w["method"]) == (name, method)]
        means = " | ".join(f"{np.mean([w[f'{group}_mean'] for w in here]):.3f}" for group in ("dense", "sparse"))
        aucs = ", ".join(f"{w['auc']:.3f}" for w in here)
        lines.append(f"| {name} | {METHODS[method]} | {here[0]['lambda']:g} | {means} | {aucs} |")
    return "\n".join(lines) + "\n"


def draw_pictures(out: Path, records: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    """Differences of the six methods, the course of the weights, and Dice by the number of training volumes."""
    names = list(dict.fromkeys(r["set"] for r in records))
    for name in names:
        here = [r for r in records if r["set"] == name]
        course = next((r["course"] for r in here if r["method"] == "adawac" and r["seed"] == 0), [])
        if course:
            draw_sample_weights(out / f"weights-{name}.png", course, along="step")
    _draw_differences(out / "differences.png", records)
    draw_efficiency(out / "efficiency.png", rows)


def _draw_differences(path: Path, records: list[dict[str, Any]]) -> None:
    """Of the sets that have all six methods; where none has, of all sets with the methods that they share."""
    found = {name: {r["method"] for r in records if r["set"] == name} for name in {r["set"] for r in records}}
    shown = {name: methods for name, methods in found.items() if methods >= set(SIX)} or found
    methods = {m: METHODS[m] for m in SIX if all(m in have for have in shown.values())}
    draw_differences(
        path,
        [r for r in records if r["set"] in shown and r["method"] in methods],
        baseline=BASELINE,
        methods=methods,
        metrics={key: METRICS[key] for key in ("dice", "hd95")},
        larger_is_better=LARGER_IS_BETTER,
    )


def draw_efficiency(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Mean Dice by the number of training volumes, of the subsets that were run; none was, no picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    subsets = {f"hippocampus-unet-{name}": count for name, count in EFFICIENCY.items()}
    dice = [r for r in rows if r["metric"] == "dice" and r["set"] in subsets]
    if not dice:
        return
    figure = Figure(figsize=(4.4, 3.2), layout="constrained")
    axis: Any = figure.subplots()
    for method, colour in (("erm", "#d55e00"), ("adawac", "#0072b2")):
        points = sorted((subsets[r["set"]], r["mean"]) for r in dice if r["method"] == method)
        axis.plot([n for n, _ in points], [mean for _, mean in points], "o-", color=colour, label=METHODS[method])
    axis.set(xlabel="training volumes", ylabel="mean Dice of the test volumes", xscale="log")
    axis.set_xticks(list(EFFICIENCY.values()), [str(n) for n in EFFICIENCY.values()])
    axis.minorticks_off()
    axis.legend(fontsize=8)
    with atomic_path(path) as part:
        FigureCanvasAgg(figure).print_png(str(part))
