"""PULASki: a Probabilistic U-Net trained with distances between sets of segmentations, at equal budget.

    python pipelines/pulaski.py --data DIR --out DIR          all sets
    python pipelines/pulaski.py --out DIR --quick             a few discs only

Every method sees the same batches with the same optimiser and the same number of steps, from the same initial weights
where the network is the same:

    ftl               Probabilistic U-Net; focal Tversky of one posterior sample against the annotation drawn, and KL
    energy            energy distance of all samples to all annotations, and KL
    energy-divided    as energy, squared distances divided by the voxels, so that KL counts more beside it
    sinkhorn          exact optimal transport instead, divided by the voxels
    energy-affine     as energy, with the published head, which calls no activations: samples are nested
    sinkhorn-affine   as sinkhorn, with the published head
    dropout           U-Net with focal Tversky and dropout, which stays on at test time
    ensemble          five U-Nets with focal Tversky that share the steps: a fifth for each

Sources: Chatterjee et al., "PULASki: Learning inter-rater variability using statistical distances to improve
probabilistic segmentation" (2025); Kohl et al., "A Probabilistic U-Net for Segmentation of Ambiguous Images" (2018);
Gal, Ghahramani, "Dropout as a Bayesian Approximation" (2016); Lakshminarayanan et al., "Simple and Scalable Predictive
Uncertainty Estimation using Deep Ensembles" (2017).

Where this differs from the paper: networks and budgets are small enough for a laptop's processor; the step is 3e-3,
falling to zero along a cosine, and every run's last weights are measured, without a selection; samples are cut at 0.5,
not by Otsu's method; KL is averaged over the batch, and optimal transport divided by the number of voxels. Samples of
the prior: 16 for the generalised energy distance, calibration and volumes, as many as there are raters for best and
matched Dice.

Each run leaves DIR/runs/SET-METHOD-SEED.json (and its samples as .npz) and is not repeated; results.json, results.md,
differences.png and pictures of contours are written at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from paired_comparison import compare_methods, draw_differences, markdown_table
from rater_sets import SETS, Batch, RaterSet, Sample, draw_batches, load_discs
from run_files import read_record, say, write_text
from torch import nn

import medseg.metrics as metrics
from medseg.data import atomic_path
from medseg.engines import ProbabilisticTrainer
from medseg.losses import FocalTverskyLoss, ProbabilisticSegLoss, SampleSetLoss
from medseg.networks import ProbabilisticUNet
from medseg.report import draw_sample_contours

METHODS = {
    "ftl": "focal Tversky",
    "energy": "energy",
    "energy-divided": "energy, divided by voxels",
    "sinkhorn": "Sinkhorn",
    "energy-affine": "energy, affine head",
    "sinkhorn-affine": "Sinkhorn, affine head",
    "dropout": "MC dropout",
    "ensemble": "ensemble of 5",
}
METRICS = {
    "ged": "GED",
    "best_dice": "best-of-n Dice",
    "matched_dice": "matched Dice",
    "calibration": "calibration error",
    "brier": "Brier score",
    "coverage_error": "error of 90 % volume interval",
}
LARGER_IS_BETTER = {metric: metric.endswith("dice") for metric in METRICS}
DIGITS = dict.fromkeys(METRICS, 4)
SHOWN = ("ged", "best_dice", "matched_dice", "brier")
BASELINE = "ftl"
SAMPLES, MANY, MEMBERS = 16, 200, 5
MODES = ("first", "second")
Draw = Callable[[torch.Tensor, int], torch.Tensor]


@dataclass(frozen=True)
class Budget:
    """What every method gets; steps are those of the set where None."""

    steps: int | None = None
    learning_rate: float = 3e-3
    kl_weight: float = 1.0
    train_samples: int = 8
    dropout: float = 0.3


class PlainUNet(nn.Module):
    """The U-Net of the probabilistic one, with a plain head, and dropout at its bottom and before the head."""

    def __init__(self, inside: ProbabilisticUNet, features: int, dropout: float) -> None:
        super().__init__()
        self.unet = inside.unet
        flat = inside.spatial_dims == 2
        self.dropout = (nn.Dropout2d if flat else nn.Dropout3d)(dropout)
        self.head = (nn.Conv2d if flat else nn.Conv3d)(features, 1, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of one channel."""
        *levels, bottom = self.unet.encode(image)
        return self.head(self.dropout(self.unet.decode([*levels, self.dropout(bottom)])))


