"""What calibrators and their objectives ask of logits, probabilities and labels."""

from __future__ import annotations

import warnings

import torch

# Fewer voxels than this fix not even one number well: the standard error of a fitted temperature is then some 10 %.
_FEW = 100


class CalibrationWarning(UserWarning):
    """The voxels given do not determine the calibration well."""


def as_voxels(values: torch.Tensor, labels: torch.Tensor, name: str = "logits") -> tuple[torch.Tensor, torch.Tensor]:
    """Check and flatten.

    Args:
        values: logits or probabilities, (N, C) or (B, C, spatial...).
        labels: class ids, (N,), (B, spatial...) or (B, 1, spatial...), integers of any type.
        name: of `values`, for errors.

    Returns:
        Values (voxels, C) in float32 or float64, and labels (voxels,), int64.

    Raises:
        ValueError: shapes do not fit, a value is not finite, or a label is no class.
    """
    if values.ndim < 2 or values.shape[1] < 2 or not values.is_floating_point():
        raise ValueError(
            f"{name} must be floating, (N, C) or (B, C, spatial...) with two classes or more, got "
            f"{tuple(values.shape)} of {values.dtype}; for a single sigmoid channel stack 0 and its logit"
        )
    expected = (values.shape[0], *values.shape[2:])
    if labels.ndim == values.ndim and labels.shape[1] == 1:
        labels = labels[:, 0]
    if tuple(labels.shape) != expected or labels.is_floating_point():
        raise ValueError(
            f"labels must be integer class ids of shape {expected} for {name} of shape {tuple(values.shape)}, got "
            f"{tuple(labels.shape)} of {labels.dtype}; take the argmax of one-hot labels"
        )
    flat = values.movedim(1, -1).flatten(0, -2)
    flat = flat if flat.dtype == torch.float64 else flat.float()
    ids = labels.flatten().long()
    if not len(ids):
        raise ValueError(f"{name} hold no voxels, got shape {tuple(values.shape)}")
    if not bool(flat.isfinite().all()):
        raise ValueError(f"{name} hold NaN or infinity; check the network's weights, or leave those voxels out")
    if int(ids.min()) < 0 or int(ids.max()) >= flat.shape[1]:
        raise ValueError(
            f"labels must lie in 0 to {flat.shape[1] - 1}, the classes of {name}, got {int(ids.min())} to "
            f"{int(ids.max())}; leave voxels to ignore out before"
        )
    return flat, ids


def check_fit(labels: torch.Tensor) -> None:
    """Refuse labels from which nothing can be learned, and warn of few."""
    if int(labels.min()) == int(labels.max()):
        raise ValueError(
            f"labels hold one class only ({int(labels[0])}), from which no calibration can be learned; take voxels of "
            "at least two classes, e.g. with sample_voxels"
        )
    if len(labels) < _FEW:
        message = f"{len(labels)} voxels determine a calibration badly; take at least {_FEW}, better 100000"
        warnings.warn(message, CalibrationWarning, stacklevel=3)
