"""The method of source-free adaptation and what it is compared with, as settings of one trainer.

| name | loss | what trains | source |
|---|---|---|---|
| `kl` | weighted entropy + KL(found, expected ratio) | all | Bateson et al., Medical Image Analysis 2022 |
| `kl_reverse` | weighted entropy + KL(expected, found ratio) | all | Bateson et al., MICCAI 2020 |
| `none` | | nothing | |
| `batch_norm` | | statistics of batch normalisation | Li et al., Pattern Recognition 2018 |
| `tent` | entropy | normalisation | Wang et al., ICLR 2021 |
| `entropy` | weighted entropy | all | |
| `uniform` | entropy + KL(found, uniform ratio) | all | Liang et al., ICML 2020, its information term |
| `mean_teacher` | pseudo-labels of the averaged weights | all | Tang et al., MICCAI 2023, simplified |

All but `none` take the statistics of batch normalisation from the new images, so that the result is a plain state dict.
TENT as published normalises by the batch in evaluation as well: `SourceFreeAdapter(norm_stats="batch")`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch

from medseg.data import ClassRatioPrior
from medseg.engines.source_free_adapter import WEIGHT_DECAY, SourceFreeAdapter
from medseg.losses import PseudoLabelLoss, SourceFreeAdaptationLoss

Method = Literal["kl", "kl_reverse", "none", "batch_norm", "tent", "entropy", "uniform", "mean_teacher"]
METHODS: tuple[str, ...] = get_args(Method)
TEACHER_DECAY = 0.98


def build_adapter(
    method: Method,
    model: torch.nn.Module,
    prior: ClassRatioPrior,
    *,
    class_weight: Sequence[float] | None = None,
    learning_rate: float = 1e-4,
    max_epochs: int = 100,
    ema: float = 0.0,
    sigmoid: bool = False,
    ratio_per: str = "image",
    train_handlers: Sequence[Any] | None = None,
) -> SourceFreeAdapter:
    """Set up a trainer for one of the methods, with Adam and the published weight decay.

    Args:
        method: a name of the table above.
        model: the trained network; adapted in place.
        prior: expected class ratios; methods that do not use them show them in their diagnostics.
        class_weight: weight of each class in the weighted entropy; 1 by default.
        learning_rate: of Adam.
        max_epochs: epochs of the run.
        ema: decay of the running average of the weights, 0 for none; a mean teacher has 0.98 then.
        sigmoid: whether the channels are problems of their own, instead of one softmax.
        ratio_per: "image", or "case" where items are patches.
        train_handlers: handlers of the trainer.

    Returns:
        The trainer, for `fit`.

    Raises:
        ValueError: the method is unknown, or does not go with another option.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
        >>> adapter = build_adapter("tent", model, ClassRatioPrior([0.9, 0.1]))
        >>> len(adapter.trained)
        2
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if method == "mean_teacher" and sigmoid:
        raise ValueError("mean_teacher is for networks with a softmax; take another method for a sigmoid")
    trainable = {"none": "none", "batch_norm": "none", "tent": "norm"}.get(method, "all")

    def make_optimizer(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=learning_rate, weight_decay=WEIGHT_DECAY)

    return SourceFreeAdapter(
        model,
        _build_loss(method, class_weight, sigmoid),
        ClassRatioPrior.uniform(prior.num_classes) if method == "uniform" else prior,
        trainable,  # type: ignore[arg-type]
        "source" if method == "none" else "target",
        make_optimizer,
        max_epochs,
        ema or (TEACHER_DECAY if method == "mean_teacher" else 0.0),
        train_handlers=train_handlers,
        ratio_per=ratio_per,
    )


def _build_loss(method: str, class_weight: Sequence[float] | None, sigmoid: bool) -> Callable[..., torch.Tensor]:
    if method == "mean_teacher":
        return PseudoLabelLoss()
    flags: dict[str, Any] = {"softmax": not sigmoid, "sigmoid": sigmoid}
    if method in ("tent", "none", "batch_norm"):
        return SourceFreeAdaptationLoss(lambda_prior=0.0, **flags)
    if method == "entropy":
        return SourceFreeAdaptationLoss(class_weight, lambda_prior=0.0, **flags)
    if method == "uniform":
        return SourceFreeAdaptationLoss(**flags)
    direction = "prior_est" if method == "kl_reverse" else "est_prior"
    return SourceFreeAdaptationLoss(class_weight, direction=direction, **flags)
