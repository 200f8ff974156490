"""Source-free adaptation: entropy and class ratios against what else adapts a network to a new site without labels.

    python pipelines/source_free.py --data DIR --out DIR                all sets
    python pipelines/source_free.py --out DIR --sets toy                a drawn set, without data
    python pipelines/source_free.py --out DIR --quick                   a few drawn images, about a minute

For each set and seed one network is trained on the source site; from there every method of
`medseg.engines.build_adapter` takes the same number of steps on the same batches of target images. `supervised` goes on
with their labels instead, as the ceiling; where the images adapted to are those tested, on half of them, tested on the
other half, and vice versa. The other methods see no label of the target site, but for the tags of the toy, which say
whether an image holds the organ, and for the ratios in the rows "x true ratio", which ask how exact a ratio must be.

Source: Bateson, Kervadec, Dolz, Lombaert, Ben Ayed, "Source-Free Domain Adaptation for Image Segmentation" (Medical
Image Analysis, 2022). The toy's recipe was given; steps of the other sets are the toy's, weights of their entropy are
inverse to the source's ratios. The rate is the toy's on hippocampi. On retinas it is the default of `medseg adapt`, in
crops as the source was learnt, after a first run at the toy's rate on whole images had lost to no adaptation
(README.md); beyond that nothing was chosen by target labels. Last weights are measured, for the mean teacher those of
the teacher.

Where this differs from the paper: other images, small networks, minutes of training, a learning rate for few steps.

Each run leaves DIR/runs/SET-METHOD-SEED.json and is not repeated; results.json, results.md and differences.png are
written at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets import UNet
from paired_comparison import compare_methods, draw_differences, markdown_table
from run_files import read_record, say, write_text
from shifted_sets import DRAWN, SETS, Sample, ShiftedSet, load_toy
from torch.nn import functional
from torch.utils.data import DataLoader

from medseg.data import ClassRatioPrior, atomic_path
from medseg.engines import EpochSeeder, build_adapter


@dataclass(frozen=True)
class Variant:
    """A method; `tags` says whether it knows which images lack a class, `factor` multiplies the true ratio."""

    title: str
    method: str
    tags: bool = True
    factor: float | None = None


VARIANTS = {
    "none": Variant("no adaptation", "none"),
    "batch_norm": Variant("batch statistics", "batch_norm"),
    "tent": Variant("entropy, norm parameters (TENT)", "tent"),
    "entropy": Variant("entropy, all parameters", "entropy"),
    "uniform": Variant("entropy + uniform ratio", "uniform", tags=False),
    "mean_teacher": Variant("mean teacher", "mean_teacher"),
    "kl": Variant("entropy + KL(found, expected)", "kl"),
    "kl_reverse": Variant("entropy + KL(expected, found)", "kl_reverse"),
    "kl_06": Variant("KL(found, expected), 0.6 x true ratio", "kl", factor=0.6),
    "kl_10": Variant("KL(found, expected), 1.0 x true ratio", "kl", factor=1.0),
    "kl_15": Variant("KL(found, expected), 1.5 x true ratio", "kl", factor=1.5),
    "untagged": Variant("KL(found, expected), no tags", "kl", tags=False),
    "untagged_06": Variant("no tags, 0.6 x true ratio", "kl", tags=False, factor=0.6),
    "untagged_15": Variant("no tags, 1.5 x true ratio", "kl", tags=False, factor=1.5),
    "supervised": Variant("target labels (ceiling)", "supervised"),
}
TITLES = {name: v.title for name, v in VARIANTS.items()}
BASELINES = ("none", "entropy")
SHOWN = ("none", "batch_norm", "tent", "mean_teacher", "kl")
METRICS = {"dice": "Dice"}
CROPS = 16  # of each image adapted to, where the source was learnt in crops


@dataclass(frozen=True)
class Budget:
    """What every method gets, and the network; `class_weight` is for the entropy, inverse to the ratios if None."""

    channels: tuple[int, ...] = (8, 16, 32)
    units: int = 1
    class_weight: tuple[float, ...] | None = None
    source_steps: int = 350
    source_batch: int = 16
    source_rate: float = 1e-2
    epochs: int = 10
    batch: int = 16
    rate: float = 5e-4


BUDGETS = {
    "toy": Budget(units=2, class_weight=(0.1, 0.9)),
    # As many adaptation steps as the toy has, 120 but for rounding to whole epochs.
    "retina": Budget(channels=(8, 16, 32, 64), source_steps=800, source_batch=8, epochs=4, batch=8, rate=1e-4),
    "hippocampus": Budget(source_steps=600, source_batch=4, epochs=30, batch=4),
}


def budget_of(name: str) -> Budget:
    return BUDGETS[name.partition("-")[0]]


def build_network(images: ShiftedSet, budget: Budget, seed: int) -> UNet:
    torch.manual_seed(seed)
    dims, strides = images.source[0].mask.ndim, (2,) * (len(budget.channels) - 1)
    return UNet(dims, 1, images.classes, budget.channels, strides, num_res_units=budget.units, norm="BATCH")


def draw_batches(samples: Sequence[Sample], patch: int | None, count: int, batch: int, seed: Sequence[int]) -> Iterator:
    """Random images, or crops of them, with class ids; mirrored where they are crops."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        chosen = (samples[int(random.integers(len(samples)))] for _ in range(batch))
        parts = [_crop((sample.image, sample.mask[None]), patch, random) for sample in chosen]
        yield tuple(torch.from_numpy(np.stack(p)) for p in zip(*parts, strict=True))


