"""Which normalisation for a 3D U-Net with one or two patches a batch: seven of them at equal budget.

    python pipelines/normalization_choice.py --data DIR --out DIR          head and body of the hippocampus
    python pipelines/normalization_choice.py --out DIR --quick             a few drawn volumes, a minute

    batch       batch normalisation
    instance    instance normalisation, the default of the field, which all are compared with
    group       group normalisation, 4 groups
    power       PowerNorm (Shen, Yao, Gholami, Mahoney, Keutzer, ICML 2020)
    unified     Unified Normalization (Yang et al., ACM MM 2022)
    ws_bcn      weight standardisation and batch-channel normalisation, estimated statistics (Qiao et al., 2019)
    evonorm     EvoNorm S0, which is its own activation (Liu, Brock, Simonyan, Le, NeurIPS 2020)

For each batch size and seed all methods start from the same weights of the convolutions, see the same crops in the same
order and take the same number of steps of Adam with the same rates. Batches of two take half as many steps, so that the
number of crops is the same. No method was tuned: the rate is one for all, group sizes are equal, warm-ups are a quarter
of the steps, and the last weights are measured. A rate of its own would suit some methods better.

Each run leaves DIR/runs/batch-B-METHOD-SEED.json and is not repeated; results.json, results.md and differences.png are
written at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet
from paired_comparison import compare_methods, draw_differences, markdown_table
from run_files import read_record, say, write_text
from torch import nn

from medseg.core.norm import standardize_weights
from medseg.data import make_phantom, read_image, read_mask
from medseg.metrics import compute_dice

METHODS = {
    "instance": "instance",
    "batch": "batch",
    "group": "group",
    "power": "PowerNorm",
    "unified": "Unified",
    "ws_bcn": "WS + BCN",
    "evonorm": "EvoNorm S0",
}
METRICS = {"dice": "Dice", "dice_head": "Dice, head", "dice_body": "Dice, body"}
BASELINE = "instance"
CLASSES = 3


@dataclass(frozen=True)
class Budget:
    """What every method gets."""

    crops: int = 240
    patch: tuple[int, int, int] = (16, 20, 16)
    channels: tuple[int, ...] = (8, 16, 32)
    learning_rate: float = 1e-2  # as `source_free.py` has for these images


@dataclass(frozen=True)
class Sample:
    """One volume (spatial...) of mean 0 and deviation 1, and its classes."""

    name: str
    image: np.ndarray
    label: np.ndarray


@dataclass(frozen=True)
class Cohort:
    """Volumes to train and to test on."""

    train: Sequence[Sample]
    test: Sequence[Sample]


def load_hippocampus(data: Path, test: int = 12) -> Cohort:
    """All training cases of the folder's split, and as many of the validation cases, evenly spaced; at 2 mm."""
    folder = data / "hippocampus_msd"
    split = json.loads((folder / "splits.json").read_text(encoding="utf-8"))

    def read(case: str) -> Sample:
        image = _halve(read_image(folder / "images" / f"{case}.nii.gz").array[None])[0]
        label = read_mask(folder / "labels" / f"{case}.nii.gz").array
        return Sample(case, _normalise(image), _halve(np.stack([label == c for c in range(CLASSES)])).argmax(0))

    spaced = split["val"][:: max(1, len(split["val"]) // test)][:test]
    return Cohort([read(case) for case in split["train"]], [read(case) for case in spaced])


def _halve(volumes: np.ndarray) -> np.ndarray:
    """Mean of blocks of 2 x 2 x 2 voxels of volumes (C, spatial...); an odd last slice repeats."""
    even = np.pad(volumes.astype(np.float64), [(0, 0), *[(0, n % 2) for n in volumes.shape[1:]]], mode="edge")
    c, *size = even.shape
    return even.reshape(c, *(part for n in size for part in (n // 2, 2))).mean((2, 4, 6))


def load_phantoms(train: int = 4, test: int = 2) -> Cohort:
    """A core in a shell under noise."""

    def draw(seed: int) -> Sample:
        image, label = make_phantom("nested", shape=(20, 24, 18), seed=seed, noise=0.3)
        return Sample(f"phantom {seed}", _normalise(image), label)

    return Cohort([draw(n) for n in range(train)], [draw(1000 + n) for n in range(test)])


def _normalise(image: np.ndarray) -> np.ndarray:
    image = image.astype(np.float64)  # some cases reach 10^6, too much for sums of squares in float32
    return ((image - image.mean()) / image.std()).astype(np.float32)


def build_network(method: str, steps: int, budget: Budget, seed: int) -> DynUNet:
    """A U-Net whose convolutions start from the same weights whatever the method."""
    warm_up = max(1, steps // 4)
    norms: dict[str, Any] = {
        "instance": ("instance", {"affine": True}),
        "batch": "batch",
        "group": ("group", {"num_groups": 4}),
        "power": ("power", {"warmup_iters": warm_up}),
        "unified": ("unified", {"warmup_iters": warm_up, "grad_compensation_start": warm_up}),
        "ws_bcn": ("bcn", {"num_groups": 4, "mode": "estimate"}),
        "evonorm": ("evo_s0", {"num_groups": 4}),
    }
    torch.manual_seed(seed)
    levels = len(budget.channels)
    network = DynUNet(
        3,
        1,
        CLASSES,
        [3] * levels,
        [1] + [2] * (levels - 1),
        [2] * (levels - 1),
        filters=budget.channels,
        norm_name=norms[method],
        act_name="" if method == "evonorm" else ("leakyrelu", {"inplace": True, "negative_slope": 0.01}),
    )
    if method == "ws_bcn":
        standardize_weights(network, exclude=["output_block"])
    return network


def draw_batches(cohort: Cohort, budget: Budget, batch: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Random crops, mirrored at random; the same seed gives the same crops to every method."""
    random = np.random.default_rng(seed)
    for _ in range(budget.crops // batch):
        drawn = (cohort.train[int(random.integers(len(cohort.train)))] for _ in range(batch))
        pairs = [_crop(sample, budget.patch, random) for sample in drawn]
        image, label = (torch.from_numpy(np.stack(part)) for part in zip(*pairs, strict=True))
        yield image, label


def _crop(sample: Sample, patch: Sequence[int], random: np.random.Generator) -> list[np.ndarray]:
    grow = [(0, max(0, p - n)) for n, p in zip(sample.label.shape, patch, strict=True)]
    whole = np.pad(sample.image, grow), np.pad(sample.label.astype(np.int64), grow)
    corner = [random.integers(n - p + 1) for n, p in zip(whole[0].shape, patch, strict=True)]
    box = tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))
    flipped = tuple(np.flatnonzero(random.integers(2, size=3)).tolist())
    parts = [part[box] for part in whole]
    return [np.flip(part, flipped)[None].copy() for part in parts]


def train(network: nn.Module, batches: Iterator, rates: Sequence[float]) -> list[float]:
    """Take one step of Adam for each batch and rate; give the losses."""
    optimizer = torch.optim.Adam(network.parameters())
    loss_function = DiceCELoss(softmax=True, to_onehot_y=True)
    values = []
    network.train()
    for (image, label), rate in zip(batches, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        loss = loss_function(network(image), label)
        loss.backward()
        optimizer.step()
        values.append(float(loss.detach()))
    return values


def run_method(method: str, cohort: Cohort, budget: Budget, batch: int, seed: int) -> dict[str, Any]:
    """Train one network and measure every test volume."""
    steps = budget.crops // batch
    network = build_network(method, steps, budget, seed)
    # The rate falls to zero along a cosine, so that the last weights stand for the run without a selection.
    rates = budget.learning_rate * (1 + np.cos(np.pi * np.arange(steps) / steps)) / 2
    began = time.process_time()
    losses = train(network, draw_batches(cohort, budget, batch, seed), rates.tolist())
    seconds = time.process_time() - began
    cases = {sample.name: measure(network, sample) for sample in cohort.test}
    return {"training_cpu_seconds": round(seconds, 1), "losses": losses, "cases": cases}


@torch.inference_mode()
def measure(network: nn.Module, sample: Sample) -> dict[str, float]:
    """Dice of both classes on a whole volume."""
    shape = sample.label.shape
    padded = np.pad(sample.image, [(0, -n % 4) for n in shape])
    found = network.eval()(torch.from_numpy(padded)[None, None]).argmax(1, keepdim=True)
    found = found[(..., *(slice(n) for n in shape))]
    label = torch.from_numpy(sample.label.astype(np.int64))[None, None]
    classes = [1, 2]
    head, body = (float(compute_dice((found == c).float(), (label == c).float())) for c in classes)
    return {"dice": (head + body) / 2, "dice_head": head, "dice_body": body}


def run_all(cohort: Cohort, budget: Budget, batches: Sequence[int], seeds: int, runs: Path) -> list[dict[str, Any]]:
    """Run every method, seed by seed; what an earlier call finished with the same settings is read instead."""
    records = []
    for seed in range(seeds):
        for batch in batches:
            for method in METHODS:
                settings = describe_settings(cohort, budget, batch)
                path = runs / f"batch-{batch}-{method}-{seed}.json"
                record = read_record(path, settings)
                if record is None:
                    found = run_method(method, cohort, budget, batch, seed)
                    head = {"set": f"Batches of {batch}", "method": method, "seed": seed, "settings": settings}
                    record = head | found
                    write_text(path, json.dumps(record, indent=1))
                    say(f"batch {batch}, seed {seed}, {METHODS[method]}: {mean_dice([record]):.4f}")
                records.append(record)
    return records


def mean_dice(records: Sequence[dict[str, Any]]) -> float:
    return float(np.mean([case["dice"] for record in records for case in record["cases"].values()]))


def describe_settings(cohort: Cohort, budget: Budget, batch: int) -> dict[str, Any]:
    """What decides a result, as JSON gives it back."""
    names = {"train": [s.name for s in cohort.train], "test": [s.name for s in cohort.test]}
    return json.loads(json.dumps(asdict(budget) | names | {"batch": batch}))


def write_report(out: Path, records: list[dict[str, Any]]) -> Path:
    """Write tables as JSON and Markdown, and the differences as a figure."""
    larger = dict.fromkeys(METRICS, True)
    rows = compare_methods(records, baseline=BASELINE, larger_is_better=larger)
    write_text(out / "results.json", json.dumps({"rows": rows, "settings": records[0]["settings"]}, indent=1))
    names: dict[str, Any] = {"baseline": BASELINE, "methods": METHODS, "metrics": METRICS}
    text = markdown_table(rows, digits=dict.fromkeys(METRICS, 4), **names)
    write_text(out / "results.md", f"{text}\n{cost_table(records)}\n")
    if not draw_differences(out / "differences.png", records, larger_is_better=larger, **names):
        say("differences.png is left out: it needs matplotlib (pip install matplotlib)")
    return out / "results.md"


def cost_table(records: Sequence[dict[str, Any]]) -> str:
    """Processor time of training relative to the baseline, and Dice of each seed."""
    lines = ["| batch | method | Dice by seed | processor time |", "|---|---|---|---:|"]
    for name in dict.fromkeys(r["set"] for r in records):
        here = [r for r in records if r["set"] == name]
        times = {m: np.median([r["training_cpu_seconds"] for r in here if r["method"] == m]) for m in METHODS}
        for method, title in METHODS.items():
            runs = sorted((r for r in here if r["method"] == method), key=lambda r: r["seed"])
            dice = ", ".join(f"{mean_dice([r]):.3f}" for r in runs)
            lines.append(f"| {name} | {title} | {dice} | {times[method] / max(times[BASELINE], 1e-9):.2f} |")
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds hippocampus_msd/")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, tables and the figure")
    parser.add_argument("--crops", type=int, default=Budget.crops, help="training crops of every run")
    parser.add_argument("--test-cases", type=int, default=12, help="volumes to measure, of 37")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2], help="batch sizes")
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
    if options.quick:
        cohort, seeds = load_phantoms(), 1
        budget = Budget(crops=12, patch=(16, 16, 16), channels=(4, 8, 8))
    else:
        cohort, seeds, budget = (
            load_hippocampus(options.data, options.test_cases),
            options.seeds,
            Budget(crops=options.crops),
        )
    (options.out / "runs").mkdir(parents=True, exist_ok=True)
    records = run_all(cohort, budget, options.batches, seeds, options.out / "runs")
    print(write_report(options.out, records))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
