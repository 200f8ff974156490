"""Do small runs predict the large one? The Dice of all 145 hippocampus cases, from runs on at most 80.

    python pipelines/annotation_budget.py --data DIR --out DIR       5, 10, 20, 40, 80 and 145 cases, three draws
    python pipelines/annotation_budget.py --out DIR --quick          a few drawn volumes

Each draw shuffles the training cases, alike in both intensity groups, and trains on its first 5, 10, 20, 40 and 80, so
that subsets are nested, and on all. Network, initial weights (one a draw), number of crops and test cases are the same
for all sizes. The law

    1 - Dice = E + B cases^-beta

is fitted to the sizes up to 40 and up to 80; its 90 % intervals, for the mean of many runs and for one more run, are
set against what all cases give. The runs on all cases enter no fit. Loader, network, crops and training are those of
`normalization_choice.py`, at 2 mm; the method is `medseg.core.scaling.PowerLawOffset`.

Each run leaves DIR/runs/CASES-DRAW.json and is not repeated; runs.csv (for `medseg scaling annotation-budget`),
results.json, results.md and budget.png are written at the end.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from normalization_choice import (
    Budget,
    Cohort,
    build_network,
    draw_batches,
    load_hippocampus,
    load_phantoms,
    measure,
    train,
)
from run_files import read_record, say, write_text

from medseg.core.scaling import IdentifiabilityWarning, PowerLawOffset, ScalingFit
from medseg.report import draw_annotation_budget

BATCH = 2
Record = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """Which runs there are; the largest size is all cases, which no fit sees."""

    sizes: tuple[int, ...] = (5, 10, 20, 40, 80)
    draws: int = 3
    test_cases: int = 37


def order_cases(groups: Sequence[str], draw: int) -> list[int]:
    """Indices of all cases in the order of a draw: every beginning of it holds the groups in their shares."""
    random = np.random.default_rng(draw)
    names = np.array(groups)
    place = np.empty(len(names))
    for name in np.unique(names):
        members = random.permutation(np.flatnonzero(names == name))
        place[members] = (np.arange(len(members)) + random.random()) / len(members)
    return np.argsort(place, kind="stable").tolist()


def read_groups(data: Path, cohort: Cohort) -> list[str]:
    """Intensity group of every training case."""
    split = json.loads((data / "hippocampus_msd" / "splits.json").read_text(encoding="utf-8"))
    return [split["intensity_group"][sample.name] for sample in cohort.train]


def run(cohort: Cohort, budget: Budget, draw: int) -> Record:
    """Train on the cohort's training volumes and measure every test volume."""
    steps = budget.crops // BATCH
    network = build_network("instance", steps, budget, draw)
    rates = budget.learning_rate * (1 - (np.arange(steps) + 1) / steps)
    began = time.process_time()
    losses = train(network, draw_batches(cohort, budget, BATCH, draw), rates.tolist())
    cases = {sample.name: measure(network, sample) for sample in cohort.test}
    return {"cpu_seconds": round(time.process_time() - began, 1), "last_loss": losses[-1], "cases": cases}


def run_all(cohort: Cohort, groups: Sequence[str], plan: Plan, budget: Budget, folder: Path) -> list[Record]:
    """Run every size and draw; what an earlier call finished with the same settings is read instead."""
    records = []
    settings = json.loads(json.dumps(asdict(budget) | {"batch": BATCH, "test": [s.name for s in cohort.test]}))
    for draw in range(plan.draws):
        order = order_cases(groups, draw)
        for size in (*plan.sizes, len(order)):
            path = folder / f"{size}-{draw}.json"
            record = read_record(path, settings)
            if record is None:
                chosen = [cohort.train[i] for i in order[:size]]
                head = {"size": size, "draw": draw, "settings": settings}
                record = head | run(Cohort(chosen, cohort.test), budget, draw)
                write_text(path, json.dumps(record, indent=1))
                say(f"{size} cases, draw {draw}: Dice {mean_dice(record):.4f}")
            records.append(record)
    return records


def mean_dice(record: Record) -> float:
    return float(np.mean([case["dice"] for case in record["cases"].values()]))


def fit_law(records: Sequence[Record], most: int) -> ScalingFit:
    """The law of the runs on at most so many cases."""
    seen = [r for r in records if r["size"] <= most]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", IdentifiabilityWarning)  # the notes are reported
        return PowerLawOffset().fit([r["size"] for r in seen], [1 - mean_dice(r) for r in seen])


