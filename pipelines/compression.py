"""Smaller models from a trained one: what pruning and int8 do to Dice, to the file and to the time on a processor.

    python pipelines/compression.py --data DIR --out DIR          the U-Net of the bundle `hippocampus_segmentation`
    python pipelines/compression.py --out DIR --quick             a tiny network on a few drawn volumes

Every method gets the same trained network and gives back something that predicts, and the size of the file that would
be shipped. All are measured on the same volumes, which chose nothing: neither weights nor any setting. Another method
is one more entry of METHODS. The time is the processor time of one window, to that of the dense network measured in
turn with it.

Int8 needs NNCF (pip install 'medseg[int8]') and is left out without.
Each method leaves DIR/runs/METHOD.json and is not repeated; layers.md (spectra and filters, dense and pruned),
results.json, results.md and sizes.png are written as well.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compression_int8 import openvino_methods
from compression_pruning import FLOOR, pruning_methods
from compression_task import Compressed, Method, Task, compressed_size
from monai.bundle import ConfigParser
from monai.inferers import sliding_window_inference
from normalization_choice import METRICS, Budget, Cohort, Sample, build_network, draw_batches, load_phantoms
from normalization_choice import train as train_network
from paired_comparison import compare_methods, markdown_table
from run_files import read_record, say, write_text

from medseg.bundles import Bundle
from medseg.core.compress import prune_magnitude
from medseg.core.diagnostics import diagnose_layers, layer_table
from medseg.data import atomic_path, read_image, read_mask
from medseg.metrics import compute_dice

BASELINE = "dense"
LARGER_IS_BETTER = dict.fromkeys(METRICS, True)
TIMED_WINDOWS = 5


def keep_dense(task: Task) -> Compressed:
    return Compressed(task.network, compressed_size(task.network))


METHODS: dict[str, Method] = {
    BASELINE: Method("dense", keep_dense),
    **pruning_methods(),
    **openvino_methods(),
}


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
    """Write tables as JSON and Markdown, and Dice against size as a figure."""
    rows = compare_methods(records, baseline=BASELINE, larger_is_better=LARGER_IS_BETTER)
    write_text(out / "results.json", json.dumps({"rows": rows, "settings": records[0]["settings"]}, indent=1))
    titles = {name: method.title for name, method in METHODS.items()}
    digits = dict.fromkeys(METRICS, 4)
    text = markdown_table(rows, baseline=BASELINE, methods=titles, metrics=METRICS, digits=digits)
    write_text(out / "results.md", f"{cost_table(records)}\n\n{text}")
    if not draw_sizes(out / "sizes.png", records):
        say("sizes.png is left out: it needs matplotlib (pip install matplotlib)")
    return out / "results.md"


def draw_sizes(path: Path, records: Sequence[Mapping[str, Any]]) -> bool:
    """Draw Dice against the size of the file, a line for each kind of method; False where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    lines: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        kind = METHODS[record["method"]].title.split(", ")  # without its sparsity
        name = ", ".join(part for part in kind if not part.endswith("%"))
        lines.setdefault(name, []).append((record["size"] / 1e6, mean_dice(record)))
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for name, points in lines.items():
        axis.plot(*zip(*sorted(points), strict=True), marker="o", markersize=4, linewidth=1, label=name)
    axis.set_xlabel("compressed file, MB")
    axis.set_ylabel("Dice")
    axis.legend(fontsize=7)
    with atomic_path(path) as part:
        FigureCanvasAgg(figure).print_png(str(part))
    return True


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
    """The bundle's U-Net, which labels head and body by itself, and the volumes of its task, at their 1 mm."""
    bundle = Bundle.load("hippocampus_segmentation")
    parser = ConfigParser()
    parser.read_config(str(bundle.config_path("inference")))
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(bundle.weights_path, weights_only=True))
    x, y, z = parser["inferer"]["inferer"]["roi_size"]
    return Task(network.outline.eval(), (x, y, z), load_volumes(data / "hippocampus_msd", test_cases))


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
    return Task(network.eval(), budget.patch, cohort, tuning_steps=2, calibration_windows=4)


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
