"""Prostate zones with one path or two, with and without co-training and an auxiliary task, at equal budget.

    python pipelines/pirads_dual_path.py --out DIR             three seeds, four folds
    python pipelines/pirads_dual_path.py --out DIR --quick     small, two seeds, one fold

Every method sees the same batches of phantoms with the same optimiser and the same number of steps:

    single      anisotropic U-Net with one softmax over four zones and background
    wide        the same, as wide as it takes to have the weights of two paths
    dual        two U-Nets, (PZ, TZ) and (TZ, DPU, AFS), fused
    dual-aux    as dual, and each path regresses signed distances
    cot         as dual; in the second stage the paths are asked to agree on TZ
    cot-aux     both

The first stage (two thirds of the steps) is supervised for all; the second starts from its last weights with a new
optimiser and a rate that falls to zero along a cosine, and alone differs between `dual` and `cot`, which therefore
share the first. All dual methods start from the same random weights; single, wide and dual cannot, being different
networks.

Source: Das, Ghosh, Stober, "PI-RADS v2 Compliant Automated Segmentation of Prostate Zones Using co-training Motivated
Multi-task Dual-Path CNN" (2023); baseline: Meyer et al., "Towards Patient-Individual PI-RADS v2 Sector Map" (ISBI
2019). Where this differs from the paper: phantoms in place of PROSTATEx; small networks without dropout; the last
weights, no selection; groups of zones, auxiliary task and form of the disagreement are our guesses.

Distances are mean contour distances of connectivity 3; a zone that is missed counts the diagonal of the volume. Each
run leaves DIR/runs/METHOD-SEED-FOLD.json (and its labels as .npz) and is not repeated; results.json, results.md,
differences.png and zones.png are written at the end.
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
from ignite.engine import Events
from monai.engines.utils import IterationEvents
from monai.losses.dice import DiceLoss
from pirads_dual_path_report import METHODS, write_report
from run_files import read_record, say, write_text

from medseg.data import atomic_path, make_zone_phantom
from medseg.data.zone_phantom import PROSTATE_ZONES
from medseg.engines import CoTrainingTrainer
from medseg.losses import CoTrainingDisagreementLoss, DualPathZoneLoss
from medseg.metrics import compute_contour_distance, compute_dice
from medseg.networks import AnisotropicUNet, DualPathZoneNet
from medseg.transforms import ZoneDistance

# What each question compares: a baseline and the methods set against it.
QUESTIONS = {
    "against one path": ("single", tuple(METHODS)),
    "what co-training adds": ("dual", ("dual", "cot")),
    "what distances add": ("dual", ("dual", "dual-aux")),
    "what co-training adds to distances": ("dual-aux", ("dual-aux", "cot-aux")),
}
NORM = ("batch", {"eps": 1e-3, "momentum": 0.1})  # running statistics must settle within some hundred steps
EPOCHS = 10  # of the second stage; the disagreement is faded in over the first half


@dataclass(frozen=True)
class Budget:
    """What every method gets; `features` is the width of the finest level of one path."""

    features: int = 8
    steps: int = 300
    batch: int = 2
    learning_rate: float = 2e-3
    second_rate: float = 1e-3
    cases: int = 24
    folds: int = 4
    shape: tuple[int, ...] = (40, 40, 12)
    spacing: tuple[float, ...] = (1.5, 1.5, 4.0)

    @property
    def second(self) -> int:
        """Steps of the second stage, a multiple of its epochs."""
        return self.steps // 3 // EPOCHS * EPOCHS

    @property
    def first(self) -> int:
        """Steps of the first stage."""
        return self.steps - self.second


@dataclass(frozen=True)
class Sample:
    """A phantom with slices first: image (1, Z, Y, X), label (1, Z, Y, X), signed distances (4, Z, Y, X)."""

    name: str
    image: torch.Tensor
    label: torch.Tensor
    distance: torch.Tensor


def draw_sample(seed: int, budget: Budget) -> Sample:
    phantom = make_zone_phantom(budget.shape, spacing=budget.spacing, seed=seed)
    low, high = np.percentile(phantom.image, (1, 99))
    image = np.clip((phantom.image - low) / (high - low), 0, 1).astype(np.float32)
    image, label = (torch.from_numpy(a.T.copy())[None] for a in (image, phantom.label))
    distance = ZoneDistance(spacing=budget.spacing[::-1])(label)
    return Sample(f"prostate {seed}", image, label.long(), distance)


def draw_batches(samples: Sequence[Sample], steps: int, batch: int, seed: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Whole phantoms, mirrored left to right or not, darker or brighter; one seed gives all methods the same."""
    random = np.random.default_rng(seed)
    for _ in range(steps):
        chosen = [samples[i] for i in random.choice(len(samples), batch, replace=False)]
        mirrored, factors = random.integers(2, size=batch), random.uniform(0.8, 1.2, batch)
        items = [
            [part.flip(-1) if flip else part for part in (s.image * factor, s.label, s.distance)]
            for s, flip, factor in zip(chosen, mirrored, factors.astype(np.float32).tolist(), strict=True)
        ]
        image, label, distance = (torch.stack(parts) for parts in zip(*items, strict=True))
        yield {"image": fast(image), "label": label, "label_distance": distance}


