"""Train one network on a list of related tasks, from the most abundant to the target: Turbolift learning.

Stage k starts from the weights that stage k - 1 found best. Weights alone are handed on (statistics of batch
normalisation with them); optimizer and epochs start anew, nothing is frozen unless asked for.

    OUT/manifest.json              what was run: settings, hashes of data and parent weights, seed, best epoch
    OUT/initial.pt                 weights before the first stage
    OUT/00_NAME/models/model.pt    best weights of a stage; last.pt beside it is what a killed run goes on from

Source: Haseljic et al., "Liver segmentation using Turbolift learning for CT and cone-beam C-arm perfusion imaging"
(Computers in Biology and Medicine, 2023).

Differs from the published code: there the subjects that choose the best weights are those tested; here a subject that
plays two roles in any of the stages stops the run before it starts. The validation loss is the mean, not the median,
over batches. Statistics of batch normalisation can be estimated anew for each stage.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer, default_prepare_batch
from monai.handlers import IgniteMetricHandler, ValidationHandler
from monai.inferers import Inferer
from torch.optim.swa_utils import update_bn

from medseg.data import atomic_path
from medseg.engines.handlers import EpochSeeder, StopOnNonFiniteLoss, TrainingCheckpoint
from medseg.engines.normalisation import choose_parameters
from medseg.engines.stage import Stage, check_leakage

MANIFEST, INITIAL = "manifest.json", "initial.pt"
_MODES = ("val_loss", "val_dice")


@dataclass
class StageResult:
    """What a stage left.

    Attributes:
        name: the stage.
        folder: its folder.
        best_epoch: epoch of the best weights, the last where nothing validates.
        best_value: the selection metric there, None where nothing validates.
        weights_sha256: hash of the best weights' file.
        parent: where the weights at its start came from.
        parent_sha256: hash of that file.
        reinitialised: entries of the network's state that those weights did not fill.
    """

    name: str
    folder: str
    best_epoch: int
    best_value: float | None
    weights_sha256: str
    parent: str
    parent_sha256: str
    reinitialised: list[str]


class SerialTrainer:
    """Train a network stage by stage, and go on at the right place after a stop.

    Args:
        network: the network; it holds the passed-on weights of the last stage afterwards.
        stages: the stages, in order.
        loss: loss of (logits, label); logits may be a list, finest first, where the network gives one.
        optimizer_factory: called with (parameters, lr=...), such as `torch.optim.Adam`; in a bundle
            `{"_target_": "torch.optim.Adam", "_mode_": "callable"}`.
        out_dir: folder of manifest and checkpoints.
        selection_metric: what the validation items decide by, "val_loss" (lowest) or "val_dice" (highest mean).
        resume: go on with a run in `out_dir`; else a run that is there is refused.
        max_epochs: length of the stages that name none.
        batch_size: items a step.
        val_interval: epochs between validations.
        val_inferer: how the network is run on a validation item, such as `monai.inferers.SliceInferer` where items are
            volumes and the network takes slices; items then come one by one. None runs it on whole items.
        seed: seed of order and augmentation; every stage has its own derived from it.
        device: where to train.
        subject_key: key of the subject in an item.
        progress: called as progress(stage number, stage, trainer) after every iteration.

    Raises:
        ValueError: there are no stages, two have one name, an option is unknown, or a subject plays two roles.

    Example:
        >>> import tempfile
        >>> item = {"subject": "a", "image": torch.zeros(1, 8, 8), "label": torch.ones(1, 8, 8)}
        >>> stages = [Stage(name, [item], max_epochs=1) for name in ("ct", "cone_beam")]
        >>> network, loss = torch.nn.Conv2d(1, 1, 1), torch.nn.BCEWithLogitsLoss()
        >>> trainer = SerialTrainer(network, stages, loss, torch.optim.Adam, tempfile.mkdtemp())
        >>> [result.parent for result in trainer.run()]
        ['initial', 'ct (best)']
    """

    def __init__(
        self,
        network: torch.nn.Module,
        stages: Sequence[Stage],
        loss: Callable[[Any, torch.Tensor], torch.Tensor],
        optimizer_factory: Callable[..., torch.optim.Optimizer],
        out_dir: str | Path,
        *,
        selection_metric: str = "val_loss",
        resume: bool = True,
        max_epochs: int = 500,
        batch_size: int = 8,
        val_interval: int = 1,
        val_inferer: Inferer | None = None,
        seed: int = 0,
        device: str | torch.device = "cpu",
        subject_key: str = "subject",
        progress: Callable[[int, Stage, SupervisedTrainer], None] | None = None,
    ) -> None:
        names = [stage.name for stage in stages]
        if not stages or len(set(names)) < len(names):
            raise ValueError(f"stages must hold at least one stage, each with a name of its own, got {names}")
        if selection_metric not in _MODES:
            raise ValueError(f"selection_metric must be one of {', '.join(_MODES)}, got {selection_metric!r}")
        for name, value in {"max_epochs": max_epochs, "batch_size": batch_size, "val_interval": val_interval}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        check_leakage(stages, subject_key)
        self.network, self.stages, self.loss, self.optimizer_factory = network, list(stages), loss, optimizer_factory
        self.out_dir, self.resume, self.seed, self.device = Path(out_dir), resume, seed, torch.device(device)
        self.selection_metric, self.max_epochs, self.batch_size = selection_metric, max_epochs, batch_size
        self.val_interval, self.val_inferer = val_interval, val_inferer
        self.subject_key, self.progress = subject_key, progress

    def run(self) -> list[StageResult]:
        """Run all stages that are not done yet.

        Returns:
            The result of every stage, those of an earlier call included.

        Raises:
            FileExistsError: `out_dir` holds a run and `resume` is False, or checkpoints without a manifest.
            FileNotFoundError: weights to start a stage from are missing.
            ValueError: the run in `out_dir` had other settings, or its checkpoints are not those of its manifest.
        """
        manifest = self._open_manifest()
        results: list[StageResult] = []
        for number, stage in enumerate(self.stages):
            done = manifest["stages"][number]["result"]
            if done is None:
                result = self._run_stage(number, stage, results)
                manifest["stages"][number]["result"] = asdict(result)
                self._write_manifest(manifest)
            else:
                result = self._check_done(StageResult(**done))
            results.append(result)
        self._load(self._weights(results[-1], "best"), strict=True)
        return results

    def export(self, path: str | Path) -> None:
        """Write the network's weights, after `run` the best of the last stage, as a flat state dict."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as part:
            torch.save({name: value.detach().cpu() for name, value in self.network.state_dict().items()}, part)

    def describe(self) -> dict[str, Any]:
        """Settings that decide the results, as JSON."""
        return {
            "seed": self.seed,
            "selection_metric": self.selection_metric,
            "batch_size": self.batch_size,
            "val_interval": self.val_interval,
            "stages": [stage.describe(self.max_epochs, self.subject_key) for stage in self.stages],
        }

    def _open_manifest(self) -> dict[str, Any]:
        path, settings = self.out_dir / MANIFEST, self.describe()
        if path.is_file():
            if not self.resume:
                raise FileExistsError(f"{self.out_dir} holds a run; resume it, or give another folder")
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["settings"] != settings:
                raise ValueError(
                    f"{self.out_dir} was trained with other settings, data or stages than asked for now; resume with "
                    "the same ones, or give another folder"
                )
            return manifest
        if stale := sorted(self.out_dir.glob(f"*/models/{TrainingCheckpoint.LAST}")):
            raise FileExistsError(f"{stale[0]} belongs to a run without {MANIFEST}; remove it, or give another folder")
        self.out_dir.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.out_dir / INITIAL) as part:
            torch.save(self.network.state_dict(), part)
        manifest = {"settings": settings, "stages": [{"name": s.name, "result": None} for s in self.stages]}
        self._write_manifest(manifest)
        return manifest

    def _write_manifest(self, manifest: dict[str, Any]) -> None:
        with atomic_path(self.out_dir / MANIFEST) as part:
            part.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")

    def _check_done(self, result: StageResult) -> StageResult:
        path = self._weights(result, "best")
        if not path.is_file():
            raise FileNotFoundError(f"stage {result.name!r} is done, but {path} does not exist; put it back")
        if hash_file(path) != result.weights_sha256:
            raise ValueError(
                f"stage {result.name!r}: {result.folder}/models/model.pt is not the file of the manifest; put it back, "
                "or train anew in another folder"
            )
        return result

    def _run_stage(self, number: int, stage: Stage, before: Sequence[StageResult]) -> StageResult:
        folder = self.out_dir / f"{number:02d}_{stage.name}"
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        label, path = self._find_parent(stage, before)
        # First everything as at the start of the run: what the parent does not fill is then the same after a stop.
        self._load(self.out_dir / INITIAL, strict=True)
        reinitialised = self._load(path, strict=stage.strict)
        self.network.to(self.device)
        frozen = tuple(stage.freeze)
        chosen = choose_parameters(self.network, (lambda name, _: not name.startswith(frozen)) if frozen else "all")
        optimizer = self.optimizer_factory(chosen, lr=stage.lr)
        if not stage.reset_optimizer and before:
            _inherit(optimizer, self._weights(before[-1], "last"), stage.lr, self.device)
        evaluator = self._build_evaluator(stage)
        trainer = self._build_trainer(number, stage, optimizer, evaluator, folder, seed)
        if stage.norm_statistics == "train_data" and not (folder / "models" / TrainingCheckpoint.LAST).is_file():
            self._estimate_statistics(stage, seed)
        trainer.run()
        choose_parameters(self.network, "all")
        state = torch.load(folder / "models" / TrainingCheckpoint.LAST, weights_only=True, map_location="cpu")
        validated = state["best_metric_epoch"] > 0
        return StageResult(
            name=stage.name,
            folder=folder.name,
            best_epoch=state["best_metric_epoch"] if validated else state["epoch"],
            best_value=state["best_metric"] if validated else None,
            weights_sha256=hash_file(folder / "models" / TrainingCheckpoint.BEST),
            parent=label,
            parent_sha256=hash_file(path),
            reinitialised=reinitialised,
        )

    def _find_parent(self, stage: Stage, before: Sequence[StageResult]) -> tuple[str, Path]:
        """Name and file of the weights that a stage starts from."""
        if stage.load in ("best", "last") and before:
            label, path = f"{before[-1].name} ({stage.load})", self._weights(before[-1], stage.load)
        elif stage.load in ("best", "last", "initial"):
            label, path = "initial", self.out_dir / INITIAL
        else:
            label, path = stage.load, Path(stage.load)
        if not path.is_file():
            raise FileNotFoundError(
                f"stage {stage.name!r} starts from {label!r}, but {path} does not exist; put the checkpoint there, or "
                "train anew in another folder"
            )
        return label, path

    def _weights(self, result: StageResult, which: str) -> Path:
        name = TrainingCheckpoint.BEST if which == "best" else TrainingCheckpoint.LAST
        return self.out_dir / result.folder / "models" / name

    def _load(self, path: Path, strict: bool) -> list[str]:
        """Load a state dict, or the network's part of a `last.pt`; give the entries that it did not fill."""
        state = torch.load(path, weights_only=True, map_location="cpu")
        state = state["objects"]["network"] if "objects" in state else state
        if strict:
            self.network.load_state_dict(state)
            return []
        own = self.network.state_dict()
        fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
        self.network.load_state_dict(fitting, strict=False)
        return sorted(own.keys() - fitting.keys())

    def _estimate_statistics(self, stage: Stage, seed: int) -> None:
        torch.manual_seed(seed)
        if transform := _randomizable(stage):
            transform.set_random_state(seed=seed)
        with torch.no_grad():
            images = (batch["image"] for batch in self._load_training(stage))
            update_bn(images, self.network, self.device)

    def _load_training(self, stage: Stage) -> DataLoader:
        return DataLoader(Dataset(stage.train_data, stage.transforms), batch_size=self.batch_size, shuffle=True)

    def _build_evaluator(self, stage: Stage) -> SupervisedEvaluator | None:
        if not stage.val_data:
            return None
        data = Dataset(stage.val_data, stage.val_transforms or stage.transforms)
        lower = self.selection_metric == "val_loss"
        measure: Any = self.loss if lower else mean_dice
        metric = IgniteMetricHandler(loss_fn=measure, output_transform=_stack, save_details=False)
        return SupervisedEvaluator(
            device=self.device,
            val_data_loader=DataLoader(data, batch_size=self.batch_size if self.val_inferer is None else 1),
            network=self.network,
            inferer=self.val_inferer,
            key_val_metric={self.selection_metric: metric},
            metric_cmp_fn=(lambda new, best: new < best) if lower else (lambda new, best: new > best),
            prepare_batch=_prepare,
            decollate=False,
        )

    def _build_trainer(
        self,
        number: int,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        evaluator: SupervisedEvaluator | None,
        folder: Path,
        seed: int,
    ) -> SupervisedTrainer:
        checkpoint = TrainingCheckpoint(
            str(folder / "models"),
            {"network": self.network, "optimizer": optimizer},
            evaluator=evaluator,
            resume=True,
        )
        validation = [] if evaluator is None else [ValidationHandler(self.val_interval, evaluator)]
        trainer = SupervisedTrainer(
            device=self.device,
            max_epochs=stage.max_epochs or self.max_epochs,
            train_data_loader=self._load_training(stage),
            network=self.network,
            optimizer=optimizer,
            loss_function=self.loss,
            prepare_batch=_prepare,
            train_handlers=[EpochSeeder(seed, _randomizable(stage)), StopOnNonFiniteLoss(), *validation, checkpoint],
            decollate=False,
        )
        progress = self.progress
        if progress is not None:
            trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: progress(number, stage, engine))
        return trainer


