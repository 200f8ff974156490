"""Smaller models from a trained one: what pruning does to Dice, to the file and to the time on a processor.

    python pipelines/compression.py --data DIR --out DIR          the bundle `hippocampus_segmentation` as shipped
    python pipelines/compression.py --out DIR --quick             a tiny network on a few drawn volumes

Every method gets the same trained network and gives back something that predicts, and the size of the file that would
be shipped. All are measured on the same volumes, which chose nothing: neither weights nor any setting. Another method
is one more entry of METHODS. The time is the processor time of one window, to that of the dense network measured in
turn with it.

Each method leaves DIR/runs/METHOD.json and is not repeated; layers.md (spectra and filters, dense and pruned),
results.json, results.md and differences.png are written as well.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from normalization_choice import METRICS, Budget, Cohort, Sample, build_network, draw_batches, load_phantoms
from normalization_choice import train as train_network
from paired_comparison import compare_methods, draw_differences, markdown_table
from run_files import read_record, say, write_text
from torch import nn

from medseg.bundles import Bundle
from medseg.core.compress import (
    WeightMasks,
    allocate_pruning,
    find_prunable,
    layer_magnitude_masks,
    magnitude_scores,
    measure_distortions,
    prune_magnitude,
)
from medseg.core.diagnostics import diagnose_layers, layer_table
from medseg.core.optim import find_scale_invariant
from medseg.data import read_image, read_mask
from medseg.metrics import compute_dice

BASELINE = "dense"
LARGER_IS_BETTER = dict.fromkeys(METRICS, True)
SPARSITIES = (0.3, 0.5, 0.7, 0.8, 0.9)
FLOOR = 0.05  # of a layer's weights
FRACTIONS = (0.0, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
TUNED = (0.9, 0.8)
TUNING_RATE = 3e-4
TIMED_WINDOWS = 5


@dataclass(frozen=True, eq=False)
class Task:
    """What every method gets.

    Attributes:
        network: trained, in evaluation; methods change a copy of it.
        window: voxels of the windows that it predicts.
        cohort: training volumes, to calibrate and to train on, and volumes to measure; mean 0, deviation 1.
        tuning_steps: of the methods that train on.
    """

    network: nn.Module
    window: tuple[int, int, int]
    cohort: Cohort
    tuning_steps: int = 30


@dataclass(frozen=True)
class Compressed:
    """What a method gives back.

    Attributes:
        predict: from a window (1, 1, *window) to logits (1, classes, *window).
        size: bytes of the file that would be shipped, compressed.
        notes: anything else for the record, as JSON has it.
    """

    predict: Callable[[torch.Tensor], torch.Tensor]
    size: int
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A way to make a network smaller: what readers see, and what does it."""

    title: str
    build: Callable[[Task], Compressed]


def keep_dense(task: Task) -> Compressed:
    return Compressed(task.network, compressed_size(task.network))


def prune(sparsity: float, min_per_layer: float, scale_aware: bool) -> Callable[[Task], Compressed]:
    """Global magnitude pruning in one shot, without training afterwards."""

    def build(task: Task) -> Compressed:
        network = copy.deepcopy(task.network)
        masks = prune_magnitude(network, sparsity, (1, 1, *task.window), min_per_layer, scale_aware)
        return describe(network, masks)

    return build


def allocate(sparsity: float) -> Callable[[Task], Compressed]:
    """Layers pruned each to what rate and distortion allow; as many weights stay as in global pruning."""

    def build(task: Task) -> Compressed:
        network = copy.deepcopy(task.network)
        scores, curves = measure_curves(task)
        sizes = {name: score.numel() for name, score in scores.items()}
        choice = allocate_pruning(sizes, FRACTIONS, curves, round((1 - sparsity) * sum(sizes.values())))
        masks = WeightMasks(network, layer_magnitude_masks(scores, choice.sparsities))
        return describe(network, masks, layers=choice.sparsities)

    return build