def fast(image: torch.Tensor) -> torch.Tensor:
    """Channels last, in which convolutions on CPUs are a third faster here."""
    return image.contiguous(memory_format=torch.channels_last_3d)


def widths(first: float) -> list[int]:
    return [round(first * 2**level) for level in range(5)]


def build_network(method: str, budget: Budget, seed: int) -> torch.nn.Module:
    """A network with weights of the seed; all dual ones have the same where they have the same layers."""
    torch.manual_seed(seed)
    if method in ("single", "wide"):
        # Weights grow with the square of the width.
        features = widths(budget.features * (2**0.5 if method == "wide" else 1))
        network = AnisotropicUNet(features=features, dropout=0.0, norm=NORM)
    else:
        with_heads = DualPathZoneNet(features=widths(budget.features), dropout=0.0, norm=NORM, aux="sdf")
        network = with_heads
        if not method.endswith("aux"):
            network = DualPathZoneNet(features=widths(budget.features), dropout=0.0, norm=NORM, aux=None)
            network.load_state_dict({k: v for k, v in with_heads.state_dict().items() if k in network.state_dict()})
    return network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]


def rate_at(step: int, budget: Budget, stage: int) -> float:
    if stage == 1:
        return budget.learning_rate
    return budget.second_rate * (1 + np.cos(np.pi * step / budget.second)) / 2


def train_single(
    network: torch.nn.Module, batches: Iterator[dict[str, Any]], budget: Budget, stage: int
) -> list[float]:
    """Take one step for each batch: one minus Dice, summed over the channels as for two paths; give the losses."""
    optimizer = torch.optim.Adam(network.parameters())
    dice = DiceLoss(to_onehot_y=True, softmax=True, smooth_nr=1.0, smooth_dr=1.0, reduction="none")
    losses = []
    network.train()
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = rate_at(step, budget, stage)
        optimizer.zero_grad()
        loss = dice(network(batch["image"]), batch["label"]).flatten(1).sum(dim=1).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def train_dual(
    network: torch.nn.Module, batches: Sequence[dict[str, Any]], budget: Budget, stage: int, co_training: bool
) -> list[float]:
    """One stage of a dual method; without co-training the second is the first gone on with."""
    assert isinstance(network, DualPathZoneNet)
    optimizer = torch.optim.Adam(network.parameters())
    epochs = EPOCHS if stage == 2 else 1
    loss = DualPathZoneLoss(aux=network.aux, ramp_epochs=EPOCHS / 2)
    trainer = CoTrainingTrainer(
        "cpu",
        epochs,
        batches,
        network,
        optimizer,
        loss,
        stage=2 if co_training else 1,
        epoch_length=len(batches) // epochs,
    )
    losses: list[float] = []

    def set_rate(_: Any) -> None:
        optimizer.param_groups[0]["lr"] = rate_at(trainer.state.iteration - 1, budget, stage)

    trainer.add_event_handler(Events.ITERATION_STARTED, set_rate)
    trainer.add_event_handler(
        IterationEvents.LOSS_COMPLETED, lambda: losses.append(float(trainer.state.output["loss"].detach()))
    )
    trainer.run()
    return losses