def _crop(arrays: Sequence[np.ndarray], patch: int | None, random: np.random.Generator) -> Sequence[np.ndarray]:
    """The same random crop, mirrored at random, of arrays (channels, spatial...)."""
    if patch is None:
        return arrays
    corner = [random.integers(n - patch + 1) for n in arrays[0].shape[1:]]
    box = tuple(slice(c, c + patch) for c in corner)
    flipped = [1 + axis for axis, is_flipped in enumerate(random.integers(2, size=len(box))) if is_flipped]
    return [np.flip(a[(slice(None), *box)], tuple(flipped)).copy() for a in arrays]


def train(network: UNet, batches: Iterator, rates: Sequence[float]) -> None:
    """Learn from labels, one step of Adam for each batch and rate."""
    optimizer = torch.optim.Adam(network.parameters())
    network.train()
    for (image, label), rate in zip(batches, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        functional.cross_entropy(network(image), label[:, 0]).backward()
        optimizer.step()


def start_network(name: str, images: ShiftedSet, budget: Budget, seed: int, path: Path) -> UNet:
    """The network that all methods of a seed start from, trained on the source site; kept on disk for a rerun."""
    settings = json.dumps(describe_settings(name, images, replace(budget, epochs=0, batch=0, rate=0)))
    network = build_network(images, budget, seed)
    if path.exists():
        found = torch.load(path, weights_only=True)
        if found["settings"] == settings:
            network.load_state_dict(found["state"])
            return network
    say(f"{name}, seed {seed}: source")
    batches = draw_batches(images.source, images.patch, budget.source_steps, budget.source_batch, (seed, 0))
    low = budget.source_steps * 2 // 7
    train(network, batches, [budget.source_rate] * (budget.source_steps - low) + [budget.source_rate / 5] * low)
    with atomic_path(path) as part:
        torch.save({"settings": settings, "state": network.state_dict()}, part)
    return network


def expect_ratios(images: ShiftedSet, variant: Variant) -> ClassRatioPrior:
    """The ratios of the source, or, to ask how exact they must be, a multiple of the true ones."""
    samples = images.source if variant.factor is None else images.target
    masks, inside = [s.mask for s in samples], [s.inside for s in samples]
    return ClassRatioPrior.from_labels(masks, masks=inside, num_classes=images.classes, scale=variant.factor or 1.0)


def load_unlabelled(images: ShiftedSet, budget: Budget, tags: bool, seed: int = 0) -> DataLoader:
    """Target images without their labels, in crops where the source is learnt in crops; tags where these say something.

    Statistics of whole images differ from those of crops also without a shift: crops lie in the middle more often.
    """
    random, items = np.random.default_rng((seed, 2)), []
    for sample in images.target:
        present = torch.tensor([True, *(bool((sample.mask == c).any()) for c in range(1, images.classes))])
        common = {"sample_id": sample.name} | ({"tags": present} if images.tagged and tags else {})
        for _ in range(crops_of(images)):
            parts = _crop((sample.image, sample.inside[None].astype(np.float32)), images.patch, random)
            items.append(common | dict(zip(("image", "mask"), map(torch.from_numpy, parts), strict=True)))
    dataset: Any = items  # a list will do
    return DataLoader(dataset, batch_size=budget.batch, shuffle=True, drop_last=True)


def crops_of(images: ShiftedSet) -> int:
    """How many items an image to adapt to is."""
    return 1 if images.patch is None else CROPS


def adapt(variant: Variant, images: ShiftedSet, budget: Budget, seed: int, start: UNet) -> tuple[Any, dict[str, Any]]:
    """Adapt from the start; give the network and the diagnostics before and after."""
    source_ratio = expect_ratios(images, replace(variant, factor=None)).ratio()
    adapter = build_adapter(
        variant.method,  # type: ignore[arg-type]  (a plain str, checked there)
        deepcopy(start),
        expect_ratios(images, variant),
        class_weight=budget.class_weight or ClassRatioPrior.class_weight(source_ratio),
        learning_rate=budget.rate,
        max_epochs=0 if variant.method == "none" else budget.epochs,
        ratio_per="image" if images.patch is None else "case",
        train_handlers=[EpochSeeder(seed=seed)],
    )
    loader = load_unlabelled(images, budget, variant.tags, seed)
    before = adapter.diagnose(loader)
    adapter.fit(loader)
    after = adapter.diagnose(loader)
    network = adapter.network if adapter.average is None else adapter.average.module
    return network, {"before": before.to_dict(), "after": after.to_dict()}


def supervise(images: ShiftedSet, budget: Budget, seed: int, start: UNet) -> dict[str, dict[str, float]]:
    """Learn from labels of the target site from the same start, with the same steps; measure images not learnt from."""
    halves = [(images.target[::2], images.target[1::2]), (images.target[1::2], images.target[::2])]
    cases = {}
    for learnt, tested in [(images.target, images.test)] if images.is_apart else halves:
        network = deepcopy(start)
        steps = budget.epochs * (len(images.target) * crops_of(images) // budget.batch)
        train(network, draw_batches(learnt, images.patch, steps, budget.batch, (seed, 1)), [budget.rate] * steps)
        cases |= measure(network, tested, images.classes)
    return cases


@torch.inference_mode()
def measure(network: torch.nn.Module, samples: Sequence[Sample], classes: int) -> dict[str, dict[str, float]]:
    """Mean Dice over the classes of each image that holds any, inside of what counts."""
    network.eval()
    cases = {}
    for sample in samples:
        found = network(torch.from_numpy(sample.image)[None]).argmax(1)[0].numpy() * sample.inside
        here = [c for c in range(1, classes) if (sample.mask == c).any()]
        if here:
            values = [_dice(found == c, sample.mask == c) for c in here]
            cases[sample.name] = {"dice": float(np.mean(values))}
    return cases


def _dice(found: np.ndarray, true: np.ndarray) -> float:
    return 2 * float((found & true).sum()) / float(found.sum() + true.sum())


def run_set(
    name: str, images: ShiftedSet, budget: Budget, seeds: int, runs: Path, methods: Sequence[str] = tuple(VARIANTS)
) -> list[dict[str, Any]]:
    """Run the methods with every seed; what an earlier call finished with the same settings is read instead."""
    records, settings = [], describe_settings(name, images, budget)
    for seed in range(seeds):
        start = None
        for key, variant in VARIANTS.items():
            # Where every image holds every class, tags say nothing: without them it is the same run.
            if key not in methods or (key.startswith("untagged") and not images.tagged):
                continue
            path = runs / f"{name}-{key}-{seed}.json"
            record = read_record(path, settings)
            if record is None:
                start = start or start_network(name, images, budget, seed, runs / f"{name}-{seed}-start.pt")
                say(f"{name}, seed {seed}: {variant.title}")
                record = {"set": name, "method": key, "seed": seed, "settings": settings}
                record |= run_variant(variant, images, budget, seed, start)
                write_text(path, json.dumps(record, indent=1))
            records.append(record)
    return records


def run_variant(variant: Variant, images: ShiftedSet, budget: Budget, seed: int, start: UNet) -> dict[str, Any]:
    began = time.perf_counter()
    if variant.method == "supervised":
        diagnostics, cases = {}, supervise(images, budget, seed, start)
    else:
        network, diagnostics = adapt(variant, images, budget, seed, start)
        cases = measure(network, images.test, images.classes)
    return {"seconds": round(time.perf_counter() - began, 1), "diagnostics": diagnostics, "cases": cases}


def describe_settings(name: str, images: ShiftedSet, budget: Budget) -> dict[str, Any]:
    """What decides a result, as JSON gives it back."""
    counts = {part: len(getattr(images, part)) for part in ("source", "target", "test")}
    return json.loads(json.dumps(asdict(budget) | counts | {"set": name, "patch": images.patch}))


def write_report(out: Path, records: list[dict[str, Any]]) -> Path:
    """Write the tables as JSON and Markdown, and the differences as a figure."""
    better, text, rows = {"dice": True}, [], {}
    for baseline in BASELINES:
        rows[baseline] = compare_methods(records, baseline=baseline, larger_is_better=better)
        table = markdown_table(rows[baseline], baseline=baseline, methods=TITLES, metrics=METRICS, digits={"dice": 3})
        text += [f"## Differences to: {TITLES[baseline]}", "", table]
    write_text(out / "results.json", json.dumps({"rows": rows, "seeds": by_seed(records)}, indent=1))
    write_text(out / "results.md", "\n".join([*text, ratio_table(records)]))
    names = {name: TITLES[name] for name in SHOWN if any(r["method"] == name for r in records)}
    shown = [r for r in records if r["method"] in names]
    options = {"baseline": "none", "methods": names, "metrics": METRICS, "larger_is_better": better}
    if not draw_differences(out / "differences.png", shown, **options):
        say("differences.png is left out: it needs matplotlib (pip install matplotlib)")
    return out / "results.md"


def by_seed(records: list[dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Mean Dice of every run, by set and method."""
    table: dict[str, dict[str, list[float]]] = {}
    for record in records:
        mean = float(np.mean([case["dice"] for case in record["cases"].values()]))
        table.setdefault(record["set"], {}).setdefault(record["method"], []).append(round(mean, 4))
    return table


def ratio_table(records: list[dict[str, Any]]) -> str:
    """What the diagnostics say at the end, means over seeds; the last class stands for the foreground."""
    lines = ["## Ratios at the end, and Dice of each seed", ""]
    lines += ["| set | method | expected | soft | hard | alarms | Dice by seed |", "|---|---|---:|---:|---:|---:|---|"]
    dice = by_seed(records)
    for name, method in dict.fromkeys((r["set"], r["method"]) for r in records):
        found = [r["diagnostics"].get("after") for r in records if (r["set"], r["method"]) == (name, method)]
        cells = [""] * 4
        if all(found):
            means = [np.mean([d[key][-1] for d in found]) for key in ("expected_ratio", "soft_ratio", "hard_ratio")]
            cells = [*(f"{m:.4f}" for m in means), f"{sum(bool(d['alarms']) for d in found)} of {len(found)}"]
        seeds = " ".join(f"{v:.3f}" for v in dice[name][method])
        lines.append(f"| {name} | {TITLES[method]} | {' | '.join(cells)} | {seeds} |")
    return "\n".join([*lines, ""])


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds drive/, stare/ and hippocampus_msd/")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, tables and figure")
    usual = [name for name in SETS if name != "retina-choice"]
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=usual, help="all but retina-choice by default")
    default = list(VARIANTS)
    parser.add_argument("--methods", nargs="+", choices=default, default=default, help="none and entropy always")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 on")
    parser.add_argument("--rate", type=float, help="learning rate of the adaptation; by default that of the set")
    parser.add_argument("--threads", type=int, help="threads of the network; by default as torch chooses")
    parser.add_argument("--quick", action="store_true", help="a few drawn images and steps, two seeds")
    parsed = parser.parse_args(arguments)
    if parsed.data is None and not parsed.quick and not set(parsed.sets) <= set(DRAWN):
        parser.error(f"--data is needed for real images; without it, use --sets {' '.join(DRAWN)} or --quick")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and print the report's path."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    runs = options.out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    methods = (*BASELINES, *options.methods)
    if options.quick:
        small = Budget(source_steps=60, epochs=3, batch=8)
        records = run_set("toy", load_toy(counts=(60, 24, 12)), small, 2, runs, methods)
    else:
        records = []
        for name in options.sets:
            budget = replace(budget_of(name), **({"rate": options.rate} if options.rate else {}))
            records += run_set(name, SETS[name](options.data), budget, options.seeds, runs, methods)
    print(write_report(options.out, records))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
