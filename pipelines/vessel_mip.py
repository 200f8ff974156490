"""Maximum projections as a loss on vessels: none, along one axis, along three, and of slabs, at equal budget.

    python pipelines/vessel_mip.py --out DIR             three seeds
    python pipelines/vessel_mip.py --out DIR --quick     small, two seeds

Every method starts from the same random weights of a seed, sees the same crops and takes the same number of steps:

    none      focal Tversky on voxels
    single    0.7 focal Tversky on voxels + 0.3 on projections along the last axis
    multi     0.7 focal Tversky on voxels + 0.3 on projections along all three axes
    slabs     as multi, projecting slabs a third of the crop thick

Source: Radhakrishna et al., "SPOCKMIP: Segmentation of Vessels in MRAs with Enhanced Continuity using Maximum Intensity
Projection as Loss" (2024).

Where this differs from the paper: phantoms in place of 7 T angiographies, so that every break has an exact length;
crops are drawn alike with and without projections (there they are not); the label is projected over the crop, as the
prediction is; networks and budgets are small enough for a laptop's processor, and the last weights are measured, not
selected ones. Slabs are an addition of ours. Batches, network, training and prediction are those of
`betti_matching.py`.

Each run leaves DIR/runs/METHOD-SEED.json (and its masks as .npz) and is not repeated; results.json, results.md,
differences.png and projections.png are written at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from betti_matching import (
    Budget,
    ImageSet,
    Sample,
    build_network,
    draw_batches,
    predict,
    train,
)
from paired_comparison import compare_methods, draw_differences, markdown_table
from run_files import read_record, say, write_text
from scipy import ndimage

from medseg.data import atomic_path, make_vessel_phantom
from medseg.losses import FocalTverskyLoss, MIPLoss, SegWithMIPLoss
from medseg.metrics import compute_betti_number_error, compute_centreline_gap, compute_cldice, compute_dice

METHODS = {"none": "no MIP", "single": "one axis", "multi": "three axes", "slabs": "three axes, slabs"}
METRICS = {
    "gap_mm": "centreline gap, mm",
    "gap_fraction": "centreline gap, fraction",
    "b0_error": "b0 error",
    "pieces": "pieces of trees, error",
    "specks": "specks off the trees",
    "cldice": "clDice",
    "dice": "Dice",
}
LARGER_IS_BETTER = {metric: metric in ("dice", "cldice") for metric in METRICS}
DIGITS = {"gap_mm": 1, "gap_fraction": 4, "b0_error": 2, "pieces": 2, "specks": 2, "cldice": 4, "dice": 4}
SHOWN = ("gap_mm", "b0_error", "cldice", "dice")
BASELINE = "none"
AXIS = 2  # of the single projection and of the figure
SPACING = 0.5  # mm
RATE = 1e-2  # the focal Tversky loss is slow to leave an empty mask
LOOK: dict[str, Any] = {"radii": (1.0, 3.0), "contrast": 0.5, "noise": 0.08, "spacing": (SPACING,) * 3}


@dataclass(frozen=True)
class Vessels(Sample):
    """A phantom with the lines in the middle of its vessels, (spatial...)."""

    centreline: np.ndarray


@dataclass(frozen=True)
class VesselSet(ImageSet):
    """Phantoms to train and to test on."""

    test: Sequence[Vessels]


def draw_vessels(seed: int, size: int) -> Vessels:
    """A phantom of faint vessels under noise, its image of mean 0 and deviation 1."""
    phantom = make_vessel_phantom((size,) * 3, seed=seed, **LOOK)
    image = (phantom.image - phantom.image.mean()) / phantom.image.std()
    return Vessels(f"vessels {seed}", image[None], phantom.label > 0, phantom.centreline > 0)


def load_vessels(*, train: int, test: int, size: int, patch: int, first_test: int = 1000) -> VesselSet:
    """Draw phantoms to train on, and others to test on."""
    tests = range(first_test, first_test + test)
    return VesselSet([draw_vessels(s, size) for s in range(train)], [draw_vessels(s, size) for s in tests], patch)


def build_loss(method: str, patch: int) -> torch.nn.Module:
    voxels = FocalTverskyLoss(sigmoid=True)
    if method == "none":
        return voxels
    axes = [AXIS] if method == "single" else None
    slabs = patch // 3 if method == "slabs" else None
    return SegWithMIPLoss(voxels, MIPLoss(axes, slab_thickness=slabs, sigmoid=True))


def run_method(method: str, images: VesselSet, budget: Budget, seed: int) -> tuple[dict[str, Any], Any]:
    """Train from the weights of the seed with one loss, then measure the test images; give the record and the masks."""
    network, loss = build_network(images, budget, seed), build_loss(method, images.patch)
    batches = draw_batches(images, budget.steps, budget.batch, (seed, 1))
    # The rate falls to zero along a cosine, so that the last weights stand for the run without a selection.
    rates = budget.learning_rate * (1 + np.cos(np.pi * np.arange(budget.steps) / budget.steps)) / 2
    began = time.perf_counter()
    losses = train(network, loss, batches, rates.tolist())
    seconds = time.perf_counter() - began
    masks = {sample.name: predict(network, sample, images.patch) for sample in images.test}
    cases = {sample.name: measure(masks[sample.name], sample) for sample in images.test}
    return {"training_seconds": round(seconds, 1), "losses": losses, "cases": cases}, masks


def measure(pred: np.ndarray, sample: Vessels) -> dict[str, float]:
    """All metrics of one volume; an empty prediction counts as what it lacks."""
    y_pred, y, line = (torch.from_numpy(mask)[None, None] for mask in (pred, sample.mask, sample.centreline))
    pieces, specks = count_pieces(pred, sample.mask)
    gap: dict[str, Any] = {"centreline": line, "spacing": SPACING}
    return {
        "gap_mm": compute_centreline_gap(y_pred, y, **gap).item(),
        "gap_fraction": compute_centreline_gap(y_pred, y, normalize=True, **gap).item(),
        "b0_error": compute_betti_number_error(y_pred, y, dims=[0]).item(),
        "pieces": abs(pieces - count_pieces(sample.mask, sample.mask)[0]),
        "specks": specks,
        "cldice": compute_cldice(y_pred, y).item(),
        "dice": compute_dice(y_pred, y).item(),
    }


def count_pieces(pred: np.ndarray, target: np.ndarray) -> tuple[int, int]:
    """Face-connected components that touch the target, and those that do not: together they are b0."""
    components, count = ndimage.label(pred)  # type: ignore[misc]
    pieces = len(np.unique(components[pred & target]))
    return pieces, count - pieces


def run_methods(images: VesselSet, budget: Budget, seeds: int, runs: Path) -> list[dict[str, Any]]:
    """Run every method with every seed; what an earlier call finished with the same settings is read instead."""
    settings = describe_settings(images, budget)
    records = []
    for seed in range(seeds):
        for method in METHODS:
            path = runs / f"{method}-{seed}.json"
            record = read_record(path, settings)
            if record is None:
                say(f"seed {seed}: {METHODS[method]}")
                found, masks = run_method(method, images, budget, seed)
                record = {"set": "vessels", "method": method, "seed": seed, "settings": settings} | found
                with atomic_path(path.with_suffix(".npz")) as part:
                    np.savez_compressed(part, **masks)
                write_text(path, json.dumps(record, indent=1))
            records.append(record)
    return records


def describe_settings(images: VesselSet, budget: Budget) -> dict[str, Any]:
    """What decides a result, as JSON gives it back."""
    used = {name: asdict(budget)[name] for name in ("steps", "batch", "channels", "learning_rate")}
    names = {"train": [s.name for s in images.train], "test": [s.name for s in images.test]}
    more = {"patch": images.patch, "size": images.train[0].mask.shape[0], "look": LOOK}
    return json.loads(json.dumps(used | names | more))


def write_report(out: Path, records: list[dict[str, Any]], images: VesselSet) -> Path:
    """Write the table as JSON and Markdown, the differences and the projections of one phantom as figures."""
    rows = compare_methods(records, baseline=BASELINE, larger_is_better=LARGER_IS_BETTER)
    write_text(out / "results.json", json.dumps({"rows": rows, "settings": records[0]["settings"]}, indent=1))
    names: dict[str, Any] = {"baseline": BASELINE, "methods": METHODS}
    write_text(out / "results.md", markdown_table(rows, metrics=METRICS, digits=DIGITS, **names))
    names |= {"metrics": {metric: METRICS[metric] for metric in SHOWN}, "larger_is_better": LARGER_IS_BETTER}
    if not (draw_differences(out / "differences.png", records, **names) and draw_projections(out, records, images)):
        say("the figures are left out: they need matplotlib (pip install matplotlib)")
    return out / "results.md"


def choose_shown(records: Sequence[dict[str, Any]]) -> str:
    """The test phantom whose gap without MIP, in the first seed, is the middle one: no method chooses it."""
    cases = next(r["cases"] for r in records if r["method"] == BASELINE)
    order = sorted(cases, key=lambda name: cases[name]["gap_mm"])
    return order[len(order) // 2]


def draw_projections(out: Path, records: Sequence[dict[str, Any]], images: VesselSet) -> bool:
    """Draw image, reference and all predictions of one phantom as projections; False where matplotlib is missing."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    name = choose_shown(records)
    sample = next(s for s in images.test if s.name == name)
    figure = Figure(figsize=(2.2 * (2 + len(METHODS)), 2.7), layout="constrained")
    axes = figure.subplots(1, 2 + len(METHODS))
    axes[0].imshow(sample.image[0].max(axis=AXIS).T, cmap="gray")
    axes[0].set_title("image", fontsize=9)
    axes[1].imshow(paint(sample.mask, sample.mask))
    axes[1].set_title("reference", fontsize=9)
    for axis, method in zip(axes[2:], METHODS, strict=True):
        record = next(r for r in records if r["method"] == method)
        with np.load(out / "runs" / f"{method}-{record['seed']}.npz") as masks:
            axis.imshow(paint(masks[name], sample.mask))
        axis.set_title(f"{METHODS[method]}\ngap {record['cases'][name]['gap_mm']:.1f} mm", fontsize=9)
    for axis in axes:
        axis.set_axis_off()
    figure.suptitle(f"{name}, seed 0, along the last axis; red: missed, blue: too much", fontsize=9)
    with atomic_path(out / "projections.png") as part:
        FigureCanvasAgg(figure).print_png(str(part))
    return True


