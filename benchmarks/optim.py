"""Time of an optimizer's step and memory of its state, beside torch's and pytorch_optimizer's, in one run.

Every measurement is a process of its own, held to as many processors as threads are compared; contenders take turns.
See README.md in this folder.

    python benchmarks/optim.py --threads 1 2 --rounds 3 -o benchmarks/results
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
from optim_contenders import CASES, CONTENDERS
from own_process import describe_machine

PROGRAM = Path(__file__).with_name("optim_contenders.py")
PACKAGES = ("torch", "pytorch_optimizer", "medseg")
FUSED = "torch AdamW, fused"
# Each of ours beside the implementation of the same rule that it is compared with, or torch's fused AdamW.
PEERS = {
    "medseg AdamP": "pytorch_optimizer AdamP, loop",
    "medseg AdamP, known": "pytorch_optimizer AdamP, loop",
    "medseg SGDP": "pytorch_optimizer SGDP, loop",
    "medseg Lion": "pytorch_optimizer Lion, loop",
    "medseg Lion, bfloat16": "pytorch_optimizer Lion, loop",
}


def run_once(contender: str, case: str, threads: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Run a contender once in a fresh process.

    Raises:
        RuntimeError: it failed; the text is the last thing it said.
    """
    found = run_program(PROGRAM, [contender, case, str(threads), str(repeats)], folder)
    return {"contender": contender, "case": case, "threads": threads, **found}


def measure(
    contenders: Sequence[str], case: str, threads: Sequence[int], repeats: int, rounds: int
) -> list[dict[str, Any]]:
    """Run all contenders in turn."""
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for count in threads:
            for number in range(rounds):
                for contender in contenders:
                    _say(f"{count} threads, round {number + 1} of {rounds}: {contender}")
                    runs.append(run_once(contender, case, count, repeats, Path(folder)))
    return runs


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Medians over rounds of each contender and number of threads, ratios of time, and bytes of state a weight."""
    rows = []
    for key in dict.fromkeys((run["threads"], run["contender"]) for run in runs):
        mine = [run for run in runs if (run["threads"], run["contender"]) == key]
        row: dict[str, Any] = dict(zip(("threads", "contender"), key, strict=True))
        row["seconds"] = median(median(run["seconds"]) for run in mine)
        row["growth_bytes"] = median(run["growth_bytes"] for run in mine)
        row["bytes_per_weight"] = sum(mine[0]["state"].values()) / mine[0]["weights"]
        rows.append(row | {"rounds": len(mine)})
    seconds = {(row["threads"], row["contender"]): row["seconds"] for row in rows}
    for row in rows:
        for name, peer in (("to_peer", PEERS.get(row["contender"])), ("to_fused", FUSED)):
            base = seconds.get((row["threads"], peer))
            row[name] = row["seconds"] / base if base else None
    return rows


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The summary as a Markdown table."""
    lines = [
        "| threads | optimizer | step, ms | time / loop of the same | time / fused AdamW | state, bytes a weight |"
    ]
    lines[0] += " memory of a step, MB |"
    lines.append("|---:|---|" + "---:|" * 5)
    for row in rows:
        ratios = ["-" if row[name] is None else f"{row[name]:.2f}" for name in ("to_peer", "to_fused")]
        cells = [str(row["threads"]), row["contender"], f"{1000 * row['seconds']:.0f}", *ratios]
        cells += [f"{row['bytes_per_weight']:.2f}", f"{row['growth_bytes'] / 1e6:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, default=next(iter(CASES)), help="size of the U-Net")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--repeats", type=int, default=9, help="steps in a process, whose median counts")
    parser.add_argument("--rounds", type=int, default=3, help="processes a contender, whose median counts")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    if not find_spec("pytorch_optimizer") and any("pytorch_optimizer" in name for name in options.contenders):
        parser.error("the peers need: pip install pytorch_optimizer, or choose --contenders of torch and medseg alone")
    runs = measure(options.contenders, options.case, options.threads, options.repeats, options.rounds)
    rows = summarise(runs)
    table = markdown_table(rows)
    options.output.mkdir(parents=True, exist_ok=True)
    content = {"summary": rows, "runs": runs, "environment": describe_machine(PACKAGES), "command": sys.argv}
    (options.output / "optim.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    (options.output / "optim.md").write_text(table, encoding="utf-8")
    print(table)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
