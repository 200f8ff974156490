"""Which optimizer for a 3D U-Net: AdamW, SGD with Nesterov momentum, AdamP, Lion and FRUGAL at equal budget.

    python pipelines/optimizer_choice.py --data DIR --out DIR          head and body of the hippocampus
    python pipelines/optimizer_choice.py --out DIR --quick             a few drawn volumes, a minute

    adamw       torch's AdamW, which all are compared with
    sgd         SGD with Nesterov momentum 0.99, as nnU-Net trains
    adamp       AdamP, told which weights are scale-invariant
    lion        Lion
    frugal      FRUGAL, state for a quarter of the weights

Each method first trains once with each of its four learning rates on nine tenths of the training cases, and is
measured on the remaining tenth; the best rate is kept. Decay, momentum and all else are set beforehand and the same
throughout. With that rate it trains on all training cases, once a seed, and is measured on test volumes that tuning
never saw. Methods share the initial weights, the crops and their order, the number of steps and the shape of the
schedule (nnU-Net's polynomial). The last weights are measured. Images, crops and network are those of
`normalization_choice.py`.

Each run leaves DIR/runs/KIND-METHOD-NUMBER.json and is not repeated; results.json, results.md and differences.png are
written at the end.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from normalization_choice import (
    METRICS,
    Budget,
    Cohort,
    build_network,
    describe_settings,
    draw_batches,
    load_hippocampus,
    load_phantoms,
    mean_dice,
    measure,
)
from paired_comparison import compare_methods, draw_differences, markdown_table
from run_files import read_record, say, write_text
from torch import nn

from medseg.core.optim import AdamP, FrugalAdamW, Lion, decay_groups, scale_invariant_param_groups

BASELINE = "adamw"
LARGER_IS_BETTER = dict.fromkeys(METRICS, True)
BATCH = 2


@dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        title: what readers see.
        rates: learning rates to choose from.
        build: makes the optimizer of a network, at a rate.
    """

    title: str
    rates: tuple[float, float, float, float]
    build: Callable[[nn.Module, float, Budget], torch.optim.Optimizer]


def build_adamw(network: nn.Module, rate: float, budget: Budget) -> torch.optim.Optimizer:
    return torch.optim.AdamW(decay_groups(network, 1e-2), lr=rate)


def build_sgd(network: nn.Module, rate: float, budget: Budget) -> torch.optim.Optimizer:
    return torch.optim.SGD(decay_groups(network, 3e-5), lr=rate, momentum=0.99, nesterov=True)


def build_adamp(network: nn.Module, rate: float, budget: Budget) -> torch.optim.Optimizer:
    return AdamP(scale_invariant_param_groups(network, (1, 1, *budget.patch), 1e-2), lr=rate, nesterov=True)


def build_lion(network: nn.Module, rate: float, budget: Budget) -> torch.optim.Optimizer:
    return Lion(decay_groups(network, 1e-1), lr=rate)


def build_frugal(network: nn.Module, rate: float, budget: Budget) -> torch.optim.Optimizer:
    groups = decay_groups(network, 1e-2)
    return FrugalAdamW(groups, lr=rate, selection="columns", update_gap=20, state_free_lr_scale=0.3)


METHODS = {
    "adamw": Method("AdamW", (1e-3, 3e-3, 1e-2, 3e-2), build_adamw),
    "sgd": Method("SGD, Nesterov", (3e-3, 1e-2, 3e-2, 1e-1), build_sgd),
    "adamp": Method("AdamP", (1e-3, 3e-3, 1e-2, 3e-2), build_adamp),
    "lion": Method("Lion", (1e-4, 3e-4, 1e-3, 3e-3), build_lion),
    "frugal": Method("FRUGAL", (1e-3, 3e-3, 1e-2, 3e-2), build_frugal),
}


