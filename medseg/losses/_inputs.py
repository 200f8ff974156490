"""What losses do to their inputs first: check shapes and flags, bring both to float32, make class ids one-hot.

Only `read_target` waits for the device: elsewhere class ids without a channel are collected in a small tensor that the
loss reads together with whatever else it copies to the host.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch


def check_activation(*, sigmoid: bool, softmax: bool, other_act: Callable | None, **more: bool) -> None:
    """Refuse more than one activation; `more` are further flags by name."""
    flags = {"sigmoid": sigmoid, "softmax": softmax, "other_act": other_act is not None, **more}
    chosen = [name for name, is_set in flags.items() if is_set]
    if len(chosen) > 1:
        raise ValueError(f"{' and '.join(chosen)} are both set; choose one activation")
    if other_act is not None and not callable(other_act):
        raise TypeError(f"other_act must be callable or None, got {type(other_act).__name__}")


def check_shapes(input: torch.Tensor, target: torch.Tensor, *, class_ids: bool) -> None:
    """Refuse anything but (B, C, spatial...) in 2D or 3D and a target that fits."""
    if input.ndim not in (4, 5):
        raise ValueError(f"input must have shape (B, C, H, W) or (B, C, H, W, D), got {tuple(input.shape)}")
    expected = (input.shape[0], 1, *input.shape[2:]) if class_ids else tuple(input.shape)
    if tuple(target.shape) != expected:
        hint = "" if class_ids or target.shape[1:2] != (1,) else "; set to_onehot_y=True if these are class ids"
        raise ValueError(f"target must have shape {expected} for this input, got {tuple(target.shape)}{hint}")


def check_scores(input: torch.Tensor, *, softmax: bool) -> None:
    """Refuse whole numbers, which are labels rather than logits, and a softmax over one channel, which is always 1."""
    if not input.is_floating_point():
        raise ValueError(
            f"input must hold logits or probabilities of a float type, got {input.dtype}; labels go second"
        )
    if softmax and input.shape[1:2] == (1,):
        raise ValueError("softmax needs at least two channels, got 1; use sigmoid=True")


def check_reduction(reduction: str) -> None:
    """Refuse anything but what MONAI's losses know."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction must be one of mean, sum, none, got {reduction!r}")


def reduce(values: torch.Tensor, reduction: str) -> torch.Tensor:
    """Mean or sum of the values, or the values."""
    return {"mean": values.mean, "sum": values.sum, "none": lambda: values}[reduction]()


def in_full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Give a plain float32 tensor; float64 stays. MONAI's metadata would only slow every operation down."""
    tensor = tensor.as_subclass(torch.Tensor)
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def make_one_hot(target: torch.Tensor, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
    """One-hot booleans (B, C, spatial...) of class ids (B, 1, spatial...), and the ids without a channel.

    Returns:
        The booleans; and the smallest and largest id that has no channel, (2,) float32, zeros where all have one.
    """
    ids = torch.arange(channels, device=target.device).view(1, -1, *(1,) * (target.ndim - 2))
    one_hot = target == ids
    stray = torch.where(one_hot.any(dim=1, keepdim=True), 0, target).float()
    return one_hot, torch.stack((stray.min(), stray.max()))


def refuse_stray_ids(stray: list[float], channels: int) -> None:
    """Raise if `make_one_hot` met an id without a channel; `stray` is its second answer on the host."""
    for label in stray:
        if label != 0:
            raise ValueError(
                f"target holds class id {label:g}, but input has {channels} channels (ids 0 to {channels - 1}); "
                "give the network more output channels, or map the labels first"
            )


def check_class_ids(target: torch.Tensor, channels: int) -> None:
    """Refuse class ids that are no whole numbers or have no channel, without making them one-hot."""
    if target.is_floating_point() and not torch.equal(target, target.floor()):
        raise ValueError("target holds class ids that are no whole numbers; set to_onehot_y=False if they are masks")
    if target.numel():
        extremes = [float(label) for label in target.aminmax()]
        refuse_stray_ids([label if not 0 <= label < channels else 0.0 for label in extremes], channels)


def read_target(input: torch.Tensor, target: torch.Tensor, *, to_onehot_y: bool) -> torch.Tensor:
    """Masks of the input's shape, in whatever type is at hand: booleans of class ids, else the target itself."""
    channels = input.shape[1] if input.ndim > 1 else 0
    class_ids = to_onehot_y and channels > 1
    check_shapes(input, target, class_ids=class_ids)
    target = target.detach().as_subclass(torch.Tensor)
    if not class_ids:
        if to_onehot_y:
            warnings.warn("single channel input, to_onehot_y=True ignored", stacklevel=4)
        return target
    one_hot, stray = make_one_hot(target, channels)
    refuse_stray_ids(stray.tolist(), channels)
    return one_hot
