"""Betti matching as a loss: Dice alone, Dice + soft clDice and Dice + Betti matching at equal budget.

    python pipelines/betti_matching.py --data DIR --out DIR          all sets
    python pipelines/betti_matching.py --out DIR --quick             small phantoms only

For each set and seed one network is trained with Dice; from that start every method takes the same number of further
steps on the same batches, with the same optimiser:

    dice     Dice
    cldice   0.5 Dice + 0.5 soft clDice (MONAI's)
    betti    Dice + alpha Betti matching

Sources: Stucki, Paetzold, Shit, Menze, Bauer, "Topologically Faithful Image Segmentation via Induced Matching of
Persistence Barcodes" (ICML 2023); Stucki, Bürgin, Paetzold, Bauer, "Efficient Betti Matching Enables Topology-Aware 3D
Segmentation via Persistent Homology" (2024); Shit et al., "clDice - A Novel Topology-Preserving Loss Function for
Tubular Structure Segmentation" (CVPR 2021).

Where this differs from the papers: networks, patches and budgets are small enough for a laptop's processor, and nothing
is selected by a validation score; every run's last weights are measured. alpha is smaller than the published 0.5 for
patches of 48 x 48, because the loss is a sum over bars and their number grows with the patch; README.md in this folder
says how 0.01 was chosen. Test images are predicted whole by sliding windows and cut at 0.5.

Each run leaves DIR/runs/SET-METHOD-SEED.json (and its masks as .npz) and is not repeated; results.json, results.md,
differences.png and a picture of the largest gain and the largest loss are written at the end.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.losses import DiceLoss, SoftDiceclDiceLoss
from monai.networks.nets import UNet
from paired_comparison import compare_methods, draw_differences, markdown_table
from PIL import Image
from run_files import read_record, say, write_text
from skimage.morphology import skeletonize

from medseg.data import atomic_path, make_topology_phantom
from medseg.inferers import StreamingSlidingWindowInferer
from medseg.losses import DiceBettiMatchingLoss
from medseg.metrics import compute_betti_matching_error, compute_betti_number_error, compute_dice
from medseg.report.topology import draw_topology

METHODS = {"dice": "Dice", "cldice": "Dice + clDice", "betti": "Dice + Betti matching"}
METRICS = {
    "betti_matching_error": "Betti matching error",
    "betti_number_error": "Betti number error",
    "b0_error": "b0 error",
    "b1_error": "b1 error",
    "b2_error": "b2 error",
    "dice": "Dice",
    "cldice": "clDice",
}
LARGER_IS_BETTER = {metric: metric in ("dice", "cldice") for metric in METRICS}
DIGITS = {metric: 4 if better else 2 for metric, better in LARGER_IS_BETTER.items()}
SHOWN = ("betti_matching_error", "betti_number_error", "dice", "cldice")
BASELINE = "dice"


@dataclass(frozen=True)
class Budget:
    """What every method gets."""

    warm_up: int = 400
    steps: int = 200
    batch: int = 4
    channels: tuple[int, ...] = (16, 32, 64, 128)
    learning_rate: float = 3e-3
    alpha: float = 0.01


@dataclass(frozen=True)
class Sample:
    """One image (C, spatial...) of mean 0 and deviation 1, and its mask (spatial...)."""

    name: str
    image: np.ndarray
    mask: np.ndarray


@dataclass(frozen=True)
class ImageSet:
    """Images to train and to test on.

    `boundary` is the frame that the Betti matching loss and error see: structures that run off the image close up over
    a frame of foreground, as in the published configurations; objects inside the image need none.
    """

    train: Sequence[Sample]
    test: Sequence[Sample]
    patch: int
    boundary: str = "foreground"

    @property
    def spatial_dims(self) -> int:
        """2 or 3."""
        return self.train[0].mask.ndim


def load_membranes(train: int, test: int) -> Callable[[Path], ImageSet]:
    """Neuronal membranes; neighbouring slices are alike, so the `test` slices follow those for training as a block."""

    def load(data: Path) -> ImageSet:
        folder = data / "em_membranes_isbi2012"
        names = [f"{n:02d}.png" for n in range(train + test)]
        samples = [_read(folder / "images" / name, folder / "labels" / name) for name in names]
        samples = [Sample(s.name, s.image, ~s.mask) for s in samples]  # label 0 is the membrane
        return ImageSet(samples[:train], samples[train:], patch=96)

    return load


def load_pair(name: str) -> Callable[[Path], ImageSet]:
    """Two images: crops of the first train, the second tests."""

    def load(data: Path) -> ImageSet:
        folder = data / "topology_2d" / name
        images, labels = (sorted((folder / kind).glob("*.png")) for kind in ("images", "labels"))
        first, second = (_read(*paths) for paths in zip(images, labels, strict=True))
        return ImageSet([first], [second], patch=96)

    return load


def load_colon_cells(data: Path) -> ImageSet:
    """One image: its left half trains, its right half tests."""
    folder = data / "topology_2d" / "colon_cancer_cells"
    whole = _read(folder / "images" / "image_0020.png", folder / "labels" / "label_0020.png")
    middle = whole.mask.shape[1] // 2
    left = Sample("left half", whole.image[..., :middle], whole.mask[:, :middle])
    right = Sample("right half", whole.image[..., middle:], whole.mask[:, middle:])
    return ImageSet([left], [right], patch=96, boundary="none")


def load_phantoms(
    data: Path | None = None, *, train: int = 12, test: int = 12, patch: int = 32, objects: int = 2
) -> ImageSet:
    """As many rings as hollow balls, with gaps, under noise; they lie inside the image, so no frame closes them."""

    def draw(seed: int) -> Sample:
        image, label = make_topology_phantom((patch + 8,) * 3, rings=objects, balls=objects, seed=seed)
        return Sample(f"phantom {seed}", _normalise(image[None]), label > 0)

    test_seeds = range(1000, 1000 + test)
    return ImageSet([draw(s) for s in range(train)], [draw(s) for s in test_seeds], patch=patch, boundary="none")


SETS: dict[str, Callable[[Path], ImageSet]] = {
    "em": load_membranes(train=16, test=5),
    "em-choice": load_membranes(train=13, test=3),  # to choose alpha without the test slices
    "phantom": load_phantoms,
    "cremi": load_pair("CREMI"),
    "roads": load_pair("roads"),
    "colon": load_colon_cells,
}
DEFAULT_SETS = [name for name in SETS if name != "em-choice"]


def _read(image: Path, label: Path) -> Sample:
    pixels = np.atleast_3d(np.asarray(Image.open(image), np.float32)).transpose(2, 0, 1)
    return Sample(image.stem, _normalise(pixels), np.asarray(Image.open(label)) > 127)


def _normalise(image: np.ndarray) -> np.ndarray:
    axes = tuple(range(1, image.ndim))
    return ((image - image.mean(axes, keepdims=True)) / image.std(axes, keepdims=True)).astype(np.float32)


def draw_batches(images: ImageSet, count: int, batch: int, seed: Sequence[int]) -> Iterator[tuple[torch.Tensor, ...]]:
    """Random crops, mirrored and turned; the same seed gives the same batches to every method."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        drawn = (images.train[int(random.integers(len(images.train)))] for _ in range(batch))
        crops = [_crop(sample, images.patch, random) for sample in drawn]
        yield tuple(torch.from_numpy(np.stack(part)) for part in zip(*crops, strict=True))


