"""Run the training of a bundle and leave a complete bundle behind.

The run folder is itself a bundle: configs and documents of the source, `models/model.pt` (best weights) and
`models/last.pt` (everything needed to go on), `tensorboard/`, and `run.json`, which records the settings. It can be
handed to `medseg predict --bundle` as it is.

Where the trainer is a `medseg.engines.SerialTrainer`, `stages/` holds one such bundle for each stage, and the manifest.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from monai.engines import SupervisedTrainer, Workflow

import medseg
from medseg.bundles import Bundle
from medseg.data import atomic_path
from medseg.engines.config_errors import plain_config_errors
from medseg.engines.devices import select_device
from medseg.engines.handlers import TrainingCheckpoint
from medseg.engines.serial_trainer import MANIFEST, SerialTrainer
from medseg.engines.stage import Stage

RUN_RECORD = "run.json"
# Parts of the source bundle that a run folder takes over; weights and earlier runs stay behind.
_COPIED = ("configs", "docs", "scripts", "LICENSE")


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training run stands.

    Attributes:
        epoch: the running epoch, from 1.
        max_epochs: number of epochs of the run.
        iteration: iteration within the epoch, from 1.
        epoch_length: iterations an epoch.
        loss: loss of the last iteration.
        best_metric: best validation metric so far, None before the first validation.
        best_epoch: its epoch.
        epoch_done: this is the last report of the epoch, after validation.
        stage: the running stage of serial training, whose epochs these are; None elsewhere.
    """

    epoch: int
    max_epochs: int
    iteration: int
    epoch_length: int
    loss: float
    best_metric: float | None
    best_epoch: int | None
    epoch_done: bool
    stage: str | None = None


