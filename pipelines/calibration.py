"""Do the probabilities of the hippocampus bundle mean what they say, and which calibration makes them?

    python pipelines/calibration.py --data DIR --out DIR       the 37 validation cases, three splits in halves
    python pipelines/calibration.py --out DIR --quick          a few drawn volumes, and logits drawn to be too sure

The network has not seen these cases in training. Each split halves them; a calibrator is fitted to voxels of one half
and measured on the cases of the other, and the other way round, so that every case is measured once in each split and
no case is on both sides. The methods, all of `medseg.core.calibration`, see the same voxels, but for the one that draws
them from the whole volume in place of half of them near borders:

    none                   the network as it is
    temperature            one temperature, least negative log-likelihood
    temperature_uniform    the same from uniformly drawn voxels
    mixture                8 temperatures, least negative log-likelihood
    h_calibration          8 temperatures, h-calibration objective with its published window, batch and rate
    correctness            8 temperatures, squared difference of confidence and correctness

Every case gives its own calibration error (all voxels, predicted foreground, predicted or labelled foreground, within
two voxels of a border), class-wise error, Brier score, likelihood and Dice; differences to `none` are paired by case,
and intervals draw cases and splits anew.

The network's probabilities are kept in DIR/probabilities and each method and split in DIR/runs, and not made again.
results.json, results.md, differences.png and calibration.json are written at the end; the last holds the temperature
fitted to all cases, for `TemperatureScaledd` in a bundle.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired_comparison import compare_methods, draw_differences, markdown_table
from run_files import read_record, say, write_text

from medseg.bundles import Bundle
from medseg.core.calibration import Calibrator, TemperatureCalibrator, TemperatureMixture, sample_voxels
from medseg.data import atomic_path, load_datalist, make_phantom, read_image, read_mask
from medseg.engines import Predictor
from medseg.metrics import compute_dice, compute_label_calibration
from medseg.transforms import TemperatureScaledd

METHODS = {
    "none": "none",
    "temperature": "temperature",
    "temperature_uniform": "temperature, uniform voxels",
    "mixture": "mixture",
    "h_calibration": "h-calibration",
    "correctness": "correctness",
}
# Name, digits and direction of what is compared.
METRICS: dict[str, tuple[str, int, bool]] = {
    "ece_all": ("ECE, all voxels", 4, False),
    "ece_predicted": ("ECE, predicted foreground", 4, False),
    "ece_foreground": ("ECE, foreground", 4, False),
    "ece_boundary": ("ECE, near borders", 4, False),
    "classwise_ece_foreground": ("class-wise ECE, foreground", 4, False),
    "brier_foreground": ("Brier, foreground", 4, False),
    "nll_all": ("NLL, all voxels", 4, False),
    "nll_foreground": ("NLL, foreground", 4, False),
    "dice": ("Dice", 4, True),
}
BUNDLE = Path(__file__).resolve().parents[1] / "configs" / "hippocampus_segmentation"
Record = dict[str, Any]
# Probabilities (C, X, Y, Z) and labels (X, Y, Z) of each case.
Cases = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Budget:
    """What every fit may use."""

    voxels: int = 40_000
    components: int = 8
    steps: int = 300
    window: int = 200
    splits: int = 3


def predict_cases(data: Path, folder: Path) -> Cases:
    """Run the bundle, without any calibration of its own, on the validation cases."""
    bundle = Bundle.load(BUNDLE)
    predictor: Predictor | None = None
    cases = {}
    for sample in load_datalist(str(data / "hippocampus_msd"), "validation"):
        name, path = sample["sample_id"], folder / f"{sample['sample_id']}-{bundle.weights_sha256()[:8]}.npy"
        if not path.exists():
            predictor = predictor or _uncalibrated(Predictor(bundle, device="cpu"))
            found = predictor.predict([read_image(sample["image"])], probabilities=True).probabilities
            assert found is not None
            with atomic_path(path) as part, part.open("wb") as file:
                np.save(file, found)
            say(f"{name}: predicted")
        labels = read_mask(sample["label"]).array.astype(np.int64)
        cases[name] = torch.from_numpy(np.load(path)), torch.from_numpy(labels)
    return cases


def _uncalibrated(predictor: Predictor) -> Predictor:
    """Without the calibration that the bundle may already have."""
    kept = tuple(t for t in predictor.ending.transforms if not isinstance(t, TemperatureScaledd))
    predictor.ending = dataclasses.replace(predictor.ending, transforms=kept, late=())
    return predictor


def draw_cases(count: int = 4) -> Cases:
    """Drawn volumes with probabilities that are too sure by a factor of two."""
    cases = {}
    for seed in range(count):
        _, labels = make_phantom("nested", shape=(16, 18, 14), seed=seed, noise=0.1)
        ids = torch.from_numpy(labels.astype(np.int64))
        generator = torch.Generator().manual_seed(seed)
        truth = torch.nn.functional.one_hot(ids, 3).movedim(-1, 0)
        # Twice the logits of a Gaussian with unit noise.
        evidence = truth * 2.5 + torch.randn(truth.shape, generator=generator)
        cases[f"drawn{seed}"] = (2 * 2.5 * evidence).softmax(0), ids
    return cases


def build(method: str, budget: Budget) -> Calibrator:
    """A calibrator to fit; for `none` one that changes nothing."""
    if method in ("none", "temperature", "temperature_uniform"):
        return TemperatureCalibrator()
    objective: Any = "nll" if method == "mixture" else method
    return TemperatureMixture(budget.components, objective, steps=budget.steps, window=budget.window)


def fit(cases: Cases, names: Sequence[str], method: str, budget: Budget) -> Calibrator:
    """Fit to voxels of these cases, equally many of each."""
    calibrator = build(method, budget)
    if method == "none":
        return calibrator
    each = max(budget.voxels // len(names), 1)
    share = 0.0 if method == "temperature_uniform" else 0.5
    drawn = [_draw(*cases[name], each, share, seed) for seed, name in enumerate(names)]
    return calibrator.fit(torch.cat([logits for logits, _ in drawn]), torch.cat([labels for _, labels in drawn]))


def _draw(
    probabilities: torch.Tensor, labels: torch.Tensor, count: int, share: float, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = log(probabilities)[None]
    if share:
        return sample_voxels(logits, labels[None, None], count, boundary_share=share, seed=seed)
    chosen = torch.randperm(labels.numel(), generator=torch.Generator().manual_seed(seed))[:count]
    return logits[0].flatten(1).T[chosen], labels.flatten()[chosen]


def log(probabilities: torch.Tensor) -> torch.Tensor:
    """Logits of probabilities."""
    return probabilities.clamp_min(torch.finfo(torch.float32).tiny).log()


def measure(probabilities: torch.Tensor, labels: torch.Tensor, calibrator: Calibrator, plain: bool) -> dict[str, float]:
    """All measures of one case, and how many voxels of its mask are not those of the network."""
    calibrated = probabilities[None] if plain else calibrator.transform(log(probabilities)[None]).exp()
    target = labels[None, None]
    values = {
        f"{name}_{region}": float(value)
        for region in ("all", "predicted", "foreground", "boundary")
        for name, value in compute_label_calibration(calibrated, target, region=region).items()
    }
    best = calibrated.argmax(1)
    masks = [torch.nn.functional.one_hot(m, calibrated.shape[1]).movedim(-1, 1) for m in (best, target[0])]
    values["dice"] = float(compute_dice(*masks, include_background=False).nanmean())
    return values | {"mask_changed": float((best[0] != probabilities.argmax(0)).sum())}


def run(cases: Cases, method: str, split: int, budget: Budget) -> Record:
    """Fit to each half and measure the other."""
    names = sorted(cases)
    order = np.random.default_rng(split).permutation(len(names))
    halves = [[names[i] for i in sorted(part)] for part in np.array_split(order, 2)]
    measured: dict[str, dict[str, float]] = {}
    fitted, began = [], time.process_time()
    for fitting, testing in (halves, halves[::-1]):
        calibrator = fit(cases, fitting, method, budget)
        fitted.append(calibrator.settings())
        measured |= {name: measure(*cases[name], calibrator, method == "none") for name in testing}
    seconds = round(time.process_time() - began, 1)
    return {"fitted": fitted, "halves": halves, "cpu_seconds": seconds, "cases": measured}


def run_all(cases: Cases, budget: Budget, folder: Path, name: str) -> list[Record]:
    """Run every method and split; what an earlier call finished with the same settings is read instead."""
    settings = json.loads(json.dumps(asdict(budget) | {"cases": sorted(cases)}))
    records = []
    for split in range(budget.splits):
        for method in METHODS:
            path = folder / f"{method}-{split}.json"
            record = read_record(path, settings)
            if record is None:
                head = {"set": name, "method": method, "seed": split, "settings": settings}
                record = head | run(cases, method, split, budget)
                write_text(path, json.dumps(record, indent=1))
                say(f"{method}, split {split}: ECE {_mean(record, 'ece_all'):.4f}")
            records.append(record)
    return records


def _mean(record: Record, metric: str) -> float:
    return float(np.nanmean([case[metric] for case in record["cases"].values()]))


def write_report(out: Path, records: Sequence[Record], cases: Cases, budget: Budget) -> Path:
    """Write tables, figure and the temperature of all cases; give the path of the table."""
    larger = {name: direction for name, (_, _, direction) in METRICS.items()}
    titles = {name: title for name, (title, _, _) in METRICS.items()}
    digits = {name: count for name, (_, count, _) in METRICS.items()}
    rows = compare_methods(records, baseline="none", larger_is_better=larger)
    everyone = fit(cases, sorted(cases), "temperature", budget).settings()
    write_text(out / "calibration.json", json.dumps(everyone, indent=1) + "\n")
    write_text(out / "results.json", json.dumps({"comparison": rows, "all_cases": everyone}, indent=1))
    lines = [markdown_table(rows, baseline="none", methods=METHODS, metrics=titles, digits=digits)]
    lines += ["| method | temperatures fitted, lowest to highest | voxels of masks changed | processor s |"]
    lines += ["|---|---|---:|---:|"]
    lines += [_fitted_line(method, [r for r in records if r["method"] == method]) for method in METHODS]
    lines += ["", f"Temperature of all cases: {everyone['temperatures'][0]:.4f}"]
    write_text(out / "results.md", "\n".join(lines) + "\n")
    draw_differences(
        out / "differences.png", records, baseline="none", methods=METHODS,
        metrics={m: titles[m] for m in ("ece_all", "ece_predicted", "ece_boundary", "nll_foreground")},
        larger_is_better=larger,
    )  # fmt: skip
    return out / "results.md"


def _fitted_line(method: str, records: Sequence[Record]) -> str:
    temperatures = [t for r in records for half in r["fitted"] for t in half["temperatures"]]
    changed = sum(case["mask_changed"] for r in records for case in r["cases"].values())
    seconds = sum(r["cpu_seconds"] for r in records)
    return f"| {METHODS[method]} | {min(temperatures):.3f} to {max(temperatures):.3f} | {changed:.0f} | {seconds:.0f} |"


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds hippocampus_msd/")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, tables and the figure")
    parser.add_argument("--splits", type=int, default=Budget.splits, help="how many splits in halves")
    parser.add_argument("--threads", type=int, help="threads of the network; by default as torch chooses")
    parser.add_argument("--quick", action="store_true", help="few steps on a few drawn volumes, one split")
    parsed = parser.parse_args(arguments)
    if parsed.data is None and not parsed.quick:
        parser.error("--data is needed for real images; without it, use --quick")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and print the path of the table."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    for folder in ("runs", "probabilities"):
        (options.out / folder).mkdir(parents=True, exist_ok=True)
    if options.quick:
        cases, budget, name = draw_cases(), Budget(voxels=4000, components=2, steps=10, window=40, splits=1), "drawn"
    else:
        cases, name = predict_cases(options.data, options.out / "probabilities"), "hippocampus"
        budget = Budget(splits=options.splits)
    records = run_all(cases, budget, options.out / "runs", name)
    print(write_report(options.out, records, cases, budget))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