def paint(pred: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Projections of two masks in one picture, (H, W, 3): white where both are, red where the prediction lacks."""
    shown, wanted = (mask.max(axis=AXIS).T for mask in (pred, target))
    picture = np.full((*shown.shape, 3), 0.12)
    picture[shown & wanted] = 0.95
    picture[wanted & ~shown] = (0.9, 0.2, 0.1)
    picture[shown & ~wanted] = (0.2, 0.45, 0.9)
    return picture


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, table and figures")
    parser.add_argument("--steps", type=int, default=300, help="steps of every method")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 on")
    parser.add_argument("--threads", type=int, help="threads of the network; by default as torch chooses")
    parser.add_argument("--quick", action="store_true", help="a small network on a few small phantoms, two seeds")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and print the table's path."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.quick:
        images, seeds = load_vessels(train=3, test=3, size=32, patch=24), 2
        budget = Budget(steps=60, batch=2, channels=(8, 16, 32), learning_rate=RATE)
    else:
        images, seeds = load_vessels(train=16, test=12, size=64, patch=48), options.seeds
        budget = Budget(steps=options.steps, batch=2, channels=(8, 16, 32, 64), learning_rate=RATE)
    (options.out / "runs").mkdir(parents=True, exist_ok=True)
    records = run_methods(images, budget, seeds, options.out / "runs")
    print(write_report(options.out, records, images))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
