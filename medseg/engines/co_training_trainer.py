"""Train a dual-path network in two stages: with labels alone, then with the branches' agreement as well.

    stage 1    supervised and auxiliary terms;      stage 2    the same, and the ramped disagreement on shared zones

A batch holds `image` and `label`, and `label_distance` (of `medseg.transforms.ZoneDistanced`) where the auxiliary task
is the signed distance. In the second stage batches without labels may come from a loader of their own; labelled and
unlabelled images go through the network in one call, so that batch normalisation sees them together.

Branches that say the same everywhere never disagree, so the second stage can collapse. The guard watches how much the
shared zones' probabilities vary over the voxels (their standard deviation, smoothed over iterations) and stops the run
where this falls below a part of what it was when the stage began.

Source: Das, Ghosh, Stober, "PI-RADS v2 Compliant Automated Segmentation of Prostate Zones Using co-training Motivated
Multi-task Dual-Path CNN" (2023), for the two stages; schedule, unlabelled images and guard are ours.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.transforms.transform import Transform
from monai.utils.enums import CommonKeys
from torch.nn.parallel import DistributedDataParallel

from medseg.losses import DualPathZoneLoss
from medseg.networks import DualPathOutput, DualPathZoneNet
from medseg.networks.dual_path import branch_probabilities

DISTANCE = "label_distance"
_SMOOTHING = 0.9  # of the guard's running mean


class CoTrainingTrainer(SupervisedTrainer):
    """MONAI's `SupervisedTrainer` for a `DualPathZoneNet`; handlers, AMP, metrics and postprocessing work as there.

    After an iteration the output holds the labelled images, their labels, the fused probabilities as prediction, the
    loss, and its parts "supervised", "auxiliary" and "disagreement". Validate with MONAI's `SupervisedEvaluator`, which
    sees the fused map.

    Args:
        device: where to train.
        max_epochs: epochs of the run.
        train_data_loader: labelled batches as above.
        network: a `DualPathZoneNet`, or one in `DistributedDataParallel`; start the second stage from the first's best.
        optimizer: optimiser of the network, a new one for the second stage.
        loss_function: the loss, with the network's branches and auxiliary task; its ramp counts epochs of this run.
        stage: 1 or 2.
        unlabelled_data_loader: for the second stage, batches with `image` of the labelled ones' size; it starts anew
            where it ends, and in every epoch.
        collapse_guard: stop where the spread of the shared zones falls below this part of the first; 0 never stops.
        epoch_length: iterations of an epoch; by default the length of the loader of labelled batches.
        postprocessing: applied to every item of the output.
        key_train_metric: metric by its name.
        additional_metrics: further metrics by name.
        train_handlers: handlers.
        amp: mixed precision on CUDA; the loss computes in float32.

    Raises:
        TypeError: the network or the loss is another one.
        ValueError: an option is out of range, or network and loss do not belong together.

    Example:
        >>> network = DualPathZoneNet(features=[2, 2, 2, 2, 2], aux=None)
        >>> batch = {"image": torch.rand(2, 1, 2, 8, 8), "label": torch.zeros(2, 1, 2, 8, 8)}
        >>> optimizer = torch.optim.Adam(network.parameters())
        >>> trainer = CoTrainingTrainer("cpu", 1, [batch], network, optimizer, DualPathZoneLoss(aux=None), stage=2)
        >>> trainer.run()
        >>> trainer.state.output[0]["pred"].shape      # of the first item
        torch.Size([5, 2, 8, 8])
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable[Mapping[str, Any]],
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: DualPathZoneLoss,
        *,
        stage: int = 1,
        unlabelled_data_loader: Iterable[Mapping[str, Any]] | None = None,
        collapse_guard: float = 0.1,
        epoch_length: int | None = None,
        postprocessing: Transform | None = None,
        key_train_metric: dict[str, Any] | None = None,
        additional_metrics: dict[str, Any] | None = None,
        train_handlers: Sequence[Any] | None = None,
        amp: bool = False,
    ) -> None:
        self.zone_net = _check_together(network, loss_function)
        _check_stage(stage, loss_function, unlabelled_data_loader, collapse_guard)
        self.stage, self.zone_loss, self.guard = stage, loss_function, collapse_guard
        self.unlabelled_data_loader = unlabelled_data_loader
        self._unlabelled: Iterator[Mapping[str, Any]] = iter(())
        self._beside: dict[str, Any] = {}
        self.spread: dict[str, float] = {}
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=network,
            optimizer=optimizer,
            loss_function=self._weigh,
            epoch_length=epoch_length,
            prepare_batch=self._prepare,
            postprocessing=postprocessing,
            key_train_metric=key_train_metric,
            additional_metrics=additional_metrics,
            train_handlers=train_handlers,
            amp=amp,
        )
        self.add_event_handler(Events.STARTED, self._warn_of_identical_branches)
        self.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)

    def state_dict(self) -> dict[str, Any]:
        """Progress of the run, its stage, and what the guard remembers."""
        return {**super().state_dict(), "stage": self.stage, "spread": dict(self.spread)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a saved state.

        Raises:
            ValueError: it is that of the other stage.
        """
        if state_dict.get("stage", self.stage) != self.stage:
            raise ValueError(
                f"the saved state is of stage {state_dict['stage']}, but this trainer runs stage {self.stage}; to "
                "begin a stage load weights alone"
            )
        self.spread = dict(state_dict.get("spread", {}))
        super().load_state_dict({k: v for k, v in state_dict.items() if k not in ("stage", "spread")})

    def _warn_of_identical_branches(self) -> None:
        if self.stage == 2 and self.zone_net.has_identical_branches():
            warnings.warn(
                "two branches own the same zones with the same weights: they never disagree and learn alike; start "
                "them from different seeds",
                stacklevel=2,
            )

    def _start_epoch(self) -> None:
        self.zone_loss.set_epoch(self.state.epoch - 1)
        if self.unlabelled_data_loader is not None:
            self._unlabelled = iter(self.unlabelled_data_loader)

    def _next_unlabelled(self) -> torch.Tensor:
        assert self.unlabelled_data_loader is not None
        batch = next(self._unlabelled, None)
        if batch is None:
            self._unlabelled = iter(self.unlabelled_data_loader)
            batch = next(self._unlabelled, None)
        if batch is None:
            raise ValueError("unlabelled_data_loader gives no batch; leave it out, or give it images")
        return batch[CommonKeys.IMAGE]

    def _prepare(
        self, batch: Mapping[str, Any], device: torch.device, non_blocking: bool, **to_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Labelled images and labels, followed by unlabelled images with labels of zeros that nobody looks at."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.as_subclass(torch.Tensor).to(device, non_blocking=non_blocking, **to_kwargs)

        image, label = move(batch[CommonKeys.IMAGE]), move(batch[CommonKeys.LABEL])
        distance = move(batch[DISTANCE]) if DISTANCE in batch else None
        count = len(image)
        if self.unlabelled_data_loader is not None:
            more = move(self._next_unlabelled())
            if more.shape[1:] != image.shape[1:]:
                raise ValueError(
                    f"unlabelled images must have shape {tuple(image.shape[1:])}, as labelled ones, got "
                    f"{tuple(more.shape[1:])}; crop them alike"
                )
            image = torch.cat([image, more])
            label, distance = (None if x is None else _pad_items(x, len(image)) for x in (label, distance))
        labelled = torch.arange(len(image), device=device) < count
        self._beside = {"distance": distance, "image": image, "labelled": labelled}
        assert label is not None
        return image, label

    def _weigh(self, output: DualPathOutput, label: torch.Tensor) -> torch.Tensor:
        terms = self.zone_loss.terms(output, label, **self._beside)
        if self.stage == 2 and self.guard > 0:
            self._watch(output)
        state: Any = self.state.output
        count = int(self._beside["labelled"].sum())
        state[CommonKeys.IMAGE], state[CommonKeys.LABEL] = self._beside["image"][:count], label[:count]
        # Handlers and postprocessing expect one tensor.
        state[CommonKeys.PRED] = output.zones[:count].detach()
        state.update({name: value.detach() for name, value in terms.items()})
        return self.zone_loss.weigh(terms, co_training=self.stage == 2)

    def _watch(self, output: DualPathOutput) -> None:
        """Update the running spread of shared zones, and stop where they have become the same everywhere."""
        groups = self.zone_net.branches
        shared = {zone for zone in self.zone_net.zones if sum(zone in group for group in groups) > 1}
        with torch.no_grad():
            found = [
                branch_probabilities(maps.detach())[:, group.index(zone)].std()
                for maps, group in zip(output.branch_logits, groups, strict=True)
                for zone in group
                if zone in shared
            ]
            now = float(torch.stack(found).mean())
        running = _SMOOTHING * self.spread.get("running", now) + (1 - _SMOOTHING) * now
        self.spread = {"first": self.spread.get("first", now), "running": running}
        if running < self.guard * self.spread["first"]:
            raise RuntimeError(
                f"the branches collapse: the shared zones vary by {running:.2g} over the voxels, at first by "
                f"{self.spread['first']:.2g} (collapse_guard {self.guard:g}); raise lambda_sup, lower lambda_cot, or "
                "start from a better first stage"
            )


def _pad_items(tensor: torch.Tensor, count: int) -> torch.Tensor:
    return torch.cat([tensor, tensor.new_zeros(count - len(tensor), *tensor.shape[1:])])


def _check_together(network: torch.nn.Module, loss: DualPathZoneLoss) -> DualPathZoneNet:
    inside = network.module if isinstance(network, DistributedDataParallel) else network
    if not isinstance(inside, DualPathZoneNet):
        raise TypeError(f"network must be a medseg.networks.DualPathZoneNet, got {type(inside).__name__}")
    if not isinstance(loss, DualPathZoneLoss):
        raise TypeError(f"loss_function must be a medseg.losses.DualPathZoneLoss, got {type(loss).__name__}")
    for name in ("zones", "branches", "aux"):
        if getattr(inside, name) != getattr(loss, name):
            raise ValueError(
                f"network and loss_function must have the same {name}, got {getattr(inside, name)} and "
                f"{getattr(loss, name)}"
            )
    return inside


def _check_stage(stage: int, loss: DualPathZoneLoss, unlabelled: Any, guard: float) -> None:
    if stage not in (1, 2):
        raise ValueError(f"stage must be 1 or 2, got {stage}")
    if stage == 1 and unlabelled is not None:
        raise ValueError("unlabelled_data_loader is for stage 2: images without labels teach nothing in stage 1")
    if stage == 2 and loss.lambda_cot == 0:
        raise ValueError("loss_function has lambda_cot 0, with which stage 2 is stage 1; give it a positive weight")
    if not 0 <= guard < 1:
        raise ValueError(f"collapse_guard must lie in [0, 1), got {guard}")
