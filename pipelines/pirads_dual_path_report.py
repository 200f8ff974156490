"""Tables and figures of `pirads_dual_path.py`, from the records that its runs have left."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from paired_comparison import compare_methods, draw_differences, markdown_table
from run_files import say, write_text

from medseg.data import atomic_path
from medseg.data.zone_phantom import PROSTATE_ZONES

METHODS = {
    "single": "one path",
    "wide": "one wide path",
    "dual": "two paths",
    "dual-aux": "two paths, distances",
    "cot": "two paths, co-training",
    "cot-aux": "two paths, both",
}
METRICS = {
    **{f"dice_{zone}": f"Dice {zone}" for zone in PROSTATE_ZONES},
    **{f"mad_{zone}": f"distance {zone}, mm" for zone in PROSTATE_ZONES},
}
LARGER_IS_BETTER = {metric: metric.startswith("dice") for metric in METRICS}
DIGITS = {metric: 3 if metric.startswith("dice") else 2 for metric in METRICS}
Show = Callable[[str], tuple[np.ndarray, np.ndarray]]


def write_report(
    out: Path, records: list[dict[str, Any]], questions: Mapping[str, tuple[str, Sequence[str]]], show: Show
) -> Path:
    """Write a table for each question as JSON and Markdown, the differences and one phantom as figures.

    A question is a baseline and the methods set against it; `show` gives image and label of a phantom by its name.
    """
    tables, lines = {}, []
    for question, (baseline, methods) in questions.items():
        chosen = [r for r in records if r["method"] in methods]
        if not {baseline} < {r["method"] for r in chosen}:
            continue
        tables[question] = compare_methods(chosen, baseline=baseline, larger_is_better=LARGER_IS_BETTER)
        table = markdown_table(tables[question], baseline=baseline, methods=METHODS, metrics=METRICS, digits=DIGITS)
        lines.append(table.replace("### phantoms", f"### {question}"))
    agreement = [
        {k: r[k] for k in r if k in ("method", "seed", "weights") or k.startswith("disagreement")} for r in records
    ]
    content = {"tables": tables, "agreement": agreement, "settings": records[0]["settings"]}
    write_text(out / "results.json", json.dumps(content, indent=1))
    write_text(out / "results.md", "\n".join(lines) + "\n" + describe_agreement(agreement))
    shown = {m: METHODS[m] for m in METHODS if any(r["method"] == m for r in records)}
    names: dict[str, Any] = {"baseline": "single", "methods": shown, "metrics": METRICS}
    drawn = draw_differences(out / "differences.png", records, larger_is_better=LARGER_IS_BETTER, **names)
    if not (drawn and draw_zones(out, records, show)):
        say("the figures are left out: they need matplotlib (pip install matplotlib)")
    return out / "results.md"


def describe_agreement(rows: Sequence[dict[str, Any]]) -> str:
    """Disagreement on TZ after each stage, and the number of weights, as a Markdown table."""
    lines = ["### disagreement on TZ", "", "| method | seed | weights | after stage 1 | after stage 2 |"]
    lines.append("|---|---|---:|---:|---:|")
    for row in rows:
        values = [row.get(f"disagreement_after_stage_{stage}") for stage in (1, 2)]
        cells = ["" if value is None else f"{value:.4f}" for value in values]
        lines.append(f"| {METHODS[row['method']]} | {row['seed']} | {row['weights']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw_zones(out: Path, records: Sequence[dict[str, Any]], show: Show) -> bool:
    """Draw two slices of the first test phantom as every method labels them; False where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    name = next(iter(records[0]["cases"]))
    image, label = show(name)
    chosen = [r for r in records if r["seed"] == 0]
    found = [np.load(out / "runs" / f"{r['method']}-0-{r['folds'][0]}.npz")[name] for r in chosen]
    titles = ["image", "reference", *(METHODS[r["method"]] for r in chosen)]
    volumes = [image, label, *found]
    slices = [int((label == zone).sum(axis=(1, 2)).argmax()) for zone in (3, 4)]
    figure = Figure(figsize=(1.7 * len(volumes), 3.8), layout="constrained")
    for row, z in zip(figure.subplots(2, len(volumes)), slices, strict=True):
        for axis, title, volume in zip(row, titles, volumes, strict=True):
            options = {"cmap": "gray"} if title == "image" else {"cmap": "viridis", "vmin": 0, "vmax": 4}
            axis.imshow(volume[z, ::-1], **options)
            axis.set_axis_off()
            if z == slices[0]:
                axis.set_title(title, fontsize=7)
    figure.suptitle(f"{name}, seed 0: the slices with most of DPU and of AFS", fontsize=9)
    with atomic_path(out / "zones.png") as part:
        FigureCanvasAgg(figure).print_png(str(part))
    return True
