"""Time and memory of the MIP loss beside its eager formulation, and on a GPU of the projections alone, in one run.

Every measurement is a process of its own; contenders take turns. See README.md in this folder.

    python benchmarks/projection.py --threads 1 2 --repeats 7 --rounds 3 -o benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from inference_process import run_program
from own_process import describe_machine
from projection_contenders import CASES

PROGRAM = Path(__file__).with_name("projection_contenders.py")
PACKAGES = ("numpy", "torch", "triton")
# Each of ours beside its eager formulation.
PARTS = {"cpu": ("eager loss", "medseg loss"), "cuda": ("eager projections", "medseg projections")}
GPU_CASE = "2 x 2 x 192^3"


def measure(
    device: str, cases: Sequence[str], threads: Sequence[int], repeats: int, rounds: int
) -> list[dict[str, Any]]:
    """Run both contenders of a device in turn on every case."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            for count in threads:
                for number in range(rounds):
                    for contender in PARTS[device]:
                        _say(f"{case}, {device}, {count} threads, round {number + 1} of {rounds}: {contender}")
                        found = run_program(PROGRAM, [contender, case, device, str(count), str(repeats)], Path(folder))
                        key = {"case": case, "device": device, "threads": count, "contender": contender}
                        runs.append(key | found)
    return runs


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each case and number of threads: medians over processes of both sides, and ours divided by eager."""
    rows = []
    for key in dict.fromkeys((run["case"], run["device"], run["threads"]) for run in runs):
        mine = [run for run in runs if (run["case"], run["device"], run["threads"]) == key]
        eager, ours = (_middle([run for run in mine if run["contender"] == name]) for name in PARTS[key[1]])
        row = dict(zip(("case", "device", "threads"), key, strict=True)) | {"eager": eager, "medseg": ours}
        row["ratios"] = {name: ours[name] / eager[name] for name in ("forward", "backward", "seconds", "growth_bytes")}
        row["value_difference"] = abs(ours["value"] - eager["value"]) / abs(eager["value"])
        rows.append(row)
    return rows


def _middle(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Medians over processes of the medians within each."""
    passes = {name: median(median(run[name]) for run in runs) for name in ("forward", "backward")}
    seconds = median(median(map(sum, zip(run["forward"], run["backward"], strict=True))) for run in runs)
    growth = median(run["growth_bytes"] for run in runs)
    return passes | {"seconds": seconds, "growth_bytes": growth, "value": runs[0]["value"]}


def markdown_table(rows: Sequence[Mapping[str, Any]], not_measured: Mapping[str, str]) -> str:
    """The summary as a Markdown table, and what was not measured."""
    head = ["case", "device", "threads", "eager, ms", "medseg, ms", "eager, MB", "medseg, MB"]
    head += ["forward / eager", "backward / eager", "time / eager", "memory / eager", "results differ by"]
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for row in rows:
        sides, ratios = (row["eager"], row["medseg"]), row["ratios"]
        cells = [row["case"], row["device"], str(row["threads"])]
        cells += [f"{1e3 * side['seconds']:.3g}" for side in sides]
        cells += [f"{side['growth_bytes'] / 1e6:.1f}" for side in sides]
        cells += [f"{ratios[name]:.2f}" for name in ("forward", "backward", "seconds", "growth_bytes")]
        lines.append("| " + " | ".join([*cells, f"{row['value_difference']:.0e}"]) + " |")
    return "\n".join([*lines, "", *(f"- {what}: not measured ({why})" for what, why in not_measured.items())]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = [case for case in CASES if case != GPU_CASE]
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases, metavar="CASE", help=", ".join(cases))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7, help="runs in a process, whose median counts")
    parser.add_argument("--rounds", type=int, default=3, help="processes a contender, whose median counts")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    runs = measure("cpu", options.cases, options.threads, options.repeats, options.rounds)
    not_measured = {}
    if torch.cuda.is_available():
        runs += measure("cuda", [GPU_CASE], [1], options.repeats, options.rounds)
    else:
        not_measured[f"GPU, projections alone, {GPU_CASE}, bfloat16"] = "no CUDA device"
    rows = summarise(runs)
    table = markdown_table(rows, not_measured)
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"summary": rows, "not_measured": not_measured, "runs": runs, "command": sys.argv}
    text = json.dumps(content | {"machine": describe_machine(PACKAGES)}, indent=2, allow_nan=False)
    (options.output / "projection.json").write_text(text + "\n", encoding="utf-8")
    (options.output / "projection.md").write_text(table, encoding="utf-8")
    print(table)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
