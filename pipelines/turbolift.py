"""Turbolift: a liver in perfusion scans of few subjects, by way of CT and cone-beam CT, against training on them alone.

    python pipelines/turbolift.py --out DIR --threads 1                 phantoms
    python pipelines/turbolift.py --data DIR --out DIR --threads 1      and a real CT, scanned in the same way, to test
    python pipelines/turbolift.py --out DIR --quick                     a few steps

Modalities are simulated (`abdomen_sets.py`). 16 subjects have a CT, 4 of these a cone-beam CT, 1 of these a perfusion
scan; the rest is for choosing weights or for testing. Every method gets the same network, initial weights and number of
steps of equally many slices: serial ones a third of them in each modality, "target only" all of them on the target,
"joint" all of them on the three modalities mixed one to one to one. All are tested on the target.

Source: Haseljic et al., "Liver segmentation using Turbolift learning for CT and cone-beam C-arm perfusion imaging"
(Computers in Biology and Medicine, 2023). Where this differs: simulated scans of drawn subjects, slices of 32 x 32
pixels, few channels or a plain U-Net (`--network unet`), minutes of training at a higher learning rate, small batches
without accumulation, slices augmented once ahead and in every stage, scaled from percentiles instead of extremes,
weights chosen by a subject neither learnt from nor tested on, a fixed threshold of 0.5, Dice of subjects, not slices.

Each run leaves DIR/runs/METHOD-SEED.json and is not repeated; a killed one goes on where its stage stood. results.json,
results.md and differences.png are written at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from abdomen_sets import MODALITIES, Subject, all_items, load_phantoms, load_subject, read_anatomy
from monai.networks.nets import UNet
from paired_comparison import compare_methods, draw_differences, markdown_table
from run_files import read_record, say, write_text

from medseg.engines import SerialTrainer, Stage
from medseg.losses import DeepSupervisionLoss, FocalTverskyLoss
from medseg.networks import MultiScaleAttentionUNet
from medseg.transforms import RandFlipShiftRotated

METHODS = {
    "target": "target only",
    "serial": "CT, cone beam, TST (Turbolift)",
    "swapped": "CT, TST, cone beam",
    "reversed": "TST, cone beam, CT",
    "joint": "all at once",
}
ORDERS = {
    "serial": ("ct", "cone_beam", "tst"),
    "swapped": ("ct", "tst", "cone_beam"),
    "reversed": ("tst", "cone_beam", "ct"),
}
SETS = {
    "target": ("tst", {}),
    "metal": ("tst", {"metal": True}),
    "truncated": ("tst", {"truncated": True}),
}
METRICS = {"dice": "Dice"}


@dataclass(frozen=True)
class Budget:
    """Who is learnt from, and for how long; steps are epochs x steps x 3."""

    training: tuple[int, int, int] = (16, 4, 1)  # subjects with a CT, a cone-beam CT, a perfusion scan
    validation: int = 1
    testing: int = 10
    epochs: int = 5
    steps: int = 32
    batch: int = 4
    rate: float = 3e-3
    network: str = "attention"
    features: tuple[int, ...] = (8, 16, 32, 48, 64)
    up_features: tuple[int, ...] = (8, 16, 8, 8)


# A step of the plain network takes a small part of the time.
BUDGETS = {"attention": Budget(), "unet": Budget(network="unet", epochs=8, steps=16, batch=8)}


def build_network(budget: Budget, seed: int) -> torch.nn.Module:
    """Turbolift's network, or a plain U-Net: the recipe takes any."""
    torch.manual_seed(seed)
    if budget.network == "unet":
        return UNet(2, 1, 1, channels=(8, 16, 32), strides=(2, 2), num_res_units=1, norm="BATCH")
    return MultiScaleAttentionUNet(2, features=budget.features, up_features=budget.up_features)


