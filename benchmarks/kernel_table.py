"""Measure the contenders of a benchmark in turn, each in a process of its own, and make a table of ratios to a peer."""

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

PROGRAM = Path(__file__).with_name("kernel_process.py")
RATIOS = {"seconds": "time", "processor_seconds": "processor", "growth_bytes": "memory"}
PACKAGES = ("monai", "numba", "numpy", "torch", "triton")


def run_benchmark(name: str, benchmark: Any, arguments: Sequence[str] | None = None) -> None:
    """Read the command line, measure, and write `name`.json and `name`.md.

    Args:
        name: the benchmark's module.
        benchmark: what `kernel_process.py` says, and PEER, the contender that ratios are to.
        arguments: command line; by default that of the process.
    """
    parser = argparse.ArgumentParser(
        description=benchmark.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names, cases = list(benchmark.CONTENDERS), list(benchmark.CASES)
    parser.add_argument("--cases", nargs="+", choices=cases, default=cases, metavar="CASE", help=", ".join(cases))
    parser.add_argument("--contenders", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--threads", nargs="+", type=int, default=[2])
    parser.add_argument("--repeats", type=int, default=5, help="runs in a process, whose median counts")
    parser.add_argument("--rounds", type=int, default=3, help="processes a contender, whose median counts")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    runs = measure(name, options)
    rows = summarise(runs, benchmark.PEER)
    table = markdown_table(rows, benchmark.PEER)
    if not torch.cuda.is_available():
        table += "\n- GPU: not measured (no CUDA device)\n"
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"summary": rows, "runs": runs, "command": sys.argv, "machine": describe_machine(PACKAGES)}
    (options.output / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (options.output / f"{name}.md").write_text(table, encoding="utf-8")
    print(table)


def measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all contenders in turn on every case, so that a change of the machine's load meets all of them."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for case in options.cases:
            for threads in options.threads:
                for number in range(options.rounds):
                    for contender in options.contenders:
                        text = f"{case}, {threads} threads, round {number + 1} of {options.rounds}: {contender}"
                        print(text, file=sys.stderr, flush=True)
                        command = [name, contender, case, str(threads), str(options.repeats)]
                        key = {"case": case, "threads": threads, "contender": contender}
                        runs.append(key | run_program(PROGRAM, command, Path(folder)))
    return runs


def summarise(runs: Sequence[Mapping[str, Any]], peer: str) -> list[dict[str, Any]]:
    """One row for each case, number of threads and contender: medians over processes, and ratios to the peer."""
    rows = []
    for key in dict.fromkeys((run["case"], run["threads"], run["contender"]) for run in runs):
        mine = [run for run in runs if (run["case"], run["threads"], run["contender"]) == key]
        rows.append(
            dict(zip(("case", "threads", "contender"), key, strict=True))
            | {
                "seconds": median(median(run["seconds"]) for run in mine),
                "processor_seconds": median(median(run["processor_seconds"]) for run in mine),
                "growth_bytes": median(run["growth_bytes"] for run in mine),
                "value": mine[0]["value"],
            }
        )
    for row in rows:
        base = [r for r in rows if (r["case"], r["threads"], r["contender"]) == (row["case"], row["threads"], peer)]
        row["ratios"] = {k: row[k] / base[0][k] for k in RATIOS} if base else {}
    return rows


def markdown_table(rows: Sequence[Mapping[str, Any]], peer: str) -> str:
    """The summary as a Markdown table."""
    head = ["case", "threads", "contender", "ms", "MB", *(f"{name} / {peer}" for name in RATIOS.values()), "value"]
    lines = ["| " + " | ".join(head) + " |", "|---|---:|---|" + "---:|" * (len(RATIOS) + 3)]
    for row in rows:
        cells = [row["case"], str(row["threads"]), row["contender"]]
        cells += [f"{1e3 * row['seconds']:.0f}", f"{row['growth_bytes'] / 1e6:.0f}"]
        cells += [f"{row['ratios'][k]:.2f}" if row["ratios"] else "" for k in RATIOS]
        lines.append("| " + " | ".join([*cells, f"{row['value']:.6g}"]) + " |")
    return "\n".join(lines) + "\n"
