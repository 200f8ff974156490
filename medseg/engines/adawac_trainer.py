"""Train with AdaWAC: two views of every sample through the network at once, and a loss that weighs each sample.

A batch is what `medseg.transforms.PairedViewsd` and `medseg.data.with_sample_ids` give: `image`, `image_view2`,
`label`, `label_view2`, `sample_id`, and with `align="inverse"` `view_affine`, `view_affine_view2`. Both views go
through the network in one call, so that batch normalisation sees them together.

Source: Dong, Xie, Ward, "Adaptively Weighted Data Augmentation Consistency Regularization for Robust Optimization under
Concept Shift" (ICML 2023); see `medseg.losses.AdaptiveWeightedConsistencyLoss`. The published code calls the network
once for each view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.engines import SupervisedTrainer
from monai.inferers.inferer import Inferer, SimpleInferer
from monai.transforms.transform import Transform
from monai.utils.enums import CommonKeys
from torch.nn.parallel import DistributedDataParallel

from medseg.losses import AdaptiveWeightedConsistencyLoss
from medseg.networks import FeatureTap

SAMPLE_ID = "sample_id"
AFFINE = "view_affine"
SECOND = "_view2"


class AdaWACTrainer(SupervisedTrainer):
    """MONAI's `SupervisedTrainer` for two views; handlers, AMP, metrics and postprocessing work as there.

    After an iteration the output holds the first view alone (image, label, prediction), the loss, and `weights` (B, 2).
    `state_dict` holds the progress and the table of the loss; network and optimiser are saved beside it as always.
    Under DDP every rank has the same table, as all ranks share their updates; wrap the tap:
    `DistributedDataParallel(FeatureTap(network))`. Validation and inference use the network itself, `tap.model`.

    Args:
        device: where to train.
        max_epochs: epochs of the run.
        train_data_loader: batches as above.
        network: a network, a `FeatureTap` of one, or a tap in `DistributedDataParallel`.
        optimizer: optimiser of the network.
        loss_function: the loss; give it `sample_names`, so that a table is never resumed with another list of files.
        layer: for a network without a tap, see `FeatureTap`.
        epoch_length: iterations of an epoch; by default the length of the loader.
        inferer: how the network is called; `SimpleInferer` by default.
        postprocessing: applied to every item of the output.
        key_train_metric: metric by its name.
        additional_metrics: further metrics by name.
        train_handlers: handlers.
        amp: mixed precision on CUDA; the loss computes in float32.

    Raises:
        TypeError: the loss is another one.
        ValueError: the network in `DistributedDataParallel` is no tap, or has no layer to tap.

    Example:
        >>> from monai.networks.nets import UNet
        >>> network = UNet(spatial_dims=2, in_channels=1, out_channels=2, channels=(4, 8), strides=(2,))
        >>> loss, views = AdaptiveWeightedConsistencyLoss(num_samples=2), torch.zeros(2, 1, 8, 8)
        >>> batch = {"image": views, "image_view2": views, "label": views, "label_view2": views}
        >>> batch["sample_id"] = torch.tensor([1, 0])
        >>> optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
        >>> trainer = AdaWACTrainer("cpu", 1, [batch], network, optimizer, loss)
        >>> trainer.run()
        >>> trainer.state_dict()["loss"]["visits"]
        tensor([1, 1], dtype=torch.int32)
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable[Mapping[str, Any]],
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: AdaptiveWeightedConsistencyLoss,
        *,
        layer: str = "auto",
        epoch_length: int | None = None,
        inferer: Inferer | None = None,
        postprocessing: Transform | None = None,
        key_train_metric: dict[str, Any] | None = None,
        additional_metrics: dict[str, Any] | None = None,
        train_handlers: Sequence[Any] | None = None,
        amp: bool = False,
    ) -> None:
        if not isinstance(loss_function, AdaptiveWeightedConsistencyLoss):
            raise TypeError(
                f"loss_function must be medseg.losses.AdaptiveWeightedConsistencyLoss, got "
                f"{type(loss_function).__name__}; for other losses use monai.engines.SupervisedTrainer"
            )
        self.adaptive_loss = loss_function.to(device)
        self._call = SimpleInferer() if inferer is None else inferer
        self._features: torch.Tensor | None = None
        self._beside: dict[str, Any] = {}
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=_tap(network, layer),
            optimizer=optimizer,
            loss_function=self._weigh,
            epoch_length=epoch_length,
            prepare_batch=self._join_views,
            inferer=self._infer,  # type: ignore[arg-type]  (called, as any inferer)
            postprocessing=postprocessing,
            key_train_metric=key_train_metric,
            additional_metrics=additional_metrics,
            train_handlers=train_handlers,
            amp=amp,
        )

    def state_dict(self) -> dict[str, Any]:
        """Progress of the run, and the state of the loss under `loss`."""
        return {**super().state_dict(), "loss": self.adaptive_loss.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> None:
        """Go on from a saved state.

        Args:
            state_dict: what `state_dict` gave.
            strict: refuse a table of other samples; with False, its entries are found by name.

        Raises:
            ValueError: the table belongs to other samples; nothing has been changed.
        """
        progress = {key: value for key, value in state_dict.items() if key != "loss"}
        if "loss" in state_dict:
            self.adaptive_loss.load_state_dict(state_dict["loss"], strict=strict)
        super().load_state_dict(progress)

    def _join_views(
        self, batch: Mapping[str, Any], device: torch.device, non_blocking: bool, **to_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both views of image and label as one batch; ids and matrices wait for the loss."""
        _check_batch(batch)
        image, label = (
            torch.cat((batch[key], batch[f"{key}{SECOND}"])).to(device, non_blocking=non_blocking, **to_kwargs)
            for key in (CommonKeys.IMAGE, CommonKeys.LABEL)
        )
        affines = (batch[AFFINE], batch[f"{AFFINE}{SECOND}"]) if AFFINE in batch else None
        self._beside = {"sample_ids": batch.get(SAMPLE_ID), "view_affines": affines}
        return image, label

    def _infer(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        prediction, self._features = self._call(inputs, network, *args, **kwargs)
        return prediction

    def _weigh(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        features, self._features = self._features, None
        if features is None:
            raise RuntimeError("the loss was called without a forward pass before it")
        loss = self.adaptive_loss(prediction, target, features, **self._beside)
        output: Any = self.state.output
        for key in (CommonKeys.IMAGE, CommonKeys.LABEL, CommonKeys.PRED):
            output[key] = output[key][: len(prediction) // 2]
        output["weights"] = self.adaptive_loss.last["weights"]
        return loss


def _tap(network: torch.nn.Module, layer: str) -> torch.nn.Module:
    inside = network.module if isinstance(network, DistributedDataParallel) else network
    if isinstance(inside, FeatureTap):
        return network
    if inside is not network:
        raise ValueError(
            "network is wrapped in DistributedDataParallel without a FeatureTap; give "
            "DistributedDataParallel(FeatureTap(network))"
        )
    return FeatureTap(network, layer)


def _check_batch(batch: Mapping[str, Any]) -> None:
    wanted = [f"{key}{ending}" for key in (CommonKeys.IMAGE, CommonKeys.LABEL) for ending in ("", SECOND)]
    if missing := [key for key in wanted if key not in batch]:
        raise ValueError(
            f"the batch lacks {', '.join(missing)}; end the training transforms with medseg.transforms.PairedViewsd "
            f'for the keys "image" and "label"'
        )
