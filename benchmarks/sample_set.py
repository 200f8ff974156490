"""Time and memory of a training step on sets of segmentations, beside the published way, in one run.

Every measurement is a process of its own, held to as many processors as threads are compared; contenders take turns.
See README.md in this folder.

    python benchmarks/sample_set.py --rounds 3 --threads 1 -o benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from inference_process import run_program
from own_process import describe_machine
from sample_set_contenders import CASES, CONTENDERS

PROGRAM = Path(__file__).with_name("sample_set_contenders.py")
PACKAGES = ("geomloss", "torch", "scipy", "medseg")
MEASURED = ("seconds", "processor_seconds", "growth_bytes")


def run_once(contender: str, case: str, threads: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Run a contender once in a fresh process.

    Raises:
        RuntimeError: it failed; the text is the last thing it said.
    """
    found = run_program(PROGRAM, [contender, case, str(threads), str(repeats)], folder)
    return {"contender": contender, "case": case, "threads": threads, **found}


def measure(
    contenders: Sequence[str], cases: Sequence[str], threads: Sequence[int], repeats: int, rounds: int
) -> list[dict[str, Any]]:
    """Run all contenders in turn on every case."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            for count in threads:
                for number in range(rounds):
                    for contender in contenders:
                        _say(f"{case}, {count} threads, round {number + 1} of {rounds}: {contender}")
                        runs.append(run_once(contender, case, count, repeats, Path(folder)))
    return runs


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Medians over rounds of each contender, case and number of threads, and the ratios to the published way."""
    rows = []
    for key in dict.fromkeys((run["case"], run["threads"], run["contender"]) for run in runs):
        mine = [run for run in runs if (run["case"], run["threads"], run["contender"]) == key]
        row: dict[str, Any] = dict(zip(("case", "threads", "contender"), key, strict=True))
        for name in ("seconds", "processor_seconds"):
            row[name] = median(median(run[name]) for run in mine)
        row["growth_bytes"] = median(run["growth_bytes"] for run in mine)
        rows.append(row | {"rounds": len(mine), "loss": mine[0]["loss"]})
    for row in rows:
        own, _, distance = row["contender"].partition(" ")
        wanted = (row["case"], row["threads"], f"published {distance}")
        peer = next((r for r in rows if (r["case"], r["threads"], r["contender"]) == wanted), None)
        if own == "medseg" and peer is not None:
            row["ratios"] = {name: row[name] / peer[name] for name in MEASURED}
            row["loss_difference"] = abs(row["loss"] - peer["loss"]) / abs(peer["loss"])
    return rows


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The summary as a Markdown table."""
    lines = ["| case | threads | contender | seconds | processor seconds | memory, MB | time / published |"]
    lines[0] += " processor / published | memory / published | loss differs by |"
    lines.append("|---|---:|---|" + "---:|" * 7)
    for row in rows:
        cells = [row["case"], str(row["threads"]), row["contender"], f"{row['seconds']:.2f}"]
        cells += [f"{row['processor_seconds']:.2f}", f"{row['growth_bytes'] / 1e6:.0f}"]
        ratios = row.get("ratios")
        cells += [f"{ratios[name]:.2f}" for name in MEASURED] if ratios else ["-"] * 3
        cells.append(f"{row['loss_difference']:.0e}" if ratios else "-")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES)[:2], metavar="CASE")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--repeats", type=int, default=1, help="steps in a process, whose median counts")
    parser.add_argument("--rounds", type=int, default=3, help="processes a contender, whose median counts")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    if not find_spec("geomloss") and any(name.startswith("published") for name in options.contenders):
        parser.error("the published way needs geomloss: pip install geomloss, or choose --contenders of medseg alone")
    runs = measure(options.contenders, options.cases, options.threads, options.repeats, options.rounds)
    rows = summarise(runs)
    table = markdown_table(rows)
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"summary": rows, "runs": runs, "environment": describe_machine(PACKAGES), "command": sys.argv}
    (options.output / "sample_set.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (options.output / "sample_set.md").write_text(table, encoding="utf-8")
    print(table)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
