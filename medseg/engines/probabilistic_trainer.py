"""Train a Probabilistic U-Net on images with several annotations each.

One step: draw one annotation of every image; posterior and prior of the latent code; the U-Net's features once; samples
from the posterior; the distance of this set of samples to the set of all annotations, and the divergence.

A batch holds `image` (B, C, spatial...), `label` (B, M, spatial...) with one annotation a channel, as
`medseg.data.load_datalist` and `LoadImaged` give it, class ids or 0 and 1; `annotation_mask` (B, M) where annotations
are missing, and `annotation_weights` (B, M) where raters count differently.

Source: Chatterjee et al., "PULASki: Learning inter-rater variability using statistical distances to improve
probabilistic segmentation" (2025). Differs from the published code in that every item draws an annotation of its own,
where that draws one number for the batch, and in that the U-Net runs once for all samples.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.engines import SupervisedTrainer
from monai.transforms.transform import Transform
from monai.utils.enums import CommonKeys
from torch.nn.parallel import DistributedDataParallel

from medseg.losses import ProbabilisticSegLoss
from medseg.networks import ProbabilisticOutput, ProbabilisticUNet

MASK, WEIGHTS = "annotation_mask", "annotation_weights"


class ProbabilisticTrainer(SupervisedTrainer):
    """MONAI's `SupervisedTrainer` for sets of annotations; handlers, AMP, metrics and postprocessing work as there.

    Annotations and latent noise are drawn from (seed, iteration, rank) alone, so that a resumed run draws what the
    unbroken one would have drawn; the seed is part of `state_dict`. After an iteration the output holds the image, the
    annotations, the samples' logits (B, n, C, spatial...) as prediction, and the loss.

    Args:
        device: where to train.
        max_epochs: epochs of the run.
        train_data_loader: batches as above.
        network: a `ProbabilisticUNet`, or one in `DistributedDataParallel`.
        optimizer: optimiser of the network.
        loss_function: the loss; for class ids of several classes its parts need `to_onehot_y`.
        samples: samples of each image in a step; by default as many as there are annotations.
        seed: seed of the annotations and the noise that are drawn.
        epoch_length: iterations of an epoch; by default the length of the loader.
        postprocessing: applied to every item of the output.
        key_train_metric: metric by its name.
        additional_metrics: further metrics by name.
        train_handlers: handlers.
        amp: mixed precision on CUDA; distances and divergence are computed in float32.

    Raises:
        TypeError: the network or the loss is another one.
        ValueError: `samples` is below 1.

    Example:
        >>> network = ProbabilisticUNet(2, features=4, depth=2)
        >>> batch = {"image": torch.zeros(2, 1, 8, 8), "label": torch.zeros(2, 3, 8, 8)}
        >>> optimizer = torch.optim.Adam(network.parameters())
        >>> trainer = ProbabilisticTrainer("cpu", 1, [batch], network, optimizer, ProbabilisticSegLoss(), samples=2)
        >>> trainer.run()
        >>> trainer.state.iteration
        1
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable[Mapping[str, Any]],
        network: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        loss_function: ProbabilisticSegLoss,
        *,
        samples: int | None = None,
        seed: int = 0,
        epoch_length: int | None = None,
        postprocessing: Transform | None = None,
        key_train_metric: dict[str, Any] | None = None,
        additional_metrics: dict[str, Any] | None = None,
        train_handlers: Sequence[Any] | None = None,
        amp: bool = False,
    ) -> None:
        inside = network.module if isinstance(network, DistributedDataParallel) else network
        if not isinstance(inside, ProbabilisticUNet):
            raise TypeError(f"network must be a medseg.networks.ProbabilisticUNet, got {type(inside).__name__}")
        if not isinstance(loss_function, ProbabilisticSegLoss):
            raise TypeError(
                f"loss_function must be a medseg.losses.ProbabilisticSegLoss, got {type(loss_function).__name__}; give "
                "other losses to it as seg_loss or set_loss"
            )
        if samples is not None and samples < 1:
            raise ValueError(f"samples must be at least 1, or None for as many as annotations, got {samples}")
        self.model, self.set_loss, self.samples, self.seed = inside, loss_function, samples, seed
        self._beside: dict[str, Any] = {}
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            train_data_loader=train_data_loader,
            network=network,
            optimizer=optimizer,
            loss_function=self._compare,
            epoch_length=epoch_length,
            prepare_batch=self._prepare,
            postprocessing=postprocessing,
            key_train_metric=key_train_metric,
            additional_metrics=additional_metrics,
            train_handlers=train_handlers,
            amp=amp,
        )

    def state_dict(self) -> dict[str, Any]:
        """Progress of the run, and its seed under `seed`."""
        return {**super().state_dict(), "seed": self.seed}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a saved state, with its seed."""
        self.seed = int(state_dict.get("seed", self.seed))
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "seed"})

    def _prepare(
        self, batch: Mapping[str, Any], device: torch.device, non_blocking: bool, **to_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, tuple, dict[str, Any]]:
        """Image, annotations (B, M, 1, spatial...), and what the network needs besides the image."""
        image, labels = (
            batch[key].to(device, non_blocking=non_blocking, **to_kwargs)
            for key in (CommonKeys.IMAGE, CommonKeys.LABEL)
        )
        if labels.shape[0] != image.shape[0] or labels.shape[2:] != image.shape[2:]:
            spatial = ", ".join(map(str, image.shape[2:]))
            raise ValueError(
                f"label must have shape ({image.shape[0]}, M, {spatial}), one annotation a channel, for this image, "
                f"got {tuple(labels.shape)}"
            )
        annotations = labels.as_subclass(torch.Tensor)[:, :, None]
        mask = batch.get(MASK)
        random = self._generator()
        drawn = self._draw(annotations, mask, random)
        count = labels.shape[1] if self.samples is None else self.samples
        noise = torch.randn((len(image), count, self.model.latent_dim), generator=random).to(device)
        self._beside = {"drawn": drawn, "annotation_mask": mask, "annotation_weights": batch.get(WEIGHTS)}
        return image, annotations, (), {"seg": self._one_hot(drawn), "n": count, "noise": noise}

    def _generator(self) -> torch.Generator:
        """Random numbers of this iteration and process."""
        sequence = np.random.SeedSequence([self.seed, self.state.iteration, getattr(self.state, "rank", 0)])
        return torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))

    @staticmethod
    def _draw(annotations: torch.Tensor, mask: torch.Tensor | None, random: torch.Generator) -> torch.Tensor:
        """One annotation of every item, (B, 1, spatial...), among those that exist."""
        exists = torch.ones(annotations.shape[:2]) if mask is None else mask.float().cpu()
        index = torch.multinomial(exists, 1, generator=random)[:, 0].to(annotations.device)
        return annotations[torch.arange(len(annotations), device=annotations.device), index]

    def _one_hot(self, ids: torch.Tensor) -> torch.Tensor:
        """What the posterior takes, (B, out_channels, spatial...)."""
        if self.model.out_channels == 1:
            return ids
        channels = torch.arange(self.model.out_channels, device=ids.device)
        return ids == channels.view(1, -1, *(1,) * (ids.ndim - 2))

    def _compare(self, output: ProbabilisticOutput, annotations: torch.Tensor) -> torch.Tensor:
        state: Any = self.state.output
        # Handlers and postprocessing expect tensors.
        state[CommonKeys.PRED] = output.samples.detach()
        state[CommonKeys.LABEL] = annotations
        return self.set_loss(output, annotations, **self._beside)