def build_loss() -> DeepSupervisionLoss:
    """As published: focal Tversky of four scales, each with a quarter of the weight."""
    loss = FocalTverskyLoss(sigmoid=True, batch=True, reduction="sum")
    return DeepSupervisionLoss(loss, [0.25] * 4, resize="strided_labels")


def plan_stages(method: str, budget: Budget, folder: Path) -> list[Stage]:
    """The stages of a method; all methods have the same number of steps."""
    count = budget.steps * budget.batch
    training, validation = {}, {}
    for modality, subjects in zip(MODALITIES, budget.training, strict=True):
        training[modality] = load_training(folder, modality, subjects, count)
        validation[modality] = load_phantoms(folder, modality, range(100, 100 + budget.validation))
    tested = [{"subject": f"phantom{seed}"} for seed in test_seeds(budget)]

    def stage(name: str, items: list[dict[str, Any]], epochs: int) -> Stage:
        held = all_items(validation[name if name in MODALITIES else "tst"])
        return Stage(name, items, held, tested, epochs, budget.rate)

    if method == "target":
        return [stage("tst", training["tst"], 3 * budget.epochs)]
    if method == "joint":
        mixed = [item for modality in MODALITIES for item in training[modality]]
        return [stage("joint", mixed, budget.epochs)]
    return [stage(name, training[name], budget.epochs) for name in ORDERS[method]]


@cache
def load_training(folder: Path, modality: str, subjects: int, count: int) -> list[dict[str, Any]]:
    """Slices of the subjects, repeated to a count, each changed at random once: the same for all methods and seeds."""
    augment = RandFlipShiftRotated(["image", "label"], max_shift=2, mode=["bilinear", "nearest"])
    augment.set_random_state(seed=0)
    items: list[Any] = all_items(load_phantoms(folder, modality, range(subjects)), count)
    changed: list[Any] = [augment(item) for item in items]
    return [{**i, "image": i["image"].as_tensor(), "label": i["label"].as_tensor()} for i in changed]


def test_seeds(budget: Budget) -> range:
    return range(300, 300 + budget.testing)


def load_tests(budget: Budget, folder: Path, data: Path | None) -> dict[str, list[Subject]]:
    """The subjects of every test set; the real CT is a set of its own."""
    tests = {name: load_phantoms(folder, m, test_seeds(budget), **flaws) for name, (m, flaws) in SETS.items()}
    if data is not None:
        tests["real"] = [load_subject(folder, "real", lambda: read_anatomy(data / "abdomen_ct_mr"), "tst", 0)]
    return tests


@torch.inference_mode()
def measure(network: torch.nn.Module, subjects: Sequence[Subject]) -> dict[str, dict[str, float]]:
    """Dice of each subject over all its slices, at a probability of 0.5."""
    network.eval()
    cases = {}
    for subject in subjects:
        items = subject.items()
        found = network(torch.stack([item["image"] for item in items])) > 0
        true = torch.stack([item["label"] for item in items]) > 0
        cases[subject.name] = {"dice": 2 * float((found & true).sum()) / float(found.sum() + true.sum())}
    return cases


def run_method(method: str, seed: int, budget: Budget, out: Path, tests: Mapping[str, list[Subject]]) -> dict[str, Any]:
    began = time.process_time()
    network = build_network(budget, seed)
    stages, folder = plan_stages(method, budget, out / "scans"), out / "training" / f"{method}-{seed}"
    optimizer = partial(torch.optim.Adam, fused=True)
    trainer = SerialTrainer(network, stages, build_loss(), optimizer, folder, batch_size=budget.batch, seed=seed)
    results = trainer.run()
    return {
        "seconds": round(time.process_time() - began, 1),
        "stages": [{"name": r.name, "best_epoch": r.best_epoch, "val_loss": r.best_value} for r in results],
        "cases": {name: measure(network, subjects) for name, subjects in tests.items()},
    }


