"""Adapt a trained network to images of another site without their labels and without the images it was trained on.

Every iteration lowers the loss of a batch of new images: commonly entropy plus the divergence between found and
expected class ratios (`medseg.losses.SourceFreeAdaptationLoss`), for all parameters or those of the normalisation
alone, with the statistics of batch normalisation taken from the new images. Where items are patches, the ratio of their
case is averaged over iterations,  case ratio <- m case ratio + (1 - m) ratio of its patches in the batch,  and the loss
compares that.

No label is there to say which epoch is best. The choice is the averaged weights (`ema`), or else the epoch of the
lowest loss, averaged over the last three, among those whose hard and soft ratios agree
(`AdaptationDiagnostics.alarms`).

Sources: Bateson, Kervadec, Dolz, Lombaert, Ben Ayed, "Source-Free Domain Adaptation for Image Segmentation" (Medical
Image Analysis, 2022); Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization" (ICLR 2021), which is
this with `SourceFreeAdaptationLoss(lambda_prior=0)` and `trainable="norm"`.

Differs from the published code, which picks the epoch by the labels of the new images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from copy import deepcopy
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils.enums import CommonKeys
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from medseg.data import ClassRatioPrior
from medseg.engines.adaptation_diagnostics import AdaptationDiagnostics, DiagnosticsMeter, prior_loss_of
from medseg.engines.mean_teacher import student_and_teacher
from medseg.engines.normalisation import NormStatistics, Trainable, choose_parameters, configure_norm
from medseg.engines.unlabelled import UnlabelledBatch, finest, list_samples, read_unlabelled
from medseg.losses import PseudoLabelLoss, WeightedEntropyLoss

LEARNING_RATE = 1e-6
WEIGHT_DECAY = 1e-4
_WINDOW = 3
_CASE_MOMENTUM = 0.9

OptimizerLike = torch.optim.Optimizer | Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


class SourceFreeAdapter(SupervisedTrainer):
    """Trainer that adapts a network to unlabelled images; handlers, checkpoints and AMP work as with MONAI's.

    Batches are dictionaries with `image`, and optionally `sample_id`, `mask` (voxels that count), `class_ratio` (used
    in place of the prior) and `tags` (B, C); or a tensor of images alone. A class ratio of a patch is that of its case.

    Args:
        model: the trained network; adapted in place.
        loss: called with (logits, class ratio, mask, ratio of the case or None), such as
            `medseg.losses.SourceFreeAdaptationLoss`. A `WeightedEntropyLoss` is called with (logits, mask); a
            `PseudoLabelLoss` makes the averaged weights a teacher, see `medseg.engines.mean_teacher`.
        prior: expected class ratios, see `medseg.data.ClassRatioPrior`.
        trainable: "all", "norm", "none" (only statistics adapt), or a function of (name, parameter).
        norm_stats: "target", "source" or "batch", see `configure_norm`.
        optimizer: an optimizer, or a function that makes one from the parameters. By default Adam with the published
            learning rate 1e-6 and weight decay 1e-4, which is for thousands of steps; with few images take 1e-5 to
            5e-4.
        max_epochs: epochs of the run.
        ema: decay of the running average of the weights, such as 0.99; 0 keeps none.
        train_data_loader: what `run()` goes through; `fit` takes one of its own.
        train_handlers: handlers, as MONAI's trainers take them. `EpochSeeder` makes a run repeatable.
        ratio_per: "image", or "case" where items are patches: those with one `sample_id` share a ratio.
        amp: mixed precision on CUDA.

    Attributes:
        history: the diagnostics of each epoch, as dictionaries.

    Raises:
        ValueError: an option is unknown or out of range.

    Example:
        >>> from medseg.losses import SourceFreeAdaptationLoss
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.BatchNorm2d(2))
        >>> loss, prior = SourceFreeAdaptationLoss([0.1, 0.9]), ClassRatioPrior([0.9, 0.1])
        >>> adapter = SourceFreeAdapter(model, loss, prior, max_epochs=2)
        >>> history = adapter.fit([{"image": torch.randn(4, 1, 8, 8)}])
        >>> len(history), sorted(history[0])[:3]
        (2, ['alarms', 'contradicted', 'entropy'])
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Callable[..., torch.Tensor],
        prior: ClassRatioPrior,
        trainable: Trainable = "all",
        norm_stats: NormStatistics = "target",
        optimizer: OptimizerLike | None = None,
        max_epochs: int = 100,
        ema: float = 0.0,
        *,
        train_data_loader: Iterable | None = None,
        train_handlers: Sequence[Any] | None = None,
        ratio_per: str = "image",
        amp: bool = False,
    ) -> None:
        if not 0 <= ema < 1:
            raise ValueError(f"ema must be a decay in [0, 1), got {ema}")
        if isinstance(loss, PseudoLabelLoss) and not ema:
            raise ValueError("PseudoLabelLoss learns from the averaged weights; give ema, such as 0.98")
        if ratio_per not in ("image", "case"):
            raise ValueError(f"ratio_per must be image or case, got {ratio_per!r}")
        if max_epochs < 0:
            raise ValueError(f"max_epochs must be at least 0, got {max_epochs}")
        self.norm_layers = configure_norm(model, norm_stats)
        self.trained = choose_parameters(model, trainable)
        super().__init__(
            device=next(model.parameters()).device,
            max_epochs=max_epochs,
            train_data_loader=[] if train_data_loader is None else train_data_loader,
            network=model,
            optimizer=_make_optimizer(optimizer, self.trained or list(model.parameters())),
            loss_function=loss,
            amp=amp,
            decollate=False,
        )
        self.prior, self.ratio_per = prior, ratio_per
        self.norm_stats: NormStatistics = norm_stats
        self.average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(ema)) if ema else None
        if self.average is not None:
            self.average.update_parameters(model)  # the first call copies: the average starts from the source
        self.history: list[dict[str, Any]] = []
        self.meter = DiagnosticsMeter(loss)
        self._case_ratios: dict[str, torch.Tensor] = {}
        self._best: dict[str, Any] = {"loss": float("inf"), "epoch": 0, "weights": None}
        self._sample_ids: list[str] | None = None
        # Before the handlers of the caller, so that these find the epoch's diagnostics in the state.
        self.add_event_handler(Events.STARTED, self._check_samples)
        self.add_event_handler(Events.EPOCH_STARTED, lambda engine: self.meter.reset())
        self.add_event_handler(Events.EPOCH_COMPLETED, self._close_epoch)
        self._register_handlers(list(train_handlers or ()))

    def fit(self, loader: Iterable | None = None) -> list[dict[str, Any]]:
        """Run the remaining epochs; after `load_state_dict`, go on with the run that was saved.

        Args:
            loader: the batches of an epoch; by default the one given to the constructor.

        Returns:
            The diagnostics of every epoch so far.

        Raises:
            ValueError: there are no batches, or they are not of the images the saved run was about.
        """
        if loader is not None:
            self.data_loader = loader
            self.state.epoch_length = len(loader) if isinstance(loader, Sized) else None
        if self.state.epoch_length == 0:
            raise ValueError("there is no batch to adapt to; give a loader with at least one image")
        self.run()
        return self.history

    def run(self) -> None:
        """Run the remaining epochs; nothing if all are done."""
        if self.state.epoch < self.state.max_epochs:
            super().run()

    def selected_state(self) -> dict[str, torch.Tensor]:
        """State dict of the adapted network: the averaged weights, else the chosen epoch, else the last one."""
        if self.average is not None:
            return _copy(self.average.module.state_dict())
        return _copy(self._best["weights"] or self.network.state_dict())

    @property
    def selected_epoch(self) -> int:
        """The epoch that `selected_state` is of: the last one for averaged weights, or where none could be chosen."""
        return self._best["epoch"] if self.average is None and self._best["weights"] else self.state.epoch

    def state_dict(self) -> Any:
        """Everything that the rest of the run depends on, between two epochs."""
        return {
            "epoch": self.state.epoch,
            "iteration": self.state.iteration,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler is not None else None,
            "average": self.average.state_dict() if self.average is not None else None,
            "best": dict(self._best),
            "history": deepcopy(self.history),
            "case_ratios": dict(self._case_ratios),
            "sample_ids": self._sample_ids,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up a saved run.

        Raises:
            ValueError: it was of other images than this run has.
        """
        self._sample_ids = state_dict["sample_ids"]
        self._check_samples(self)
        self.network.load_state_dict(state_dict["network"])
        self.optimizer.load_state_dict(state_dict["optimizer"])
        for name, item in (("scaler", self.scaler), ("average", self.average)):
            if item is not None and state_dict[name] is not None:
                item.load_state_dict(state_dict[name])
        self._best, self.history = dict(state_dict["best"]), deepcopy(state_dict["history"])
        self._case_ratios = dict(state_dict["case_ratios"])
        self.state.epoch, self.state.iteration = state_dict["epoch"], state_dict["iteration"]

    def diagnose(self, loader: Iterable, inferer: Callable[..., torch.Tensor] | None = None) -> AdaptationDiagnostics:
        """Measure the network as it is, in evaluation and without a gradient.

        Args:
            loader: batches as in training.
            inferer: called with (image, network); the network itself by default.

        Returns:
            The numbers; `loss` is None.
        """
        meter = DiagnosticsMeter(self.loss_function)
        self.network.eval()
        with torch.no_grad():
            for item in loader:
                batch = self._read(item)
                logits = (inferer or self.inferer)(batch.image, self.network)
                cases = batch.ids if self.ratio_per == "case" else None
                meter.update(finest(logits, batch.image), batch.ratio, batch.mask, cases=cases)
        return meter.compute()

    def compute_loss(self, batch: UnlabelledBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and loss of a batch."""
        if isinstance(self.loss_function, PseudoLabelLoss) and self.average is not None:
            logits, labels = student_and_teacher(batch.image, self.network, self.average.module, self._infer)
            return logits, self.loss_function(logits, labels, batch.mask)
        logits = self._infer(batch.image, self.network)
        if isinstance(self.loss_function, WeightedEntropyLoss):
            return logits, self.loss_function(logits, batch.mask)
        case_ratio = self._follow_cases(logits, batch) if self.ratio_per == "case" else None
        return logits, self.loss_function(logits, batch.ratio, batch.mask, case_ratio)

    def _iteration(self, engine: Any, batchdata: Any) -> Any:
        batch = self._read(batchdata)
        self.network.train()
        if self.norm_layers:
            configure_norm(self.network, self.norm_stats)
        self.optimizer.zero_grad(set_to_none=True)
        use_amp = self.amp and self.scaler is not None
        with torch.set_grad_enabled(bool(self.trained)), torch.autocast("cuda", enabled=use_amp, **self.amp_kwargs):
            logits, loss = self.compute_loss(batch)
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        self.state.output = {CommonKeys.IMAGE: batch.image, CommonKeys.PRED: logits, CommonKeys.LOSS: loss.mean()}
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        if self.trained:
            self._step(loss.mean())
        cases = batch.ids if self.ratio_per == "case" else None
        self.meter.update(logits, batch.ratio, batch.mask, loss=loss.mean(), cases=cases)
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return self.state.output

    def _read(self, item: Any) -> UnlabelledBatch:
        batch = read_unlabelled(item, self.prior, self.state.device, non_blocking=self.non_blocking)
        if batch.ids is None and self.ratio_per == "case":
            raise ValueError('ratio_per="case" needs the sample_id of every patch in the batch')
        return batch

    def _infer(self, image: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        return finest(self.inferer(image, network), image)

    def _step(self, loss: torch.Tensor) -> None:
        if self.amp and self.scaler is not None:
            self.scaler.scale(loss).backward()
            self.fire_event(IterationEvents.BACKWARD_COMPLETED)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            loss.backward()
            self.fire_event(IterationEvents.BACKWARD_COMPLETED)
            self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)

    def _follow_cases(self, logits: torch.Tensor, batch: UnlabelledBatch) -> torch.Tensor:
        """Running ratio of the case of each patch, (B, C)."""
        ratios = prior_loss_of(self.loss_function).estimate(logits.detach(), batch.mask)
        ids = batch.ids or ()
        for case in dict.fromkeys(ids):
            here = ratios[[i == case for i in ids]].mean(0)
            known = self._case_ratios.get(case)
            self._case_ratios[case] = (
                here if known is None else _CASE_MOMENTUM * known.to(here) + (1 - _CASE_MOMENTUM) * here
            )
        return torch.stack([self._case_ratios[case] for case in ids])

    def _close_epoch(self, engine: Engine) -> None:
        found = self.meter.compute()
        self.history.append({"epoch": self.state.epoch, **found.to_dict()})
        self.state.metrics.update({k: v for k, v in found.to_dict().items() if isinstance(v, float)})
        for name, ratios in (("soft_ratio", found.soft_ratio), ("hard_ratio", found.hard_ratio)):
            self.state.metrics.update({f"{name}_{c}": value for c, value in enumerate(ratios)})
        recent = [epoch["loss"] for epoch in self.history[-_WINDOW:]]
        smooth = sum(recent) / len(recent)
        if not found.alarms and smooth < self._best["loss"]:
            weights = _copy(self.network.state_dict()) if self.average is None else None
            self._best = {"loss": smooth, "epoch": self.state.epoch, "weights": weights}

    def _check_samples(self, engine: Engine) -> None:
        here = list_samples(self.data_loader)
        if here is not None and self._sample_ids is not None and here != self._sample_ids:
            gone, new = sorted(set(self._sample_ids) - set(here))[:3], sorted(set(here) - set(self._sample_ids))[:3]
            raise ValueError(
                f"the saved run was about {len(self._sample_ids)} images, this one has {len(here)}; missing: {gone}, "
                f"new: {new}. Go on with the same images, or start anew"
            )
        self._sample_ids = here if here is not None else self._sample_ids


def _make_optimizer(optimizer: OptimizerLike | None, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    if optimizer is None:
        return torch.optim.Adam(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    return optimizer if isinstance(optimizer, torch.optim.Optimizer) else optimizer(parameters)


def _copy(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.detach().cpu().clone() for name, value in state.items()}
