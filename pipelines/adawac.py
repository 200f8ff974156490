"""AdaWAC against training on labels alone, on volumes cut into slices of which many have no label.

    python pipelines/adawac.py --data DIR --out DIR [--sets NAME ...] --threads 1
    python pipelines/adawac.py --out DIR --quick                     drawn volumes only

Every method takes the same number of steps from the same initial weights, on the same slices in the same two random
views, with the same optimiser; half of each loss is Dice of the batch, the rest is (CE and AC as in the loss's file):

    erm          CE                          trim-train   CE of slices with a label
    acr          (CE + AC) / 2               trim-ratio   CE of slices above the batch's quantile 0.42
    pseudo       CE of slices with a label,  adawac       weights learned for every slice
                 AC of the others            aligned      as adawac, views aligned before features are compared
    one-view     CE and Dice of the first view alone, as the published code trains without AC

Source: Dong, Xie, Ward, "Adaptively Weighted Data Augmentation Consistency Regularization for Robust Optimization under
Concept Shift" (ICML 2023).

Where this differs from the paper: networks, slices and budgets are small enough for one processor core; Adam with a
cosine, not SGD; every method but one-view sees both views, also erm, so that all cost the same. Step sizes are the
published ones, 8 for the U-Net and 2 for the transformer; lambda is what makes CE and AC alike at the start, measured
on training slices with the first seed's untrained network. Last weights are measured, nothing is selected by a score.
Test volumes are segmented slice by slice and measured as volumes; a missed class is 0 Dice, and the diagonal as HD95.

Each run leaves DIR/runs/SET-METHOD-SEED.json and is not repeated; results.json, results.md and pictures are written at
the end.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adawac_report import METHODS, SIX, write_report
from monai.networks.nets import UNet
from run_files import read_record, say, write_text
from sparse_slices import (
    Cohort,
    Slices,
    choose_subset,
    draw_views,
    load_abdomen,
    load_hippocampus,
    load_phantoms,
    show,
)
from transformer_unet import TransformerUNet

from medseg.losses import AdaptiveWeightedConsistencyLoss, LabelTrimmedLoss, TrimmedLoss
from medseg.metrics import compute_dice, compute_hausdorff_distance
from medseg.networks import FeatureTap
from medseg.report import summarise_sample_weights

STEP_SIZE = {"unet": 8.0, "transformer": 2.0}
TRIM_RATIO = 0.42


@dataclass(frozen=True)
class Budget:
    """What every method gets."""

    steps: int = 240
    batch: int = 16
    channels: tuple[int, ...] = (12, 24, 48, 96)
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class Comparison:
    """Which slices train which network, with which methods and for how many steps."""

    data: str
    backbone: str
    subset: str
    methods: Sequence[str] = SIX
    steps: int = Budget.steps

    @property
    def name(self) -> str:
        """As on the command line."""
        longer = f"-{self.steps}" if self.steps > Budget.steps else ""
        return f"{self.data}-{self.backbone}-{self.subset}{longer}"


SUBSETS = ("full", "half-volume", "half-slice", "half-volume-sparse", "half-slice-sparse")
BOTH = ("full", "half-slice-sparse")
COMPARISONS = [
    *(Comparison("hippocampus", "unet", s, tuple(METHODS) if s in BOTH else SIX) for s in SUBSETS),
    *(Comparison("hippocampus", "unet", f"volumes-{n}", ("erm", "adawac")) for n in (1, 2)),
    Comparison("hippocampus", "unet", "half-slice-sparse", ("erm", "adawac"), 4 * Budget.steps),
    Comparison("hippocampus", "transformer", "half-slice-sparse"),
    Comparison("hippocampus", "transformer", "full", ("erm", "acr", "adawac")),
    *(Comparison("abdomen", "unet", s, steps=150) for s in BOTH),
]
COHORTS: dict[str, Callable[[Path], Cohort]] = {"hippocampus": load_hippocampus, "abdomen": load_abdomen}


def build_network(backbone: str, cohort: Cohort, budget: Budget, seed: int) -> FeatureTap:
    """The same initial weights for all methods and subsets of a seed."""
    torch.manual_seed(seed)
    classes = len(cohort.classes) + 1
    kind = {"unet": UNet, "transformer": TransformerUNet}[backbone]
    return FeatureTap(kind(2, 1, classes, budget.channels, (2,) * (len(budget.channels) - 1)))


Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def draw_batches(slices: Slices, budget: Budget, seed: int) -> Iterator[Batch]:
    """Images and labels in two views (2B, 1, H, W), ids (B,), matrices (2B, 3, 3); the same for all methods."""
    random = np.random.default_rng(seed)
    waiting = np.empty(0, dtype=np.int64)
    for _ in range(budget.steps):
        while len(waiting) < budget.batch:
            waiting = np.concatenate((waiting, random.permutation(len(slices.names))))
        ids, waiting = waiting[: budget.batch], waiting[budget.batch :]
        matrices = draw_views(random, 2 * budget.batch)
        both = np.concatenate((ids, ids))
        yield *show(slices.images[both], slices.labels[both], matrices), torch.from_numpy(ids), matrices


def measure_lambda(network: FeatureTap, slices: Slices, budget: Budget, batches: int = 8) -> float:
    """The consistency weight at which cross-entropy and distance of features are alike before training."""
    loss = AdaptiveWeightedConsistencyLoss(len(slices.names), learn_weights=False)
    ratios = []
    with torch.no_grad():
        for _, (images, labels, ids, _) in zip(range(batches), draw_batches(slices, budget, 0), strict=False):
            loss(*_order(network(images), labels), ids)
            ratios.append((loss.last["ce"].mean() / loss.last["consistency"].mean()).item())
    return float(np.mean(ratios))


def _order(outputs: tuple[torch.Tensor, torch.Tensor], labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return outputs[0], labels, outputs[1]


class MethodLoss:
    """Loss of a method on a batch; `adaptive` holds the weights of the slices, standing still or learned."""

    def __init__(self, method: str, slices: Slices, step_size: float, weight: float) -> None:
        self.method = method
        trims = method.startswith("trim")
        self.adaptive = AdaptiveWeightedConsistencyLoss(
            len(slices.names),
            step_size,
            weight,
            dice_weight=1.0 if trims else 0.5,
            learn_weights=method in ("adawac", "aligned"),
            align="inverse" if method == "aligned" else "none",
        )
        has_label = (slices.labels > 0).flatten(1).any(1)
        # Infinite logits are weights of exactly 0 and 1.
        if method in ("erm", "one-view"):
            self.adaptive.weight_logits.fill_(torch.inf)
        if method == "pseudo":
            self.adaptive.weight_logits.copy_(torch.where(has_label, torch.inf, -torch.inf))
        each = torch.nn.CrossEntropyLoss(reduction="none")
        self.trimmed = {"trim-train": LabelTrimmedLoss(each), "trim-ratio": TrimmedLoss(each, TRIM_RATIO)}.get(method)

    def __call__(self, outputs: tuple[torch.Tensor, torch.Tensor], batch: Batch) -> torch.Tensor:
        """Compute the loss of a batch from logits and features of both views."""
        _, labels, ids, matrices = batch
        if self.method == "one-view":
            logits, labels, features = (part.chunk(2)[0].repeat(2, 1, 1, 1) for part in _order(outputs, labels))
            outputs = logits, features
        loss = self.adaptive(*_order(outputs, labels), ids, matrices)
        if self.trimmed is None:
            return loss
        # Both views of a slice side by side: kept or left out together, with the mean over both.
        sheet, target = (torch.cat(part.chunk(2), dim=2) for part in (outputs[0], labels))
        return (loss + self.trimmed(sheet, target[:, 0])) / 2


def train(network: FeatureTap, loss: MethodLoss, batches: Iterator[Batch], budget: Budget, dense: np.ndarray) -> dict:
    """Take one step of Adam for each batch; give the losses, and the course of the weights."""
    optimizer = torch.optim.Adam(network.parameters())
    values, course = [], []
    network.train()
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = budget.learning_rate * (1 + np.cos(np.pi * step / budget.steps)) / 2
        optimizer.zero_grad()
        value = loss(network(batch[0]), batch)
        value.backward()
        optimizer.step()
        values.append(round(value.item(), 5))
        if loss.adaptive.learn_weights and (step + 1) % max(budget.steps // 12, 1) == 0:
            course.append({"step": step + 1, **describe_weights(loss.adaptive, dense)})
    return {"losses": values, "course": course}


def describe_weights(loss: AdaptiveWeightedConsistencyLoss, dense: np.ndarray) -> dict[str, float]:
    """Weights of dense and sparse slices that came up so far; the AUC by logits, which saturate later."""
    seen = loss.visits.numpy() > 0
    found = summarise_sample_weights(loss.sample_weights()[:, 0].numpy()[seen], dense[seen])
    auc = summarise_sample_weights(loss.weight_logits.numpy()[seen], dense[seen])["auc"]
    ce, ac = (loss.last[key].mean().item() for key in ("ce", "consistency"))
    return found | {"auc": auc, "ce": ce, "consistency": ac}


@torch.inference_mode()
def measure(network: FeatureTap, cohort: Cohort) -> dict[str, dict[str, float]]:
    """Metrics of every test volume; where one alone tests, of each of its classes."""
    network.eval()
    cases = {}
    for volume in cohort.test:
        predicted = network.model(volume.images).argmax(1, keepdim=True)
        ids = range(1, len(cohort.classes) + 1)
        masks = [torch.cat([(m == c) for c in ids], 1).transpose(0, 1)[None] for m in (predicted, volume.labels)]
        dice = compute_dice(*masks)[0].tolist()
        distance = compute_hausdorff_distance(*masks, spacing=cohort.spacing)[0].tolist()
        empty = ~(volume.labels > 0).flatten(1).any(1)
        false = (predicted[empty] > 0).flatten(1).any(1).float().mean().item() if empty.any() else np.nan
        case = volume.names[0].partition(",")[0]
        if len(cohort.test) == 1:
            each = zip(cohort.classes, dice, distance, strict=True)
            cases |= {name: {"dice": d, "hd95": h} for name, d, h in each}
        else:
            cases[case] = {"dice": np.nanmean(dice), "hd95": np.nanmean(distance), "false_slices": false}
    return cases


def run_comparison(
    comparison: Comparison, cohort: Cohort, budget: Budget, seeds: int, runs: Path
) -> list[dict[str, Any]]:
    """Run every method with every seed; what an earlier call finished with the same settings is read instead."""
    chosen = choose_subset(cohort.train, comparison.subset)
    slices, backbone = cohort.train.take(chosen), comparison.backbone
    weight = find_lambda(comparison, cohort, budget, runs.parent)
    records = []
    for seed in range(seeds):
        for method in comparison.methods:
            step_size = STEP_SIZE[backbone] if method in ("adawac", "aligned") else 0.0
            settings = asdict(budget) | {"lambda": weight, "step_size": step_size, "slices": len(chosen)}
            settings = json.loads(json.dumps(settings | {"test": [v.names[0] for v in cohort.test]}))
            path = runs / f"{comparison.name}-{method}-{seed}.json"
            record = read_record(path, settings)
            if record is None:
                say(f"{comparison.name}, seed {seed}: {METHODS[method]}")
                network = build_network(backbone, cohort, budget, seed)
                loss = MethodLoss(method, slices, step_size, weight)
                began = time.process_time()
                found = train(network, loss, draw_batches(slices, budget, seed + 1), budget, slices.dense)
                found["training_seconds"] = round(time.process_time() - began, 1)
                record = {"set": comparison.name, "method": method, "seed": seed, "settings": settings, **found}
                record["cases"] = measure(network, cohort)
                write_text(path, json.dumps(record, indent=1))
            records.append(record)
    return records


def find_lambda(comparison: Comparison, cohort: Cohort, budget: Budget, out: Path) -> float:
    """One consistency weight for a cohort and a backbone, whatever the subset; kept in a file."""
    path = out / f"{comparison.data}-{comparison.backbone}-lambda.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))["lambda"]
    weight = round(measure_lambda(build_network(comparison.backbone, cohort, budget, 0), cohort.train, budget), 3)
    write_text(path, json.dumps({"lambda": weight}))
    return weight


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = [c.name for c in COMPARISONS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds hippocampus_msd/ and abdomen_ct_mr/")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, table and pictures")
    parser.add_argument("--sets", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    some = "some of each set's methods; erm always"
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help=some)
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 on")
    parser.add_argument("--threads", type=int, help="threads of the network; by default as torch chooses")
    parser.add_argument("--quick", action="store_true", help="a small network on a few drawn volumes, two seeds")
    parsed = parser.parse_args(arguments)
    if parsed.data is None and not parsed.quick:
        parser.error("--data is needed for real images; without it, use --quick")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and print the table's path."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.quick:
        steps, cohorts = 40, {"phantom": load_phantoms()}
        chosen = [Comparison("phantom", "unet", "half-slice-sparse", tuple(METHODS), steps)]
        budget, seeds = {"batch": 8, "channels": (8, 16, 32)}, 2
    else:
        chosen = [c for c in COMPARISONS if c.name in options.sets]
        cohorts = {name: COHORTS[name](options.data) for name in dict.fromkeys(c.data for c in chosen)}
        budget, seeds = {}, options.seeds
    runs = options.out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    records = []
    for whole in chosen:
        comparison = replace(whole, methods=[m for m in whole.methods if m in ("erm", *options.methods)])
        own = Budget(steps=comparison.steps, **budget)
        records += run_comparison(comparison, cohorts[comparison.data], own, seeds, runs)
    print(write_report(options.out, records))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
