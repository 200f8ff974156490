"""Choose where a network runs; nothing falls back in silence."""

from __future__ import annotations

import torch


class DeviceNotFoundError(RuntimeError):
    """The device asked for is not there."""


def select_device(name: str = "auto") -> tuple[torch.device, str]:
    """Pick a device by name.

    Args:
        name: `auto` (first of CUDA, Apple's MPS, CPU), `cpu`, `cuda`, `cuda:N` or `mps`.

    Returns:
        The device and why it was taken.

    Raises:
        DeviceNotFoundError: the device named is absent.
        ValueError: the name is no device.

    Example:
        >>> select_device("cpu")
        (device(type='cpu'), 'asked for')
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0"), "a CUDA device is present"
        if torch.backends.mps.is_available():
            return torch.device("mps"), "no CUDA device, but Apple's MPS is present"
        return torch.device("cpu"), "no GPU is present"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise DeviceNotFoundError(f"device {name!r} was asked for, but {count} CUDA devices are present; try cpu")
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise DeviceNotFoundError("device 'mps' was asked for, but MPS is not available here; try cpu")
    elif device.type != "cpu":
        raise ValueError(f"device must be auto, cpu, cuda, cuda:N or mps, got {name!r}")
    return device, "asked for"