@lru_cache(maxsize=1)
def measure_curves(task: Task) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    """Scores of the weights, and what pruning each layer alone does to the logits of a few training volumes."""
    shape = (1, 1, *task.window)
    scores = magnitude_scores(find_prunable(task.network, shape), find_scale_invariant(task.network, shape))
    patches = [centre_crop(sample, [3 * n // 4 // 8 * 8 for n in task.window]) for sample in task.cohort.train[:4]]
    return scores, measure_distortions(task.network, patches, scores, FRACTIONS)


def centre_crop(sample: Sample, size: Sequence[int]) -> torch.Tensor:
    box = tuple(slice((n - s) // 2, (n - s) // 2 + s) for n, s in zip(sample.image.shape, size, strict=True))
    return torch.from_numpy(sample.image[box].copy())[None, None]


def prune_and_train(sparsity: float, scale_aware: bool) -> Callable[[Task], Compressed]:
    """Global magnitude pruning, then a short training of what is left with the masks kept."""

    def build(task: Task) -> Compressed:
        network = copy.deepcopy(task.network)
        masks = prune_magnitude(network, sparsity, (1, 1, *task.window), FLOOR, scale_aware)
        optimizer = torch.optim.AdamW(network.parameters(), lr=TUNING_RATE)
        masks.attach(optimizer)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.tuning_steps)
        loss_function = DiceCELoss(softmax=True, to_onehot_y=True)
        budget = Budget(crops=task.tuning_steps, patch=task.window)
        network.train()
        for image, label in draw_batches(task.cohort, budget, 1, seed=0):
            optimizer.zero_grad()
            loss_function(network(image), label).backward()
            optimizer.step()
            schedule.step()
        return describe(network.eval(), masks, steps=task.tuning_steps)

    return build


def describe(network: nn.Module, masks: WeightMasks, **more: Any) -> Compressed:
    """A pruned network, with what is left of each layer."""
    return Compressed(network, compressed_size(network), {"sparsity": masks.sparsity, "kept": masks.kept} | more)


def pruning_methods() -> dict[str, Method]:
    """Relative to filters' norms or not, with a floor and without, at every sparsity."""
    found = {}
    for sparsity in SPARSITIES:
        for kind, scale_aware in {"plain": False, "scale-aware": True}.items():
            for floor in (0.0, FLOOR) if sparsity >= 0.8 else (0.0,):  # below no layer comes near it
                name = f"{kind}{'-floor' if floor else ''}-{sparsity}"
                title = f"{kind}{', floor' if floor else ''}, {sparsity:.0%}"
                found[name] = Method(title, prune(sparsity, floor, scale_aware))
        found[f"allocated-{sparsity}"] = Method(f"rate-distortion, {sparsity:.0%}", allocate(sparsity))
    for sparsity in TUNED:
        for kind, scale_aware in {"plain": False, "scale-aware": True}.items():
            title = f"{kind}, floor, {sparsity:.0%}, trained on"
            found[f"{kind}-trained-{sparsity}"] = Method(title, prune_and_train(sparsity, scale_aware))
    return found


METHODS: dict[str, Method] = {
    BASELINE: Method("dense", keep_dense),
    **pruning_methods(),
}


def compressed_size(network: nn.Module) -> int:
    """Bytes of a network's weights, saved and compressed by gzip."""
    file = io.BytesIO()
    torch.save(network.state_dict(), file)
    return len(gzip.compress(file.getvalue(), mtime=0))


@torch.inference_mode()
def measure(predict: Callable[[torch.Tensor], torch.Tensor], window: Sequence[int], sample: Sample) -> dict[str, float]:
    """Dice of both classes on a whole volume, window by window."""
    image = torch.from_numpy(sample.image)[None, None]
    logits: Any = sliding_window_inference(image, window, 1, predict, overlap=0.25, mode="gaussian")
    found = logits.argmax(1, keepdim=True)
    label = torch.from_numpy(sample.label.astype(np.int64))[None, None]
    head, body = (float(compute_dice((found == c).float(), (label == c).float())) for c in (1, 2))
    return {"dice": (head + body) / 2, "dice_head": head, "dice_body": body}


@torch.inference_mode()
def compare_times(compressed: Compressed, task: Task) -> dict[str, float]:
    """Processor time of a window, and its ratio to that of the dense network; medians, measured in turn."""
    image = torch.zeros(1, 1, *task.window)
    seconds: dict[str, list[float]] = {"dense": [], "method": []}
    for _ in range(TIMED_WINDOWS + 1):
        for name, predict in {"dense": task.network, "method": compressed.predict}.items():
            began = time.process_time()
            predict(image)
            seconds[name].append(time.process_time() - began)
    dense, method = (float(np.median(values[1:])) for values in seconds.values())  # the first call prepares
    return {"seconds": method, "time_ratio": method / max(dense, 1e-9)}


def run_method(name: str, task: Task) -> dict[str, Any]:
    """Compress the network, and measure every test volume."""
    compressed = METHODS[name].build(task)
    found = {"size": compressed.size, "notes": dict(compressed.notes)} | compare_times(compressed, task)
    return found | {"cases": {s.name: measure(compressed.predict, task.window, s) for s in task.cohort.test}}


def run_all(task: Task, folder: Path) -> list[dict[str, Any]]:
    """Run every method; what an earlier call finished with the same settings is read instead."""
    test = [sample.name for sample in task.cohort.test]
    settings = {"window": list(task.window), "test": test, "dense_size": compressed_size(task.network)}
    records = []
    for name, method in METHODS.items():
        path = folder / f"{name}.json"
        record = read_record(path, settings)
        if record is None:
            head = {"set": "hippocampus", "method": name, "seed": 0, "settings": settings}
            record = head | run_method(name, task)
            write_text(path, json.dumps(record, indent=1))
            say(f"{method.title}: Dice {mean_dice(record):.4f}, {record['size'] / 1e6:.2f} MB")
        records.append(record)
    return records


def mean_dice(record: Mapping[str, Any]) -> float:
    return float(np.mean([case["dice"] for case in record["cases"].values()]))


def write_report(out: Path, records: list[dict[str, Any]]) -> Path:
    """Write tables as JSON and Markdown, and the differences as a figure."""
    rows = compare_methods(records, baseline=BASELINE, larger_is_better=LARGER_IS_BETTER)
    write_text(out / "results.json", json.dumps({"rows": rows, "settings": records[0]["settings"]}, indent=1))
    names: dict[str, Any] = {"baseline": BASELINE, "metrics": METRICS}
    names["methods"] = {name: method.title for name, method in METHODS.items()}
    text = markdown_table(rows, digits=dict.fromkeys(METRICS, 4), **names)
    write_text(out / "results.md", f"{cost_table(records)}\n\n{text}")
    if not draw_differences(out / "differences.png", records, larger_is_better=LARGER_IS_BETTER, **names):
        say("differences.png is left out: it needs matplotlib (pip install matplotlib)")
    return out / "results.md"


def write_layers(out: Path, task: Task, sparsity: float = 0.9) -> None:
    """Write what the layers look like, dense and pruned."""
    pruned = copy.deepcopy(task.network)
    prune_magnitude(pruned, sparsity, (1, 1, *task.window), FLOOR)
    parts = {"Dense": task.network, f"Scale-aware with a floor, {sparsity:.0%} pruned": pruned}
    text = "\n\n".join(f"### {title}\n\n{layer_table(diagnose_layers(net))}" for title, net in parts.items())
    write_text(out / "layers.md", text + "\n")


def cost_table(records: Sequence[Mapping[str, Any]]) -> str:
    """Dice, worst case, size of the file and processor time of every method."""
    dense = records[0]
    lines = ["| method | Dice | difference | worst case | file, MB | to dense | time to dense |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for record in records:
        worst = min(case["dice"] for case in record["cases"].values())
        lines.append(
            f"| {METHODS[record['method']].title} | {mean_dice(record):.4f} "
            f"| {mean_dice(record) - mean_dice(dense):+.4f} | {worst:.4f} | {record['size'] / 1e6:.2f} "
            f"| {record['size'] / dense['size']:.2f} | {record['time_ratio']:.2f} |"
        )
    return "\n".join(lines)


def load_task(data: Path, test_cases: int) -> Task:
    """The bundle's network and the volumes of its task, at the 1 mm that it was trained at."""
    bundle = Bundle.load("hippocampus_segmentation")
    parser = ConfigParser()
    parser.read_config(str(bundle.config_path("inference")))
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle.weights_path, weights_only=True))
    x, y, z = parser["inferer"]["inferer"]["roi_size"]
    return Task(network.eval(), (x, y, z), load_volumes(data / "hippocampus_msd", test_cases))


def load_volumes(folder: Path, test_cases: int) -> Cohort:
    """Every tenth training case, and as many validation cases, evenly spaced."""
    split = json.loads((folder / "splits.json").read_text(encoding="utf-8"))

    def read(case: str) -> Sample:
        image = read_image(folder / "images" / f"{case}.nii.gz").array.astype(np.float64)
        label = read_mask(folder / "labels" / f"{case}.nii.gz").array
        return Sample(case, ((image - image.mean()) / image.std()).astype(np.float32), label)

    spaced = split["val"][:: max(1, len(split["val"]) // test_cases)][:test_cases]
    return Cohort([read(case) for case in split["train"][::10]], [read(case) for case in spaced])


def load_quick_task() -> Task:
    """A tiny network, trained for some steps on drawn volumes."""
    budget, cohort = Budget(crops=12, patch=(16, 16, 16), channels=(4, 8, 8)), load_phantoms()
    network = build_network("instance", budget.crops, budget, seed=0)
    train_network(network, draw_batches(cohort, budget, 1, seed=0), [budget.learning_rate] * budget.crops)
    return Task(network.eval(), budget.patch, cohort, tuning_steps=2)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds hippocampus_msd/")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, tables and the figure")
    parser.add_argument("--test-cases", type=int, default=12, help="volumes to measure, of 37")
    parser.add_argument("--threads", type=int, help="threads of the network; by default as torch chooses")
    parser.add_argument("--quick", action="store_true", help="a tiny network on a few drawn volumes")
    parsed = parser.parse_args(arguments)
    if parsed.data is None and not parsed.quick:
        parser.error("--data is needed for real images; without it, use --quick")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and print the table's path."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    (options.out / "runs").mkdir(parents=True, exist_ok=True)
    task = load_quick_task() if options.quick else load_task(options.data, options.test_cases)
    write_layers(options.out, task)
    print(write_report(options.out, run_all(task, options.out / "runs")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
