"""`medseg predict --nnunet` beside nnU-Net's own command: one trained folder, the same scans, what a user types.

    python benchmarks/nnunet.py MODEL_FOLDER SCANS --folds 0 --cases 12 -o benchmarks/results

Both commands run as processes of their own, with as many threads as each takes by itself, and once more on a single
scan; the difference of the two, divided by the number of further scans, is the time of a scan without start-up. Masks
are compared voxel by voxel. See README.md in this folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from inference_process import ROOT, run_measured
from nibabel.nifti1 import Nifti1Image
from own_process import describe_machine

PACKAGES = ("numpy", "torch", "monai", "nnunetv2", "openvino")
ENDING = "_0000.nii.gz"


def their_command(options: argparse.Namespace, scans: Path, output: Path, *, mirror: bool) -> list[str]:
    """What a user of nnU-Net types."""
    command = [str(Path(sys.executable).with_name("nnUNetv2_predict_from_modelfolder")), "-device", "cpu"]
    command += ["-i", str(scans), "-o", str(output), "-m", str(options.model), "-f", *options.folds.split(",")]
    command += ["-npp", str(options.workers), "-nps", str(options.workers)]
    return [*command, *([] if mirror else ["--disable_tta"])]


def our_command(options: argparse.Namespace, scans: Path, output: Path, *, mirror: bool) -> list[str]:
    """What a user of medseg types."""
    command = [sys.executable, "-m", "medseg", "predict", str(scans), "-o", str(output), "--device", "cpu"]
    command += ["--nnunet", str(options.model), "--folds", options.folds, "--engine", options.engine]
    return [*command, "--tta", "auto" if mirror else "none"]


COMMANDS = {"nnunet": their_command, "medseg": our_command}


def measure(options: argparse.Namespace, folder: Path, scans: Sequence[Path], *, mirror: bool) -> dict[str, Any]:
    """Run both commands in turn, on one scan and on all of them, after one run of ours that converts the network."""
    runs: dict[str, dict[str, list[dict[str, float]]]] = {name: {"one": [], "all": []} for name in COMMANDS}
    groups = {"one": scans[:1], "all": scans}
    first = run_command("medseg", options, folder, scans[:1], f"medseg_first_{mirror}", mirror=mirror)
    for number in range(options.rounds):
        for part, chosen in groups.items():
            for name in COMMANDS:
                output = f"{name}_{part}_{mirror}_{number}"
                runs[name][part].append(run_command(name, options, folder, chosen, output, mirror=mirror))
    theirs, ours = (folder / f"{name}_all_{mirror}_{options.rounds - 1}" for name in COMMANDS)
    return {"mirror": mirror, "first": first, "runs": runs, "scans": compare_folders(theirs, ours, scans)}


def run_command(
    name: str, options: argparse.Namespace, folder: Path, scans: Sequence[Path], output: str, *, mirror: bool
) -> dict[str, float]:
    """Run one of the commands to its end.

    Raises:
        RuntimeError: it failed; the text is the last thing it said.
    """
    print(f"{output}: {len(scans)} scans", file=sys.stderr, flush=True)
    inputs = _link(scans, folder / "scans")
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path, "MEDSEG_CACHE": str(folder / "cache")}
    command = COMMANDS[name](options, inputs, folder / output, mirror=mirror)
    found = run_measured(command, environment, folder / f"{output}.txt")
    if found.exit_code:
        raise RuntimeError(f"{name}: exit code {found.exit_code}: {found.last_line}")
    return {"wall": found.wall, "processor": found.processor, "peak": found.peak_bytes}


def compare_folders(theirs: Path, ours: Path, scans: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Compare the masks of every scan."""
    found = {}
    for scan in scans:
        case = scan.name.removesuffix(ENDING)
        found[case] = compare_masks(theirs / f"{case}.nii.gz", ours / f"{case}_0000_seg.nii.gz")
    return found


def compare_masks(theirs: Path, ours: Path) -> dict[str, Any]:
    """Dice of every label in either mask, voxels that differ, and how far the grids are apart in mm."""
    first, second = (Nifti1Image.from_filename(path) for path in (theirs, ours))
    if first.shape != second.shape:
        raise ValueError(f"{theirs} has shape {first.shape}, {ours} has {second.shape}")
    a, b = (np.asarray(image.dataobj) for image in (first, second))
    labels = [int(label) for label in np.union1d(a, b) if label]
    dice = {str(k): 2 * float(((a == k) & (b == k)).sum()) / float((a == k).sum() + (b == k).sum()) for k in labels}
    types = [str(image.get_data_dtype()) for image in (first, second)]
    apart = float(np.abs(np.asarray(first.affine) - np.asarray(second.affine)).max())
    return {"dice": dice, "differing": int((a != b).sum()), "voxels": int(a.size), "affine": apart, "types": types}