def build_network(images: RaterSet, seed: int, *, activation: bool = True) -> ProbabilisticUNet:
    torch.manual_seed(seed)
    return ProbabilisticUNet(
        images.spatial_dims, features=images.features, depth=images.depth, head_activation=activation
    )


def build_loss(method: str, kl_weight: float) -> ProbabilisticSegLoss:
    if method == "ftl":
        return ProbabilisticSegLoss(seg_loss=FocalTverskyLoss(sigmoid=True, batch=True), kl_weight=kl_weight)
    name, _, variant = method.partition("-")
    # Squared distances count voxels by the hundred; KL would vanish beside them, and the posterior leave the prior.
    distance = SampleSetLoss(name, sigmoid=True, normalize=name == "sinkhorn" or variant == "divided")
    return ProbabilisticSegLoss(distance, kl_weight=kl_weight)


def rate_at(step: int, steps: int, budget: Budget) -> float:
    """A cosine from the learning rate to zero, so that the last weights stand for the run."""
    return budget.learning_rate * (1 + np.cos(np.pi * step / steps)) / 2


def train_probabilistic(method: str, images: RaterSet, budget: Budget, steps: int, seed: int) -> tuple[Draw, list]:
    network = build_network(images, seed, activation=not method.endswith("-affine"))
    optimizer = torch.optim.Adam(network.parameters())
    batches: Any = draw_batches(images, steps, seed)
    samples = 1 if method == "ftl" else budget.train_samples
    loss = build_loss(method, budget.kl_weight)
    trainer = ProbabilisticTrainer(
        "cpu", 1, batches, network, optimizer, loss, samples=samples, seed=seed, epoch_length=steps
    )
    losses: list[float] = []

    def set_rate(_: Any) -> None:
        optimizer.param_groups[0]["lr"] = rate_at(trainer.state.iteration - 1, steps, budget)

    trainer.add_event_handler(Events.ITERATION_STARTED, set_rate)
    trainer.add_event_handler(
        IterationEvents.LOSS_COMPLETED, lambda: losses.append(float(trainer.state.output["loss"].detach()))
    )
    trainer.run()
    network.eval()
    noise = torch.randn((MANY, network.latent_dim), generator=torch.Generator().manual_seed(seed))
    return lambda image, n: network.sample(image, n, noise=noise[:n], return_logits=False)[:, :, 0], losses


def train_plain(
    images: RaterSet, budget: Budget, batches: Iterable[Batch], steps: int, seed: int, dropout: float
) -> tuple[PlainUNet, list[float]]:
    """Train a U-Net against one annotation of every image, drawn anew in every step."""
    network = PlainUNet(build_network(images, seed), images.features, dropout)
    optimizer, loss = torch.optim.Adam(network.parameters()), FocalTverskyLoss(sigmoid=True, batch=True)
    random, losses = np.random.default_rng([seed, 1]), []
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = rate_at(step, steps, budget)
        drawn = torch.from_numpy(random.integers(batch["label"].shape[1], size=len(batch["label"])))
        optimizer.zero_grad()
        value = loss(network(batch["image"]), batch["label"][torch.arange(len(drawn)), drawn][:, None].float())
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return network, losses