def train(
    network: nn.Module, optimizer: torch.optim.Optimizer, cohort: Cohort, budget: Budget, seed: int
) -> dict[str, Any]:
    """Train to the end of the schedule; give the losses, the seconds in the optimizer, and the bytes of its state."""
    steps = budget.crops // BATCH
    loss_function = DiceCELoss(softmax=True, to_onehot_y=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 - min(step, steps - 1) / steps) ** 0.9)
    losses, seconds = [], []
    network.train()
    for image, label in draw_batches(cohort, budget, BATCH, seed):
        optimizer.zero_grad()
        loss = loss_function(network(image), label)
        loss.backward()
        began = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - began)
        schedule.step()
        losses.append(float(loss.detach()))
    tensors = [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    state = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    weights = sum(p.numel() for p in network.parameters())
    return {"losses": losses, "step_seconds": float(np.median(seconds)), "state_bytes_per_weight": state / weights}


def run_once(method: str, rate: float, cohort: Cohort, budget: Budget, seed: int) -> dict[str, Any]:
    """Train one network and measure every volume to test on."""
    network = build_network("instance", budget.crops // BATCH, budget, seed)
    found = train(network, METHODS[method].build(network, rate, budget), cohort, budget, seed)
    return found | {"cases": {sample.name: measure(network, sample) for sample in cohort.test}}


def reuse_or_run(path: Path, method: str, rate: float, cohort: Cohort, budget: Budget, seed: int) -> dict[str, Any]:
    """What an earlier call finished with the same settings, or a run."""
    settings = describe_settings(cohort, budget, BATCH) | {"rate": rate}
    record = read_record(path, settings)
    if record is None:
        head = {"set": "hippocampus", "method": method, "seed": seed, "settings": settings}
        record = head | run_once(method, rate, cohort, budget, seed)
        write_text(path, json.dumps(record, indent=1))
        say(f"{path.stem}, rate {rate:g}: {mean_dice([record]):.4f}")
    return record


def split_for_tuning(cohort: Cohort) -> Cohort:
    """Every tenth training case to choose by, the others to train on; no test volume."""
    return Cohort([sample for number, sample in enumerate(cohort.train) if number % 10], cohort.train[::10])


def choose_rate(method: str, cohort: Cohort, budget: Budget, runs: Path) -> float:
    """The learning rate with the best mean Dice on the held-out training cases, one seed each."""
    inner, found = split_for_tuning(cohort), {}
    for number, rate in enumerate(METHODS[method].rates):
        # A seed of its own: the seeds that are compared do not choose.
        record = reuse_or_run(runs / f"tune-{method}-{number}.json", method, rate, inner, budget, seed=1000)
        found[rate] = mean_dice([record])
    return max(found, key=found.__getitem__)


def run_all(cohort: Cohort, budget: Budget, seeds: int, runs: Path) -> list[dict[str, Any]]:
    """Tune every method, then run it once a seed."""
    rates = {method: choose_rate(method, cohort, budget, runs) for method in METHODS}
    return [
        reuse_or_run(runs / f"run-{method}-{seed}.json", method, rates[method], cohort, budget, seed)
        for seed in range(seeds)
        for method in METHODS
    ]


def write_report(out: Path, records: list[dict[str, Any]]) -> Path:
    """Write tables as JSON and Markdown, and the differences as a figure."""
    rows = compare_methods(records, baseline=BASELINE, larger_is_better=LARGER_IS_BETTER)
    write_text(out / "results.json", json.dumps({"rows": rows, "settings": records[0]["settings"]}, indent=1))
    names: dict[str, Any] = {"baseline": BASELINE, "metrics": METRICS}
    names["methods"] = {method: METHODS[method].title for method in METHODS}
    text = markdown_table(rows, digits=dict.fromkeys(METRICS, 4), **names)
    write_text(out / "results.md", f"{text}\n{cost_table(records)}\n")
    if not draw_differences(out / "differences.png", records, larger_is_better=LARGER_IS_BETTER, **names):
        say("differences.png is left out: it needs matplotlib (pip install matplotlib)")
    return out / "results.md"


def cost_table(records: Sequence[dict[str, Any]]) -> str:
    """Rate chosen, Dice of each seed, time of the optimizer's step and memory of its state."""
    lines = ["| optimizer | rate | Dice by seed | step, ms | state, bytes a weight |", "|---|---:|---|---:|---:|"]
    for method, about in METHODS.items():
        runs = [record for record in records if record["method"] == method]
        dice = ", ".join(f"{mean_dice([run]):.3f}" for run in runs)
        milliseconds = 1000 * float(np.median([run["step_seconds"] for run in runs]))
        cells = [about.title, f"{runs[0]['settings']['rate']:g}", dice, f"{milliseconds:.1f}"]
        lines.append(f"| {' | '.join(cells)} | {runs[0]['state_bytes_per_weight']:.2f} |")
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds hippocampus_msd/")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, tables and the figure")
    parser.add_argument("--crops", type=int, default=Budget.crops, help="training crops of every run")
    parser.add_argument("--test-cases", type=int, default=12, help="volumes to measure, of 37")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 on")
    parser.add_argument("--threads", type=int, help="threads of the network; by default as torch chooses")
    parser.add_argument("--quick", action="store_true", help="few steps on a few drawn volumes, one seed")
    parsed = parser.parse_args(arguments)
    if parsed.data is None and not parsed.quick:
        parser.error("--data is needed for real images; without it, use --quick")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and print the table's path."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    runs = options.out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    if options.quick:
        cohort, budget, seeds = load_phantoms(), Budget(crops=8, patch=(16, 16, 16), channels=(4, 8, 8)), 1
    else:
        cohort = load_hippocampus(options.data, options.test_cases)
        budget, seeds = Budget(crops=options.crops), options.seeds
    print(write_report(options.out, run_all(cohort, budget, seeds, runs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