def run_all(budget: Budget, seeds: int, out: Path, data: Path | None, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Run every method with every seed; what an earlier call finished with the same settings is read instead."""
    tests, records = load_tests(budget, out / "scans", data), []
    settings = json.loads(json.dumps(asdict(budget) | {"tests": sorted(tests)}))
    for seed in range(seeds):
        for method in methods:
            path = out / "runs" / f"{method}-{seed}.json"
            record = read_record(path, settings)
            if record is None:
                say(f"seed {seed}: {METHODS[method]}")
                record = {"method": method, "seed": seed, "settings": settings}
                record |= run_method(method, seed, budget, out, tests)
                write_text(path, json.dumps(record, indent=1))
                means = {name: np.mean([c["dice"] for c in cases.values()]) for name, cases in record["cases"].items()}
                say(" ".join(f"{name} {mean:.3f}" for name, mean in means.items()))
            records.append(record)
    return records


def write_report(out: Path, runs: Sequence[Mapping[str, Any]]) -> Path:
    """Write the table as JSON and Markdown, and the differences as a figure."""
    records = [
        {"set": name, "method": run["method"], "seed": run["seed"], "cases": cases}
        for name in runs[0]["cases"]
        for run in runs
        for found, cases in run["cases"].items()
        if found == name
    ]
    rows = compare_methods(records, baseline="target", larger_is_better={"dice": True})
    table = markdown_table(rows, baseline="target", methods=METHODS, metrics=METRICS, digits={"dice": 3})
    write_text(out / "results.json", json.dumps({"rows": rows, "seeds": by_seed(records)}, indent=1))
    write_text(out / "results.md", "\n".join([table, seed_table(records)]))
    many = [r for r in records if len(r["cases"]) > 1]
    shown = {m: METHODS[m] for m in METHODS if any(r["method"] == m for r in runs)}
    options = {"baseline": "target", "methods": shown, "metrics": METRICS, "larger_is_better": {"dice": True}}
    if not draw_differences(out / "differences.png", many, **options):
        say("differences.png is left out: it needs matplotlib (pip install matplotlib)")
    return out / "results.md"


def by_seed(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Mean Dice of every run, by set and method."""
    table: dict[str, dict[str, list[float]]] = {}
    for record in sorted(records, key=lambda r: r["seed"]):
        mean = float(np.mean([case["dice"] for case in record["cases"].values()]))
        table.setdefault(record["set"], {}).setdefault(record["method"], []).append(round(mean, 4))
    return table


def seed_table(records: Sequence[Mapping[str, Any]]) -> str:
    lines = ["### Dice of each seed", "", "| set | method | Dice by seed |", "|---|---|---|"]
    for name, methods in by_seed(records).items():
        for method, values in methods.items():
            lines.append(f"| {name} | {METHODS[method]} | {' '.join(f'{v:.3f}' for v in values)} |")
    return "\n".join([*lines, ""])


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds abdomen_ct_mr/, for a test on a real CT")
    parser.add_argument("--out", type=Path, required=True, help="folder for scans, runs, table and figure")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help="all by default")
    parser.add_argument("--network", choices=list(BUDGETS), default="attention", help="Turbolift's by default")
    parser.add_argument("--epochs", type=int, help="length of a stage, in place of the network's usual one")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 on")
    parser.add_argument("--threads", type=int, help="threads of the network; by default as torch chooses")
    parser.add_argument("--quick", action="store_true", help="few subjects and steps, two seeds")
    parsed = parser.parse_args(arguments)
    if "target" not in parsed.methods:
        parser.error("--methods must hold target, which the others are compared with")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and print the report's path."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    (options.out / "runs").mkdir(parents=True, exist_ok=True)
    budget, seeds = BUDGETS[options.network], options.seeds
    if options.epochs:
        budget = replace(budget, epochs=options.epochs)
    if options.quick:
        budget, seeds = Budget((3, 2, 1), 1, 2, 1, 2, features=(4, 4, 8, 8, 8), up_features=(4, 4, 4, 4)), 2
    print(write_report(options.out, run_all(budget, seeds, options.out, options.data, options.methods)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