def _crop(sample: Sample, patch: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    corner = [random.integers(n - patch + 1) for n in sample.mask.shape]
    box = tuple(slice(c, c + patch) for c in corner)
    order = random.permutation(sample.mask.ndim)
    flipped = tuple((np.flatnonzero(random.integers(2, size=sample.mask.ndim)) + 1).tolist())
    parts = sample.image[(slice(None), *box)], sample.mask[box][None].astype(np.float32)
    image, mask = (np.flip(p.transpose(0, *(order + 1)), flipped).copy() for p in parts)
    return image, mask


def build_network(images: ImageSet, budget: Budget, seed: int) -> UNet:
    torch.manual_seed(seed)
    strides = (2,) * (len(budget.channels) - 1)
    channels = len(images.train[0].image)
    return UNet(images.spatial_dims, channels, 1, budget.channels, strides, num_res_units=1)


def build_loss(method: str, images: ImageSet, alpha: float) -> torch.nn.Module:
    if method == "dice":
        return DiceLoss(sigmoid=True)
    if method == "cldice":
        return SoftDiceclDiceLoss(sigmoid=True)
    return DiceBettiMatchingLoss(alpha, sigmoid=True, boundary=images.boundary)


def train(
    network: UNet, loss: torch.nn.Module, batches: Iterator[tuple[torch.Tensor, ...]], rates: Sequence[float]
) -> list[float]:
    """Take one step of Adam for each batch and rate; give the losses."""
    optimizer = torch.optim.Adam(network.parameters())
    values = []
    network.train()
    for (image, mask), rate in zip(batches, rates, strict=True):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        value = loss(network(image), mask)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    return values


def start_network(images: ImageSet, budget: Budget, seed: int, path: Path) -> UNet:
    """The network that all methods of a seed start from: trained with Dice, kept on disk for a rerun."""
    settings = describe_settings(images, replace(budget, alpha=0, steps=0))
    network = build_network(images, budget, seed)
    if path.exists():
        found = torch.load(path, weights_only=True)
        if found["settings"] == json.dumps(settings):
            network.load_state_dict(found["state"])
            return network
    batches = draw_batches(images, budget.warm_up, budget.batch, (seed, 0))
    train(network, build_loss("dice", images, budget.alpha), batches, [budget.learning_rate] * budget.warm_up)
    with atomic_path(path) as part:
        torch.save({"settings": json.dumps(settings), "state": network.state_dict()}, part)
    return network


def run_method(method: str, images: ImageSet, budget: Budget, seed: int, start: UNet) -> tuple[dict[str, Any], Any]:
    """Train from the start with one loss, then measure the test images; give the record and the masks."""
    network, loss = deepcopy(start), build_loss(method, images, budget.alpha)
    batches = draw_batches(images, budget.steps, budget.batch, (seed, 1))
    # The rate falls to zero along a cosine, so that the last weights stand for the run without a selection.
    rates = budget.learning_rate * (1 + np.cos(np.pi * np.arange(budget.steps) / budget.steps)) / 2
    began = time.perf_counter()
    losses = train(network, loss, batches, rates.tolist())
    seconds = time.perf_counter() - began
    masks = {sample.name: predict(network, sample, images.patch) for sample in images.test}
    cases = {sample.name: measure(masks[sample.name], sample.mask, images.boundary) for sample in images.test}
    return {"training_seconds": round(seconds, 1), "losses": losses, "cases": cases}, masks


@torch.inference_mode()
def predict(network: UNet, sample: Sample, patch: int) -> np.ndarray:
    """Mask of a whole image."""
    inferer = StreamingSlidingWindowInferer(patch, sw_batch_size=4, overlap=0.5, mode="gaussian")
    return (inferer(torch.from_numpy(sample.image)[None], network.eval())[0, 0] > 0).numpy()


def measure(pred: np.ndarray, target: np.ndarray, boundary: str) -> dict[str, float]:
    """All metrics of one image; an empty prediction counts as what it lacks."""
    y_pred, y = (torch.from_numpy(mask)[None, None].float() for mask in (pred, target))
    numbers = compute_betti_number_error(y_pred, y, per_dim=True).flatten().tolist()
    return {
        "betti_matching_error": compute_betti_matching_error(y_pred, y, boundary=boundary).item(),
        "betti_number_error": numbers[-1],
        **{f"b{dim}_error": number for dim, number in enumerate(numbers[:-1])},
        "dice": compute_dice(y_pred, y).item(),
        "cldice": centreline_dice(pred, target),
    }


def centreline_dice(pred: np.ndarray, target: np.ndarray) -> float:
    """Harmonic mean of the part of each skeleton that lies inside the other mask; 0 where a skeleton is empty."""
    shares = []
    for mask, other in ((pred, target), (target, pred)):
        skeleton = skeletonize(mask) > 0
        shares.append((skeleton & other).sum() / max(skeleton.sum(), 1))
    return float(2 * shares[0] * shares[1] / max(sum(shares), 1e-12))


def run_set(name: str, images: ImageSet, budget: Budget, seeds: int, runs: Path) -> list[dict[str, Any]]:
    """Run every method with every seed; what an earlier call finished with the same settings is read instead."""
    records = []
    for seed in range(seeds):
        start = None
        for method in METHODS:
            settings = describe_settings(images, budget if method == "betti" else replace(budget, alpha=0))
            path = runs / f"{name}-{method}-{seed}.json"
            record = read_record(path, settings)
            if record is None:
                say(f"{name}, seed {seed}: {METHODS[method]}")
                start = start or start_network(images, budget, seed, runs / f"{name}-{seed}-start.pt")
                found, masks = run_method(method, images, budget, seed, start)
                record = {"set": name, "method": method, "seed": seed, "settings": settings} | found
                with atomic_path(path.with_suffix(".npz")) as part:
                    np.savez_compressed(part, **masks)
                write_text(path, json.dumps(record, indent=1))
            records.append(record)
    return records


def describe_settings(images: ImageSet, budget: Budget) -> dict[str, Any]:
    """What decides a result, as JSON gives it back."""
    more = {"patch": images.patch, "boundary": images.boundary}
    names = {"train": [s.name for s in images.train], "test": [s.name for s in images.test]}
    return json.loads(json.dumps(asdict(budget) | more | names))


def write_report(out: Path, records: list[dict[str, Any]], sets: dict[str, ImageSet]) -> Path:
    """Write the table as JSON and Markdown, the differences as a figure, and the extremes as pictures."""
    settings = {f"{r['set']}-{r['method']}": r["settings"] for r in records}
    rows = compare_methods(records, baseline=BASELINE, larger_is_better=LARGER_IS_BETTER)
    write_text(out / "results.json", json.dumps({"rows": rows, "settings": settings}, indent=1))
    names: dict[str, Any] = {"baseline": BASELINE, "methods": METHODS}
    write_text(out / "results.md", markdown_table(rows, metrics=METRICS, digits=DIGITS, **names))
    names |= {"metrics": {metric: METRICS[metric] for metric in SHOWN}, "larger_is_better": LARGER_IS_BETTER}
    if not draw_differences(out / "differences.png", records, **names):
        say("differences.png is left out: it needs matplotlib (pip install matplotlib)")
    for name, images in sets.items():
        draw_extremes(out, name, images, [r for r in records if r["set"] == name])
    return out / "results.md"


def draw_extremes(out: Path, name: str, images: ImageSet, records: list[dict[str, Any]]) -> None:
    """Draw the test image that Betti matching gains most on and the one it loses most on, beside Dice alone."""
    by_run = {(r["method"], r["seed"]): r["cases"] for r in records}
    metric = "betti_matching_error"
    change = {
        (seed, case): values[metric] - by_run[BASELINE, seed][case][metric]
        for (method, seed), cases in by_run.items()
        if method == "betti"
        for case, values in cases.items()
    }
    for word, choose in (("gain", min), ("loss", max)):
        seed, case = choose(change, key=lambda key: change[key])
        target = next(s.mask for s in images.test if s.name == case)
        for method in (BASELINE, "betti"):
            with np.load(out / "runs" / f"{name}-{method}-{seed}.npz") as masks:
                title = f"{METHODS[method]}, {case}, seed {seed}: {by_run[method, seed][case][metric]:.0f} unmatched"
                draw_topology(out / f"{name}-{word}-{method}.png", masks[case], target, title=title)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder that holds em_membranes_isbi2012/ and topology_2d/")
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, table and figures")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=DEFAULT_SETS, help="all but em-choice")
    parser.add_argument("--warm-up", type=int, default=Budget.warm_up, help="steps with Dice before the methods part")
    parser.add_argument("--steps", type=int, default=Budget.steps, help="further steps of every method")
    parser.add_argument("--alpha", type=float, default=Budget.alpha, help="weight of the Betti matching loss")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0 on")
    parser.add_argument("--threads", type=int, help="threads of the network; by default as torch chooses")
    parser.add_argument("--quick", action="store_true", help="a small network on a few small phantoms, two seeds")
    parsed = parser.parse_args(arguments)
    if parsed.data is None and not parsed.quick and set(parsed.sets) != {"phantom"}:
        parser.error("--data is needed for real images; without it, use --sets phantom or --quick")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment and print the table's path."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.quick:
        sets, seeds = {"phantom": load_phantoms(train=4, test=3, patch=24, objects=1)}, 2
        budget = Budget(warm_up=100, steps=60, batch=2, channels=(8, 16, 32), alpha=options.alpha)
    else:
        sets, seeds = {name: SETS[name](options.data) for name in options.sets}, options.seeds
        budget = Budget(warm_up=options.warm_up, steps=options.steps, alpha=options.alpha)
    (options.out / "runs").mkdir(parents=True, exist_ok=True)
    records = [r for name, images in sets.items() for r in run_set(name, images, budget, seeds, options.out / "runs")]
    print(write_report(options.out, records, sets))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
