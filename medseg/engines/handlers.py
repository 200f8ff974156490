"""Handlers that make a training run repeatable, resumable and safe against a diverging loss.

All follow MONAI's handler protocol (`attach(engine)`) and can be named in a bundle's JSON.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.engines import Workflow
from monai.engines.utils import IterationEvents
from monai.transforms import Compose
from monai.utils.enums import CommonKeys

from medseg.core.adapters import merged_state_dict
from medseg.data import atomic_path

logger = logging.getLogger(__name__)


class EpochSeeder:
    """Draw all randomness of an epoch from (seed, epoch, rank).

    An epoch that starts from the same weights then repeats exactly, whether the run came to it without a stop or was
    resumed there: nothing has to be remembered of any random generator. Put it first in the handler list.

    Args:
        seed: seed of the run.
        transform: the training transforms, seeded with the rest (needed where the data loader has no workers).

    Example:
        >>> handler = EpochSeeder(seed=0)
    """

    def __init__(self, seed: int = 0, transform: Compose | None = None) -> None:
        self.seed = seed
        self.transform = transform

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed Python, NumPy, PyTorch and the transforms for the epoch that starts."""
        rank = getattr(engine.state, "rank", 0)
        seed = int(np.random.SeedSequence([self.seed, engine.state.epoch, rank]).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - third-party transforms draw from the global state
        torch.manual_seed(seed)
        if self.transform is not None:
            self.transform.set_random_state(seed=seed)


class StopOnNonFiniteLoss:
    """Stop training before a NaN or infinite loss reaches the weights.

    Raises:
        FloatingPointError: at the iteration whose loss is not finite; the weights are those of the iteration before,
            and checkpoints on disk stay as they are.
    """

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Check the loss of the running iteration."""
        output: Any = engine.state.output
        loss = output[CommonKeys.LOSS]
        if not bool(torch.isfinite(loss).all()):
            raise FloatingPointError(
                f"loss is {float(loss.detach().mean())} at epoch {engine.state.epoch}, iteration "
                f"{engine.state.iteration}; the last checkpoint is kept. Lower the learning rate, check the data for "
                "empty or corrupt cases, or train without mixed precision, then resume."
            )


class TrainingCheckpoint:
    """Save the whole state of a run after every epoch, and the best weights so far.

    `last.pt` holds the state dicts of all `objects` and the trainer's progress: loading it continues the same run.
    `model.pt` holds the flat state dict of `objects[best]` at the best validation, low-rank updates
    (`medseg.core.adapters`) merged into its weights, so that the plain network loads it. Both are written to a
    temporary name and renamed, so an interrupted write leaves the previous file.

    Put it last in the trainer's handler list, after validation and the learning-rate schedule.

    Args:
        save_dir: folder for the checkpoints, made when missing.
        objects: names and objects with `state_dict`/`load_state_dict` (network, optimizer, schedule, ...).
        best: the name among `objects` whose weights are the product; None keeps `last.pt` alone.
        evaluator: the validation engine, whose key metric decides what is best. Without it, and
            before its first validation, `model.pt` follows the last epoch.
        resume: load `last.pt` from `save_dir` when training starts, if it is there.

    Raises:
        ValueError: `best` is not among `objects`.
    """

    LAST, BEST = "last.pt", "model.pt"

    def __init__(
        self,
        save_dir: str,
        objects: Mapping[str, Any],
        *,
        best: str | None = "network",
        evaluator: Workflow | None = None,
        resume: bool = False,
    ) -> None:
        if best is not None and best not in objects:
            raise ValueError(f"best must be one of {sorted(objects)}, got {best!r}")
        self.save_dir = Path(save_dir)
        self.objects = {name: _unwrap(item) for name, item in objects.items()}
        self.best = best
        self.evaluator = evaluator
        self.resume = resume

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(Events.STARTED, self._on_start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._on_epoch)

    def _on_start(self, engine: Engine) -> None:
        path = self.save_dir / self.LAST
        if not (self.resume and path.is_file()):
            return
        state = torch.load(path, map_location=getattr(engine.state, "device", None), weights_only=True)
        for name, item in self.objects.items():
            item.load_state_dict(state["objects"][name])
        engine.state.epoch = state["epoch"]
        engine.state.iteration = state["iteration"]
        if self.evaluator is not None:
            self.evaluator.state.best_metric = state["best_metric"]
            self.evaluator.state.best_metric_epoch = state["best_metric_epoch"]
        logger.info("resumed from %s after epoch %d", path, state["epoch"])

    def _on_epoch(self, engine: Engine) -> None:
        if getattr(engine.state, "rank", 0) != 0:
            return
        self.save_dir.mkdir(parents=True, exist_ok=True)
        evaluator = self.evaluator.state if self.evaluator is not None else None
        is_best = evaluator is None or evaluator.best_metric_epoch in (-1, engine.state.epoch)
        if self.best is not None and is_best:
            _save(_to_cpu(merged_state_dict(self.objects[self.best])), self.save_dir / self.BEST)
        state = {
            "objects": {name: item.state_dict() for name, item in self.objects.items()},
            "epoch": engine.state.epoch,
            "iteration": engine.state.iteration,
            "best_metric": float(evaluator.best_metric) if evaluator is not None else -1.0,
            "best_metric_epoch": int(evaluator.best_metric_epoch) if evaluator is not None else -1,
        }
        _save(state, self.save_dir / self.LAST)


def _save(content: Any, path: Path) -> None:
    with atomic_path(path) as part:
        torch.save(content, part)


def _unwrap(item: Any) -> Any:
    """The module inside a data-parallel wrapper, so that checkpoints do not depend on how a run was started."""
    return item.module if isinstance(item, torch.nn.parallel.DistributedDataParallel) else item


def _to_cpu(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Plain tensors on the CPU; a tensor that stands under two names (DynUNet has such) stays one in the file."""
    copies: dict[int, torch.Tensor] = {}
    for value in state.values():
        copies.setdefault(value.data_ptr(), value.detach().cpu().contiguous())
    return {name: copies[value.data_ptr()] for name, value in state.items()}