def train_bundle(
    bundle: Bundle,
    data_dir: str | Path,
    output: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    finetune: bool = False,
    device: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> Path:
    """Train a bundle's network on a data folder.

    Under `torchrun` the bundle's `multi_gpu_train.json` is laid over its `train.json` (NCCL on CUDA, gloo on a CPU).

    Args:
        bundle: the bundle whose `configs/train.json` is run.
        data_dir: folder in Decathlon, nnU-Net raw or `images/` + `labels/` layout.
        output: the run folder.
        resume: go on from `models/last.pt` of the run folder; the settings must be those of the run.
        overwrite: start anew although the folder holds a run.
        finetune: start from the bundle's weights instead of random ones (config entry `init_weights`).
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`; decided by the launcher under `torchrun`.
        overrides: config entries to replace, by id such as `max_epochs` or `train::trainer::max_epochs`.
        progress: called after every iteration and every epoch, on the first process only.

    Returns:
        The run folder, a bundle.

    Raises:
        FileExistsError: the folder holds a run, and neither `resume` nor `overwrite` was asked for.
        ValueError: the run to resume had other settings, or an override names no entry of the config.
        FloatingPointError: the loss is not finite; the last good checkpoint is kept.
    """
    data_dir, output = Path(data_dir), Path(output)
    if not data_dir.is_dir():
        raise FileNotFoundError(f"data_dir: {data_dir} is not a folder; give the folder that holds the training data")
    settings = {
        "bundle": bundle.name,
        "bundle_version": bundle.version,
        "init_weights_sha256": bundle.weights_sha256() if finetune else None,
        "overrides": dict(overrides or {}),
    }
    distributed = int(os.environ.get("WORLD_SIZE", "1")) > 1
    is_first = int(os.environ.get("RANK", "0")) == 0
    configs = [bundle.config_path("train")] + ([bundle.config_path("multi_gpu_train")] if distributed else [])
    if is_first:
        _prepare_folder(bundle, output, settings, resume, overwrite)
    fixed: dict[str, Any] = {
        "bundle_root": str(output),
        "dataset_dir": str(data_dir),
        "output_dir": str(output),
        "ckpt_dir": str(output / "models"),
        "resume": resume,
    }
    if not distributed:
        fixed["device"] = f"$torch.device('{select_device(device)[0]}')"
    with _quiet_logging(), plain_config_errors():
        workflow = ConfigWorkflow(
            config_file=[str(c) for c in configs], workflow_type="train", logging_file=None, **fixed
        )
        changes = dict(overrides or {})
        if finetune:
            changes["init_weights"] = str(bundle.weights_path)
        _apply_overrides(workflow, changes)
        workflow.initialize()
        trainer = workflow.parser.get_parsed_content("train::trainer")
        if isinstance(trainer, SerialTrainer):
            trainer.progress = None if progress is None else partial(_report_stage, progress)
        elif progress is not None and is_first:
            _report_progress(trainer, workflow.parser.get_parsed_content("validate::evaluator"), progress)
        try:
            workflow.run()
            if distributed:
                # A rank that leaves while another still writes takes the connection away from it.
                torch.distributed.barrier()
        finally:
            _finalize(workflow)
    if isinstance(trainer, SerialTrainer):
        for folder in sorted(p.parent for p in trainer.out_dir.glob("*/models")):
            _copy_parts(bundle, folder)
    return output


def _prepare_folder(bundle: Bundle, output: Path, settings: Mapping[str, Any], resume: bool, overwrite: bool) -> None:
    record, stages = output / RUN_RECORD, output / "stages"
    traces = (output / "models" / TrainingCheckpoint.LAST, stages / MANIFEST)
    if output.resolve() == bundle.path.resolve():
        raise ValueError(f"output is the bundle itself ({output}); give another folder, the source stays untouched")
    if any(p.is_file() for p in traces) and not (resume or overwrite):
        raise FileExistsError(f"{output} holds a training run; use --resume to go on, or --overwrite to start anew")
    if resume and record.is_file():
        earlier = json.loads(record.read_text(encoding="utf-8"))["settings"]
        if earlier != dict(settings):
            raise ValueError(
                f"{output} was trained with other settings ({earlier}) than asked for now ({dict(settings)}); "
                "resume with the same settings, or start anew in another folder"
            )
    _copy_parts(bundle, output)
    if overwrite and not resume:
        # Logs of the run before would be read as those of this one.
        for folder in (stages, output / "tensorboard"):
            shutil.rmtree(folder, ignore_errors=True)
        for name in (TrainingCheckpoint.LAST, TrainingCheckpoint.BEST):
            (output / "models" / name).unlink(missing_ok=True)
    with atomic_path(record) as part:
        content = {"settings": dict(settings), "medseg": medseg.__version__, "torch": torch.__version__}
        part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _copy_parts(bundle: Bundle, folder: Path) -> None:
    """Make a folder a bundle, but for its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _COPIED:
        source = bundle.path / name
        if source.is_dir():
            shutil.copytree(source, folder / name, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copyfile(source, folder / name)


def _apply_overrides(workflow: ConfigWorkflow, overrides: Mapping[str, Any]) -> None:
    for key, value in overrides.items():
        if key not in workflow.parser:
            known = sorted(k for k in workflow.parser.get() if not k.startswith("_"))
            raise ValueError(f"override {key!r} names no entry of the training config; top-level entries: {known}")
        workflow.parser[key] = value


def _report_progress(trainer: Workflow, evaluator: Workflow, progress: Callable[[TrainingProgress], None]) -> None:
    state: dict[str, float] = {"loss": float("nan")}

    def report(engine: Engine, epoch_done: bool) -> None:
        length = int(engine.state.epoch_length or 0)
        done = evaluator.state.best_metric_epoch > 0
        progress(
            TrainingProgress(
                epoch=engine.state.epoch,
                max_epochs=int(engine.state.max_epochs or 0),
                iteration=engine.state.iteration - (engine.state.epoch - 1) * length,
                epoch_length=length,
                loss=state["loss"],
                best_metric=float(evaluator.state.best_metric) if done else None,
                best_epoch=int(evaluator.state.best_metric_epoch) if done else None,
                epoch_done=epoch_done,
            )
        )

    def after_iteration(engine: Engine) -> None:
        output: Any = engine.state.output
        first = output[0] if isinstance(output, list) else output
        state["loss"] = float(first["loss"])
        report(engine, epoch_done=False)

    trainer.add_event_handler(Events.ITERATION_COMPLETED, after_iteration)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: report(engine, epoch_done=True))


def _report_stage(
    progress: Callable[[TrainingProgress], None], number: int, stage: Stage, engine: SupervisedTrainer
) -> None:
    length, output = int(engine.state.epoch_length or 0), engine.state.output
    iteration = engine.state.iteration - (engine.state.epoch - 1) * length
    first: Any = output[0] if isinstance(output, list) else output
    progress(
        TrainingProgress(
            epoch=engine.state.epoch,
            max_epochs=int(engine.state.max_epochs or 0),
            iteration=iteration,
            epoch_length=length,
            loss=float(torch.as_tensor(first["loss"]).detach()),
            best_metric=None,
            best_epoch=None,
            epoch_done=iteration == length,
            stage=stage.name,
        )
    )


def _finalize(workflow: ConfigWorkflow) -> None:
    if workflow.final_id in workflow.parser:
        workflow.finalize()


@contextmanager
def _quiet_logging() -> Iterator[None]:
    """MONAI and ignite log every step to the root logger; the progress report says the same in one line."""
    level = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*StatsHandler.*")
            yield
    finally:
        logging.disable(level)
