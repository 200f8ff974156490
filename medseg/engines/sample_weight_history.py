"""Write down how the weights of training samples go, apart for samples with much and with little label.

How much label a sample holds is read off the batches as they come, so no file is read twice: the largest share of
foreground that any of its visits showed.
"""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys
from torch import distributed

from medseg.data import atomic_path
from medseg.losses import AdaptiveWeightedConsistencyLoss
from medseg.report import draw_sample_weights, summarise_sample_weights

logger = logging.getLogger(__name__)
_UNSEEN = -1.0


class SampleWeightHistory:
    """Handler that keeps the weights of label-dense and label-sparse samples after every epoch.

    Leaves in `output_dir`: `sample_weights.csv`, one line for each epoch (number of samples, mean and quartiles of the
    weight of supervision for both kinds, and the AUC with which the weights tell them apart);
    `sample_weights.json`, the same and the last weight, number of visits and share of label of every sample; and
    `sample_weights.png` where matplotlib is installed (extra `plot`). A resumed run goes on with the lines that are
    there. Under DDP the first rank writes.

    Args:
        loss: the loss whose table is watched.
        output_dir: folder for the files, made when missing.
        dense_share: share of foreground voxels, 0 to 1, from which a sample is label-dense; 0.01 by default.
        plot: whether to draw the picture.

    Raises:
        ValueError: the share is out of range.

    Example:
        >>> loss = AdaptiveWeightedConsistencyLoss(num_samples=10)
        >>> handler = SampleWeightHistory(loss, "run/weights")
    """

    CSV, JSON, PNG = "sample_weights.csv", "sample_weights.json", "sample_weights.png"

    def __init__(
        self, loss: AdaptiveWeightedConsistencyLoss, output_dir: str, dense_share: float = 0.01, plot: bool = True
    ) -> None:
        if not 0 < dense_share <= 1:
            raise ValueError(f"dense_share must be above 0 and at most 1, got {dense_share}")
        self.loss = loss
        self.output_dir = Path(output_dir)
        self.dense_share, self.plot = dense_share, plot
        self.share = torch.full((loss.num_samples,), _UNSEEN)
        self.history: list[dict[str, float]] | None = None

    def attach(self, engine: Engine) -> None:
        """Register on the trainer."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._on_iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._on_epoch)

    def _on_iteration(self, engine: Engine) -> None:
        batch: Any = engine.state.batch
        label = torch.as_tensor(batch[CommonKeys.LABEL]).as_subclass(torch.Tensor)
        # Of one-hot masks the first channel is background.
        foreground = (label > 0) if label.shape[1] == 1 else (label[:, 1:] > 0).any(1)
        ids = torch.as_tensor(batch["sample_id"]).to("cpu", torch.int64)
        self.share.scatter_reduce_(0, ids, foreground.flatten(1).float().mean(1).cpu(), "amax")

    def _on_epoch(self, engine: Engine) -> None:
        share = self._gather_share()
        if getattr(engine.state, "rank", 0) != 0:
            return
        if self.history is None:
            self.history = self._read_earlier(before=engine.state.epoch)
        seen = share != _UNSEEN
        weights = self.loss.sample_weights()[:, 0].cpu().numpy()
        found = summarise_sample_weights(weights[seen], share[seen] >= self.dense_share)
        # Weights saturate, so that samples tie; the logits behind them do so later.
        logits = self.loss.weight_logits.cpu().numpy()
        found["auc"] = summarise_sample_weights(logits[seen], share[seen] >= self.dense_share)["auc"]
        self.history.append({"epoch": engine.state.epoch, **found})
        logger.info(
            "epoch %d: weight of supervision %.3f (dense, %d), %.3f (sparse, %d), AUC %.3f",
            engine.state.epoch, found["dense_mean"], found["dense_samples"], found["sparse_mean"],
            found["sparse_samples"], found["auc"],
        )  # fmt: skip
        self._write(weights, share)

    def _gather_share(self) -> np.ndarray:
        """Shares that any rank has seen."""
        if distributed.is_available() and distributed.is_initialized():
            share = self.share.to(self.loss.weight_logits.device)
            distributed.all_reduce(share, distributed.ReduceOp.MAX)
            self.share = share.cpu()
        return self.share.numpy()

    def _read_earlier(self, before: int) -> list[dict[str, float]]:
        """Lines of the epochs before this one, which an earlier part of the run left."""
        path = self.output_dir / self.CSV
        if before <= 1 or not path.is_file():
            return []
        with path.open(newline="", encoding="utf-8") as file:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
        return [row for row in rows if row["epoch"] < before]

    def _write(self, weights: np.ndarray, share: np.ndarray) -> None:
        history = self.history or []
        self.output_dir.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.output_dir / self.CSV) as part, part.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(history[-1]))
            writer.writeheader()
            writer.writerows(history)
        samples = {
            "name": self.loss.sample_names,
            "weight": [round(float(w), 6) for w in weights],
            "visits": self.loss.visits.tolist(),
            "label_share": [round(float(s), 6) if s != _UNSEEN else None for s in share],
        }
        content = {"dense_share": self.dense_share, "history": _without_nan(history), "samples": samples}
        with atomic_path(self.output_dir / self.JSON) as part:
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        if self.plot:
            self._draw(history)

    def _draw(self, history: list[dict[str, float]]) -> None:
        try:
            draw_sample_weights(self.output_dir / self.PNG, history)
        except ImportError as error:
            logger.warning("%s is left out: %s", self.PNG, error)
            self.plot = False


def _without_nan(history: list[dict[str, float]]) -> list[dict[str, float | None]]:
    """JSON knows no nan."""
    return [{key: None if value != value else value for key, value in row.items()} for row in history]