def train_dropout(images: RaterSet, budget: Budget, steps: int, seed: int) -> tuple[Draw, list[float]]:
    network, losses = train_plain(
        images, budget, draw_batches(images, steps, seed), steps, seed, dropout=budget.dropout
    )

    def draw(image: torch.Tensor, n: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([network.train()(image).sigmoid() for _ in range(n)], dim=1)

    return draw, losses


def train_ensemble(images: RaterSet, budget: Budget, steps: int, seed: int) -> tuple[Draw, list[float]]:
    batches, each = draw_batches(images, steps, seed), steps // MEMBERS
    members, losses = [], []
    for member in range(MEMBERS):
        share = (next(batches) for _ in range(each))
        network, found = train_plain(images, budget, share, each, MEMBERS * seed + member, dropout=0.0)
        members.append(network.eval())
        losses += found

    def draw(image: torch.Tensor, n: int) -> torch.Tensor:
        answers = [member(image).sigmoid() for member in members]
        return torch.cat([answers[k % MEMBERS] for k in range(n)], dim=1)

    return draw, losses


def run_method(method: str, images: RaterSet, budget: Budget, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train, then measure the test images; give the record and the samples' masks."""
    steps = budget.steps or images.steps
    began = time.perf_counter()
    if method == "dropout":
        draw, losses = train_dropout(images, budget, steps, seed)
    elif method == "ensemble":
        draw, losses = train_ensemble(images, budget, steps, seed)
    else:
        draw, losses = train_probabilistic(method, images, budget, steps, seed)
    seconds = time.perf_counter() - began
    cases, masks = {}, {}
    for sample in images.test:
        with torch.inference_mode():
            probabilities = draw(torch.from_numpy(sample.image)[None], SAMPLES)[0]
            cases[sample.name] = measure(probabilities, sample) | share_of_modes(draw, sample)
        masks[sample.name] = (probabilities > 0.5).numpy()
    return {"training_seconds": round(seconds, 1), "losses": losses, "cases": cases}, masks


def measure(probabilities: torch.Tensor, sample: Sample) -> dict[str, float]:
    """All metrics of one image, from probabilities (n, spatial...)."""
    annotations = torch.from_numpy(sample.annotations)[None, :, None]
    masks = (probabilities > 0.5)[None, :, None]
    few = masks[:, : annotations.shape[1]]
    coverage = metrics.compute_volume_coverage(masks, annotations, interval=0.9, empty="both=best")
    values = {
        "ged": metrics.compute_generalized_energy_distance(masks, annotations),
        "best_dice": metrics.compute_best_sample_dice(few, annotations),
        "matched_dice": metrics.compute_matched_dice(few, annotations),
        "calibration": metrics.compute_calibration_error(probabilities[None, :, None], annotations),
        "brier": metrics.compute_brier_score(probabilities[None, :, None], annotations),
        "coverage_error": (coverage - 0.9).abs(),
        "inter_rater_dice": metrics.compute_inter_rater_dice(annotations),
    }
    return {name: float(value) for name, value in values.items()}


def share_of_modes(draw: Draw, sample: Sample) -> dict[str, float]:
    """With two raters who share nothing: how many of many samples follow the first, and how many the second.

    A sample follows a rater if their Dice is above 0.75; the two masks together have 0.67 with each.
    """
    if len(sample.annotations) != 2:
        return {}
    masks = draw(torch.from_numpy(sample.image)[None], MANY)[0] > 0.5
    raters = (torch.from_numpy(a)[None, None].expand(len(masks), 1, *a.shape) for a in sample.annotations)
    follows = [metrics.compute_dice(masks[:, None], rater) > 0.75 for rater in raters]
    return {f"{name}_mode": float(f.float().mean()) for name, f in zip(MODES, follows, strict=True)}


def run_set(
    name: str, images: RaterSet, budget: Budget, seeds: int, runs: Path, chosen: Sequence[str]
) -> list[dict[str, Any]]:
    """Run every method with every seed; what an earlier call finished with the same settings is read instead."""
    records = []
    for seed in range(seeds):
        for method in chosen:
            settings = describe_settings(images, budget)
            path = runs / f"{name}-{method}-{seed}.json"
            record = read_record(path, settings)
            if record is None:
                say(f"{name}, seed {seed}: {METHODS[method]}")
                found, masks = run_method(method, images, budget, seed)
                record = {"set": name, "method": method, "seed": seed, "settings": settings} | found
                with atomic_path(path.with_suffix(".npz")) as part:
                    np.savez_compressed(part, **masks)
                write_text(path, json.dumps(record, indent=1))
            records.append(record)
    return records


def describe_settings(images: RaterSet, budget: Budget) -> dict[str, Any]:
    """What decides a result, as JSON gives it back."""
    network = {"features": images.features, "depth": images.depth, "batch": images.batch, "set_steps": images.steps}
    names = {"train": [s.name for s in images.train], "test": [s.name for s in images.test]}
    return json.loads(json.dumps(asdict(budget) | network | names))


def write_report(out: Path, records: list[dict[str, Any]], sets: dict[str, RaterSet]) -> Path:
    """Write the table as JSON and Markdown, the differences as a figure, and contours of the first test image."""
    rows = compare_methods(records, baseline=BASELINE, larger_is_better=LARGER_IS_BETTER)
    settings = {r["set"]: r["settings"] for r in records}
    beside = {name: describe_set([r for r in records if r["set"] == name]) for name in sets}
    write_text(out / "results.json", json.dumps({"rows": rows, "sets": beside, "settings": settings}, indent=1))
    names: dict[str, Any] = {"baseline": BASELINE, "methods": METHODS}
    lines = [markdown_table(rows, metrics=METRICS, digits=DIGITS, **names)]
    lines += [f"{name}: {json.dumps(found)}\n" for name, found in beside.items()]
    write_text(out / "results.md", "\n".join(lines))
    present = {m: METHODS[m] for m in METHODS if any(r["method"] == m for r in records)}
    names |= {"methods": present, "metrics": {metric: METRICS[metric] for metric in SHOWN}}
    if not draw_differences(out / "differences.png", records, larger_is_better=LARGER_IS_BETTER, **names):
        say("differences.png is left out: it needs matplotlib (pip install matplotlib)")
    for name, images in sets.items():
        draw_contours(
            out, name, images, [m for m in present if m in ("ftl", "energy", "energy-divided", "energy-affine")]
        )
    return out / "results.md"


def describe_set(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Dice between raters, which no method changes; of two raters, the shares of samples that follow each, by seed."""
    raters = [case["inter_rater_dice"] for case in records[0]["cases"].values()]
    shares: dict[str, Any] = {}
    for record in records:
        cases = record["cases"].values()
        if all("first_mode" in case for case in cases):
            found = [round(float(np.mean([case[f"{name}_mode"] for case in cases])), 3) for name in MODES]
            shares.setdefault(record["method"], []).append(found)
    return {"inter_rater_dice": round(float(np.mean(raters)), 4)} | ({"modes": shares} if shares else {})


def draw_contours(out: Path, name: str, images: RaterSet, methods: Sequence[str]) -> None:
    sample = images.test[0]
    shape = (*sample.image.shape[1:], 1)[:3]
    for method in methods:
        with np.load(out / "runs" / f"{name}-{method}-0.npz") as masks:
            samples = masks[sample.name].astype(np.uint8).reshape(-1, *shape)
        raters = list(sample.annotations.reshape(-1, *shape))
        title = f"{METHODS[method]}, {sample.name}"
        path = out / f"{name}-{method}.png"
        draw_sample_contours(path, sample.image.reshape(shape), samples, raters, np.eye(4), title=title)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds brain_growth_multirater/")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, table and figures")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--steps", type=int, help="steps of every method; by default those of the set")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 on")
    parser.add_argument("--threads", type=int, help="threads of the network; by default as torch chooses")
    parser.add_argument("--quick", action="store_true", help="few steps on a few discs, two seeds")
    parsed = parser.parse_args(arguments)
    if parsed.data is None and not parsed.quick and "growth" in parsed.sets:
        parser.error("--data is needed for the set growth; without it, use --sets discs lesions or --quick")
    if BASELINE not in parsed.methods:
        parser.error(f"--methods must hold the baseline {BASELINE}, which the others are compared with")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and print the table's path."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.quick:
        sets, seeds, budget = {"discs": load_discs(cases=3, side=24)}, 2, Budget(steps=20, train_samples=4)
    else:
        sets = {name: SETS[name](options.data) for name in options.sets}
        seeds, budget = options.seeds, Budget(steps=options.steps)
    runs = options.out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    records = [r for name, images in sets.items() for r in run_set(name, images, budget, seeds, runs, options.methods)]
    print(write_report(options.out, records, sets))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