def mean_dice(logits: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """Mean Dice of the foreground over a batch, of one channel cut at probability 0.5 or the arg max of several."""
    several = logits.shape[1] > 1
    found = logits.argmax(1, keepdim=True) if several else (logits > 0).long()
    values = []
    for value in range(1, max(logits.shape[1], 2)):
        mine, true = found == value, label == value
        total = mine.sum() + true.sum()
        values.append(2 * (mine & true).sum() / total if total else torch.ones((), device=logits.device))
    return torch.stack(values).float().mean()


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _randomizable(stage: Stage) -> Any:
    """The stage's transforms, if they can be seeded."""
    return stage.transforms if hasattr(stage.transforms, "set_random_state") else None


def _prepare(batch: Any, device: torch.device | None, non_blocking: bool, **options: Any) -> Any:
    """Image and label as plain tensors: what MONAI's carry along costs more than small layers do."""
    pair = default_prepare_batch(batch, device, non_blocking, **options)
    return tuple(t.as_tensor() if isinstance(t, MetaTensor) else t for t in pair)


def _stack(output: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return output["pred"], output["label"]


def _inherit(optimizer: torch.optim.Optimizer, last: Path, lr: float, device: torch.device) -> None:
    state = torch.load(last, weights_only=True, map_location=device)
    optimizer.load_state_dict(state["objects"]["optimizer"])
    for group in optimizer.param_groups:
        group["lr"] = lr