def compare(records: Sequence[Record], plan: Plan, most: int) -> dict[str, Any]:
    """What the law of the smaller runs says of all cases, and what they give."""
    fit = fit_law(records, most)
    largest = max(r["size"] for r in records)
    truth = [mean_dice(r) for r in records if r["size"] == largest]
    law, one = fit.predict(largest), fit.predict(largest, new_run=True)
    mean = float(np.mean(truth))
    return {
        "from_at_most": most,
        "predicted": 1 - float(law.mean[0]),
        "interval": [1 - float(law.upper[0]), 1 - float(law.lower[0])],
        "interval_of_one_run": [1 - float(one.upper[0]), 1 - float(one.lower[0])],
        "truth": mean,
        "truth_of_each_run": truth,
        "inside": bool(law.lower[0] <= 1 - mean <= law.upper[0]),
        "params": fit.params,
        "notes": list(fit.notes),
    }


def write_report(out: Path, records: Sequence[Record], plan: Plan) -> Path:
    """Write the table of runs, the comparison and the figure; give the path of the comparison."""
    rows = [f"{r['size']},{r['draw']},{mean_dice(r):.6f}" for r in records]
    largest = max(r["size"] for r in records)
    seen = [row for row, r in zip(rows, records, strict=True) if r["size"] < largest]
    write_text(out / "runs.csv", "\n".join(["cases,draw,dice", *seen]) + "\n")
    found = [compare(records, plan, most) for most in plan.sizes[-2:]]
    write_text(out / "results.json", json.dumps({"comparison": found, "runs": rows}, indent=1))
    lines = ["| cases | Dice of each draw | mean |", "|---:|---|---:|"]
    for size in (*plan.sizes, largest):
        dice = [mean_dice(r) for r in records if r["size"] == size]
        lines.append(f"| {size} | {', '.join(f'{d:.4f}' for d in dice)} | {np.mean(dice):.4f} |")
    lines += ["", f"| from at most | predicted for {largest} | 90 % interval | of one run | truth | inside |"]
    lines.append("|---:|---:|---|---|---:|---|")
    lines += [_line(row) for row in found]
    lines += ["", *(f"- up to {row['from_at_most']}: {note}" for row in found for note in row["notes"])]
    write_text(out / "results.md", "\n".join(lines).rstrip() + "\n")
    try:
        draw_annotation_budget(
            out / "budget.png",
            fit_law(records, plan.sizes[-1]),
            truth=(largest, found[-1]["truth"]),
            largest=2 * largest,
        )
    except ImportError as error:
        say(str(error))
    return out / "results.md"


def _line(row: dict[str, Any]) -> str:
    (low, high), (lowest, highest) = row["interval"], row["interval_of_one_run"]
    return (
        f"| {row['from_at_most']} | {row['predicted']:.4f} | {low:.4f} to {high:.4f} | {lowest:.4f} to {highest:.4f} "
        f"| {row['truth']:.4f} | {'yes' if row['inside'] else 'no'} |"
    )


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds hippocampus_msd/")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, tables and the figure")
    parser.add_argument("--crops", type=int, default=1600, help="training crops of every run")
    parser.add_argument("--draws", type=int, default=Plan.draws, help="how many draws of subsets, from 0 on")
    parser.add_argument("--threads", type=int, help="threads of the network; by default as torch chooses")
    parser.add_argument("--quick", action="store_true", help="few steps on a few drawn volumes, one draw")
    parsed = parser.parse_args(arguments)
    if parsed.data is None and not parsed.quick:
        parser.error("--data is needed for real images; without it, use --quick")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and print the path of the comparison."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.quick:
        plan, cohort = Plan(sizes=(1, 2, 3, 4, 6), draws=1, test_cases=2), load_phantoms(train=8)
        groups, budget = ["drawn"] * 8, Budget(crops=12, patch=(16, 16, 16), channels=(4, 8, 8))
    else:
        plan, budget = Plan(draws=options.draws), Budget(crops=options.crops)
        cohort = load_hippocampus(options.data, plan.test_cases)
        groups = read_groups(options.data, cohort)
    (options.out / "runs").mkdir(parents=True, exist_ok=True)
    records = run_all(cohort, groups, plan, budget, options.out / "runs")
    print(write_report(options.out, records, plan))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