def run_method(
    method: str, train: Sequence[Sample], test: Sequence[Sample], budget: Budget, seed: Sequence[int], shared: Path
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Train both stages and measure the test phantoms; give the record and the labels that were found."""
    network = build_network(method, budget, seed[0])
    first = draw_batches(train, budget.first, budget.batch, (*seed, 0))
    second = list(draw_batches(train, budget.second, budget.batch, (*seed, 1)))
    began, before = time.perf_counter(), {}
    if method in ("single", "wide"):
        losses = train_single(network, first, budget, 1) + train_single(network, iter(second), budget, 2)
    else:
        losses = run_first_stage(network, first, budget, shared)
        before = {"disagreement_after_stage_1": measure_disagreement(network, test)}
        losses = losses + train_dual(network, second, budget, 2, co_training=method.startswith("cot"))
        before["disagreement_after_stage_2"] = measure_disagreement(network, test)
    seconds = time.perf_counter() - began
    labels = {sample.name: predict(network, sample) for sample in test}
    cases = {sample.name: measure(labels[sample.name], sample, budget) for sample in test}
    weights = sum(p.numel() for p in network.parameters())
    return {"seconds": round(seconds, 1), "weights": weights, "losses": losses, **before, "cases": cases}, labels


def run_first_stage(
    network: torch.nn.Module, batches: Iterator[dict[str, Any]], budget: Budget, path: Path
) -> list[float]:
    """Train the first stage, or take over what the method that shares it has left; give the losses."""
    settings = json.dumps(asdict(budget))
    if path.exists():
        found = torch.load(path, weights_only=True)
        if found["settings"] == settings:
            network.load_state_dict(found["state"])
            return found["losses"]
    losses = train_dual(network, list(batches), budget, 1, co_training=False)
    with atomic_path(path) as part:
        torch.save({"settings": settings, "state": network.state_dict(), "losses": losses}, part)
    return losses


@torch.inference_mode()
def predict(network: torch.nn.Module, sample: Sample) -> np.ndarray:
    """Labels (Z, Y, X)."""
    return network.eval()(fast(sample.image[None]))[0].argmax(dim=0).numpy().astype(np.uint8)


@torch.inference_mode()
def measure_disagreement(network: torch.nn.Module, test: Sequence[Sample]) -> float:
    """Mean disagreement of the paths on TZ over the test phantoms."""
    values = []
    for sample in test:
        first, second = network.eval()(fast(sample.image[None]), return_dict=True).branch_logits
        tz = [logits.softmax(dim=1)[:, c : c + 1] for logits, c in ((first, 1), (second, 0))]
        values.append(CoTrainingDisagreementLoss()(*tz).item())
    return float(np.mean(values))


def measure(found: np.ndarray, sample: Sample, budget: Budget) -> dict[str, float]:
    """Dice and contour distance of every zone."""
    ids = torch.arange(1, len(PROSTATE_ZONES) + 1).view(-1, 1, 1, 1)
    pred, ref = ((labels == ids)[None] for labels in (torch.from_numpy(found)[None], sample.label))
    dice = compute_dice(pred, ref)[0].tolist()
    distance = compute_contour_distance(pred, ref, spacing=budget.spacing[::-1])[0].tolist()
    values = {f"dice_{zone}": value for zone, value in zip(PROSTATE_ZONES, dice, strict=True)}
    return values | {f"mad_{zone}": value for zone, value in zip(PROSTATE_ZONES, distance, strict=True)}


def run_all(budget: Budget, seeds: int, folds_run: int, methods: Sequence[str], runs: Path) -> list[dict[str, Any]]:
    """Run every method with every seed and fold; what an earlier call finished with the same settings is read."""
    samples = [draw_sample(seed, budget) for seed in range(budget.cases)]
    settings = json.loads(json.dumps(asdict(budget)))
    records = []
    for seed in range(seeds):
        parts: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
        for fold in range(folds_run):
            test = samples[fold :: budget.folds]
            train = [s for s in samples if s not in test]
            for method in methods:
                path = runs / f"{method}-{seed}-{fold}.json"
                record = read_record(path, settings)
                if record is None:
                    say(f"seed {seed}, fold {fold}: {METHODS[method]}")
                    aux = "-aux" if method.endswith("aux") else ""
                    shared = runs / f"stage1{aux}-{seed}-{fold}.pt"
                    found, labels = run_method(method, train, test, budget, (seed, fold), shared)
                    record = {"method": method, "seed": seed, "fold": fold, "settings": settings} | found
                    with atomic_path(path.with_suffix(".npz")) as part:
                        np.savez_compressed(part, **labels)  # type: ignore[arg-type]
                    write_text(path, json.dumps(record, indent=1))
                parts[method].append(record)
        records += [join_folds(found) for found in parts.values()]
    return records


def join_folds(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One record of a method and a seed with the cases of all folds."""
    kept = {key: parts[0][key] for key in ("method", "seed", "settings", "weights")}
    stages = [key for key in parts[0] if key.startswith("disagreement")]
    means = {key: float(np.mean([part[key] for part in parts])) for key in stages}
    cases = {name: case for part in parts for name, case in part["cases"].items()}
    return {"set": "phantoms", **kept, **means, "folds": [part["fold"] for part in parts], "cases": cases}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, tables and figures")
    parser.add_argument("--steps", type=int, default=300, help="steps of every method, both stages")
    parser.add_argument("--features", type=int, default=8, help="width of the finest level of one path")
    parser.add_argument("--shape", type=int, nargs=3, default=Budget.shape, help="voxels of a phantom, x y z")
    parser.add_argument("--spacing", type=float, nargs=3, default=Budget.spacing, help="their edges in mm")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 on")
    parser.add_argument("--folds-run", type=int, default=4, help="how many of the four folds, from 0 on")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--threads", type=int, help="threads of the network; by default as torch chooses")
    parser.add_argument("--quick", action="store_true", help="few steps on a few phantoms, two seeds, one fold")
    parsed = parser.parse_args(arguments)
    if "single" not in parsed.methods:
        parser.error("--methods must hold the baseline single, which the others are compared with")
    if not 1 <= parsed.folds_run <= Budget.folds or parsed.steps < 3 * EPOCHS:
        parser.error(f"--folds-run must lie in 1 to {Budget.folds}, and --steps be at least {3 * EPOCHS}")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and print the tables' path."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    grid: dict[str, Any] = {"shape": tuple(options.shape), "spacing": tuple(options.spacing)}
    budget, seeds, folds_run = Budget(options.features, options.steps, **grid), options.seeds, options.folds_run
    if options.quick:
        budget, seeds, folds_run = Budget(2, steps=30, cases=8, shape=(24, 24, 8), spacing=(2.5, 2.5, 6.0)), 2, 1
    runs = options.out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    records = run_all(budget, seeds, folds_run, options.methods, runs)

    def show(name: str) -> tuple[np.ndarray, np.ndarray]:
        sample = draw_sample(int(name.split()[-1]), budget)
        return sample.image[0].numpy(), sample.label[0].numpy()

    print(write_report(options.out, records, QUESTIONS, show))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