def summarise(setting: Mapping[str, Any], folds: str) -> dict[str, Any]:
    """Medians over rounds, and the agreement over all scans."""
    scans = setting["scans"].values()
    row: dict[str, Any] = {"folds": folds, "mirror": setting["mirror"], "scans": len(scans)}
    for name, parts in setting["runs"].items():
        for unit in ("wall", "processor"):
            one, every = (median(run[unit] for run in parts[part]) for part in ("one", "all"))
            row[f"{name}_{unit}"] = every
            row[f"{name}_{unit}_scan"] = (every - one) / (len(scans) - 1)
        row[f"{name}_peak"] = median(run["peak"] for run in parts["all"])
    row["first"] = setting["first"]["wall"]
    row["lowest_dice"] = min((d for scan in scans for d in scan["dice"].values()), default=None)
    row["differing"] = sum(scan["differing"] for scan in scans)
    row["voxels"] = sum(scan["voxels"] for scan in scans)
    row["affine"] = max(scan["affine"] for scan in scans)
    return row


def markdown_tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """The summary: times, then agreement."""
    head = ["folds", "mirroring", "scans", "what", "nnU-Net, s", "medseg, s", "ratio"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|---:|---|---:|---:|---:|"]
    units = {"wall": "whole command", "processor": "whole command, processor", "wall_scan": "a further scan"}
    for row in rows:
        for unit, title in (units | {"processor_scan": "a further scan, processor"}).items():
            theirs, ours = row[f"nnunet_{unit}"], row[f"medseg_{unit}"]
            cells = [row["folds"], _yes(row["mirror"]), str(row["scans"]), title]
            lines.append("| " + " | ".join([*cells, f"{theirs:.2f}", f"{ours:.2f}", f"{ours / theirs:.2f}"]) + " |")
    lines += ["", "| folds | mirroring | scans | lowest Dice of a label | voxels that differ | affines differ by |"]
    lines += ["|---|---|---:|---:|---:|---:|"]
    for row in rows:
        lowest = "no label" if row["lowest_dice"] is None else f"{row['lowest_dice']:.5f}"
        cells = [row["folds"], _yes(row["mirror"]), str(row["scans"]), lowest]
        lines.append(
            "| " + " | ".join([*cells, f"{row['differing']} of {row['voxels']}", f"{row['affine']:.0e}"]) + " |"
        )
    return "\n".join(lines) + "\n"


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"


def _link(scans: Sequence[Path], folder: Path) -> Path:
    """A folder with these scans alone, as both commands take a folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for scan in scans:
        (folder / scan.name).symlink_to(scan.resolve())
    return folder


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="trained folder, TRAINER__PLANS__CONFIGURATION")
    parser.add_argument("scans", type=Path, help=f"folder of scans of one channel, CASE{ENDING}")
    parser.add_argument("--folds", default="0", help="such as 0,1")
    parser.add_argument("--cases", type=int, default=12, help="how many of the scans, in order of their names")
    parser.add_argument("--mirror", choices=("no", "yes", "both"), default="both")
    parser.add_argument("--engine", default="auto", help="medseg's")
    parser.add_argument("--workers", type=int, default=3, help="nnU-Net's -npp and -nps; 3 is its own choice")
    parser.add_argument("--rounds", type=int, default=1, help="runs of a command, whose median counts")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    scans = sorted(options.scans.glob(f"*{ENDING}"))
    if len(scans) < 2:
        raise SystemExit(f"{options.scans} has {len(scans)} files *{ENDING}; at least 2 are needed")
    if options.cases < 2:
        raise SystemExit(f"--cases must be at least 2, got {options.cases}")
    scans = scans[: options.cases]
    mirrored = {"no": [False], "yes": [True], "both": [False, True]}[options.mirror]
    with tempfile.TemporaryDirectory() as folder:
        settings = [measure(options, Path(folder), scans, mirror=mirror) for mirror in mirrored]
    rows = [summarise(setting, options.folds) for setting in settings]
    table = markdown_tables(rows)
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"summary": rows, "settings": settings, "command": sys.argv, "machine": describe_machine(PACKAGES)}
    (options.output / "nnunet.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (options.output / "nnunet.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
