"""Time and memory of the Betti matching loss beside topolosses, and of one barcode beside gudhi, in one run.

Every measurement is a process of its own, held to as many processors as threads are compared; contenders take turns.
See README.md in this folder.

    python benchmarks/topology.py --cases "256^2" "48^3" --threads 1 2 --repeats 3 -o benchmarks/results
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from inference_process import run_program
from own_process import describe_machine
from topology_contenders import CASES, CONTENDERS

PROGRAM = Path(__file__).with_name("topology_contenders.py")
PACKAGES = ("topolosses", "gudhi", "numba", "numpy", "torch")
NEEDS = {"topolosses": "topolosses", "gudhi barcode": "gudhi"}
# Each of ours beside the peer that does the same.
PEERS = {"medseg": "topolosses", "medseg barcode": "gudhi barcode"}


def run_once(contender: str, case: str, threads: int, repeats: int, folder: Path) -> dict[str, Any]:
    """Run a contender once in a fresh process.

    Raises:
        RuntimeError: it failed; the text is the last thing it said.
    """
    found = run_program(PROGRAM, [contender, case, str(threads), str(repeats)], folder)
    return {"contender": contender, "case": case, "threads": threads, **found}


def measure(
    contenders: Sequence[str], cases: Sequence[str], threads: Sequence[int], repeats: int, rounds: int
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run all contenders in turn on every case.

    Returns:
        All runs, and why a contender was not run.
    """
    runs: list[dict[str, Any]] = []
    not_run = {c: f"{NEEDS[c]} is not installed" for c in contenders if c in NEEDS and not find_spec(NEEDS[c])}
    with tempfile.TemporaryDirectory() as folder:
        for case in cases:
            for count in threads:
                for number in range(rounds):
                    for contender in contenders:
                        if contender in not_run or (count > 1 and contender.endswith("barcode")):
                            continue
                        _say(f"{case}, {count} threads, round {number + 1} of {rounds}: {contender}")
                        try:
                            runs.append(run_once(contender, case, count, repeats, Path(folder)))
                        except RuntimeError as error:
                            not_run[contender] = str(error)
    return runs, not_run


def measure_first_call() -> str:
    """Time the imports and the first calls with an empty and with a filled cache of compiled code, as a table."""
    lines = ["| cache | imports, s | first image, s | first volume, s |", "|---|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NUMBA_CACHE_DIR"] = str(Path(folder) / "cache")
        for cache in ("empty", "filled"):
            first = run_once("medseg", next(iter(CASES)), 1, 1, Path(folder))["first"]
            lines.append(f"| {cache} | " + " | ".join(f"{seconds:.2f}" for seconds in first.values()) + " |")
    return "\n".join(lines) + "\n"


def summarise(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Medians over rounds of each contender, case and number of threads, and the ratios to its peer."""
    rows = []
    for key in dict.fromkeys((run["case"], run["threads"], run["contender"]) for run in runs):
        mine = [run for run in runs if (run["case"], run["threads"], run["contender"]) == key]
        row: dict[str, Any] = dict(zip(("case", "threads", "contender"), key, strict=True))
        row["seconds"] = median(median(run["seconds"]) for run in mine)
        row |= {name: median(run[name] for run in mine) for name in ("growth_bytes", "peak_bytes")}
        row["first"] = median(sum(run["first"].values()) for run in mine)
        rows.append(row | {"rounds": len(mine), "loss": mine[0]["loss"]})
    for row in rows:
        name = PEERS.get(row["contender"])
        wanted = (row["case"], row["threads"], name)
        peer = next((r for r in rows if (r["case"], r["threads"], r["contender"]) == wanted), None)
        row["ratios"] = peer and {
            "peer": name,
            **{key: row[key] / peer[key] if peer[key] else None for key in ("seconds", "growth_bytes", "peak_bytes")},
            "loss_difference": None if math.isnan(row["loss"]) else abs(row["loss"] - peer["loss"]) / abs(peer["loss"]),
        }
    return rows


def markdown_table(rows: Sequence[Mapping[str, Any]], not_run: Mapping[str, str]) -> str:
    """The summary as a Markdown table, and why a contender is missing."""
    head = ["case", "threads", "contender", "seconds", "memory, MB", "time / peer", "memory / peer", "loss differs by"]
    lines = ["| " + " | ".join(head) + " |", "|---|---:|---|" + "---:|" * 5]
    for row in rows:
        ratios = row["ratios"] or {}
        cells = [row["case"], str(row["threads"]), row["contender"], f"{row['seconds']:.4f}"]
        cells += [f"{row['growth_bytes'] / 1e6:.1f}"]
        cells += [_number(ratios.get(key), ".2f") for key in ("seconds", "growth_bytes")]
        lines.append("| " + " | ".join([*cells, _number(ratios.get("loss_difference"), ".0e")]) + " |")
    return "\n".join([*lines, "", *(f"- {name}: not run ({why})" for name, why in not_run.items())]).rstrip() + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3, help="runs in a process, whose median counts")
    parser.add_argument("--rounds", type=int, default=3, help="processes a contender, whose median counts")
    parser.add_argument("--first-call", action="store_true", help="time medseg's compilation instead, and stop")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args(arguments)
    if options.first_call:
        print(measure_first_call())
        return
    runs, not_run = measure(options.contenders, options.cases, options.threads, options.repeats, options.rounds)
    rows = summarise(runs)
    table = markdown_table(rows, not_run)
    options.output.mkdir(parents=True, exist_ok=True)
    content = {
        "summary": rows,
        "not_run": not_run,
        "runs": runs,
        "environment": describe_machine(PACKAGES),
        "command": sys.argv,
    }
    text = json.dumps(_strict(content), indent=2, allow_nan=False)
    (options.output / "topology.json").write_text(text + "\n", encoding="utf-8")
    (options.output / "topology.md").write_text(table, encoding="utf-8")
    print(table)


def _strict(value: Any) -> Any:
    """NaN has no place in JSON."""
    if isinstance(value, Mapping):
        return {key: _strict(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None, style: str) -> str:
    return "-" if value is None else format(value, style)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
