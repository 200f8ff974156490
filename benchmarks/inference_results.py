"""Agreement of masks, medians and ratios, and the table and picture that show them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

PEERS = ("monai", "nnunet")
# A voxel whose two best classes are closer than this in probability may fall either way by rounding.
NEAR_TIE = 1e-3


def compare_masks(mask: Path, reference: Path, margin: Path | None, classes: int) -> dict[str, Any]:
    """Compare a mask with the reference, voxel by voxel.

    Args:
        mask: mask of a contender.
        reference: mask of the reference.
        margin: how far the best class of the reference is ahead of the second, as `.npy`.
        classes: number of classes, background included.

    Returns:
        Dice of every class present in the reference, their smallest and mean, the share of voxels that differ, and
        the share of these that are near-ties (None without a margin, or where nothing differs).
    """
    import nibabel as nib

    images: list[Any] = [nib.load(p) for p in (mask, reference)]
    first, second = (np.asanyarray(image.dataobj).astype(np.int64) for image in images)
    if first.shape != second.shape:
        raise ValueError(f"{mask} has the shape {first.shape}, {reference} has {second.shape}")
    joint = np.bincount((first * classes + second).ravel(), minlength=classes**2).reshape(classes, classes)
    sizes = joint.sum(axis=0) + joint.sum(axis=1)
    present = [k for k in range(classes) if joint[:, k].any()]
    dice = {str(k): float(2 * joint[k, k] / sizes[k]) for k in present}
    different = first != second
    ties = None
    if margin is not None and different.any():
        ties = float((np.load(margin)[different] < NEAR_TIE).mean())
    return {
        "dice": dice,
        "dice_min": min(dice.values()),
        "dice_mean": float(np.mean(list(dice.values()))),
        "different": float(different.mean()),
        "near_ties_of_different": ties,
    }


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Medians of each contender and their ratios to the peers.

    The first round warms the disk and medseg's cache of converted networks; it is told apart, and enters the medians
    only where there is no other.
    """
    rows = []
    for name in dict.fromkeys(run["contender"] for run in runs):
        mine = [run for run in runs if run["contender"] == name]
        warm = [run for run in mine if run["round"] > 0] or mine
        row: dict[str, Any] = {"contender": name, "runs": len(warm), "warm": warm[0]["round"] > 0}
        row |= {key: median(run[key] for run in warm) for key in ("seconds", "wall", "peak_bytes")}
        row["parts"] = {part: median(run["parts"][part] for run in warm) for part in warm[0].get("parts") or {}}
        row["first"] = {key: mine[0][key] for key in ("seconds", "wall")} if mine[0]["round"] == 0 else None
        row["agreement"] = mine[0].get("agreement")
        rows.append(row)
    for row in rows:
        row["ratios"] = {
            peer["contender"]: {key: row[key] / peer[key] for key in ("seconds", "wall", "peak_bytes")}
            for peer in rows
            if peer["contender"] in PEERS
        }
    return rows


def markdown_table(networks: Mapping[str, Mapping[str, Any]]) -> str:
    """The summary as a Markdown table, a line for each network and contender, and why a contender is missing."""
    head = [
        "network", "contender", "case, s", "of it windows, s", "process, s", "first process, s", "peak, MB",
        "time / MONAI", "time / nnU-Net", "peak / MONAI", "peak / nnU-Net",
    ]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * 2 + "---:|" * (len(head) - 2)]
    missing = []
    for network, result in networks.items():
        lines += ["| " + " | ".join(_cells(network, row)) + " |" for row in result["summary"]]
        missing += [f"- {network}, {name}: not run ({reason})" for name, reason in result["not_run"].items()]
    return "\n".join([*lines, *([""] if missing else []), *missing]) + "\n"


def _cells(network: str, row: Mapping[str, Any]) -> list[str]:
    ratios, first = row["ratios"], row["first"]
    return [
        network,
        row["contender"],
        f"{row['seconds']:.1f}",
        _number(row["parts"].get("windows"), ".1f"),
        f"{row['wall']:.1f}",
        _number(first and first["wall"], ".1f"),
        f"{row['peak_bytes'] / 1e6:.0f}",
        *(_number(ratios.get(peer, {}).get("seconds"), ".2f") for peer in PEERS),
        *(_number(ratios.get(peer, {}).get("peak_bytes"), ".2f") for peer in PEERS),
    ]


def agreement_table(networks: Mapping[str, Mapping[str, Any]]) -> str:
    """How every mask compares with the peers', as a Markdown table."""
    lines = [
        "| network | mask | compared with | classes | lowest Dice | mean Dice | voxels differing | of them near-ties |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for network, result in networks.items():
        for row in result["summary"]:
            for reference, found in (row["agreement"] or {}).items():
                if reference == row["contender"]:
                    continue
                numbers = [
                    str(len(found["dice"])),
                    f"{found['dice_min']:.5f}",
                    f"{found['dice_mean']:.5f}",
                    f"{found['different']:.4%}",
                    _number(found["near_ties_of_different"], ".0%"),
                ]
                lines.append("| " + " | ".join([network, row["contender"], reference, *numbers]) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)


def draw_ratios(networks: Mapping[str, Mapping[str, Any]], path: Path, title: str) -> None:
    """Draw time and peak memory of every contender relative to the first peer that ran."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["contender"] for result in networks.values() for row in result["summary"]))
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 1.2 + 0.35 * len(names) * len(networks)), sharey=True)
    labels = [f"{network}  {row['contender']}" for network, r in networks.items() for row in r["summary"]]
    for panel, key, caption in zip(panels, ("seconds", "peak_bytes"), ("time", "peak memory"), strict=True):
        values, colours = [], []
        for result in networks.values():
            rows = result["summary"]
            base = next((row for row in rows if row["contender"] in PEERS), rows[0])
            values += [row[key] / base[key] for row in rows]
            colours += [f"C{names.index(row['contender']) % 10}" for row in rows]
        bars = panel.barh(labels, values, color=colours)
        panel.bar_label(bars, fmt="%.2f", padding=3)
        panel.axvline(1, color="grey", linewidth=0.8)
        panel.set_xlabel(f"{caption}, first peer = 1")
        panel.margins(x=0.15)
    panels[0].invert_yaxis()
    figure.suptitle(title)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
