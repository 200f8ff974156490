"""What losses do to their inputs first: check shapes and flags, bring both to float32, make class ids one-hot.

Nothing here waits for the device: class ids without a channel are collected in a small tensor that the loss reads
together with whatever else it copies to the host.
"""

from __future__ import annotations

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
