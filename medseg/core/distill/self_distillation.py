"""Self-distillation: train again on a mixture of labels and the outputs of the network before.

    target of round t = alpha labels + (1 - alpha) outputs of round t - 1

Without labels (alpha = 0) each round adds to the regularisation, and in the end everything collapses; with them the
rounds settle where a single training with a regularisation 1/alpha times as strong would. So outputs are worth most
where labels are noisy, and alpha can be estimated on a small, clean set: with f_a the outputs of a network trained on
labels, f_b those of one trained on the outputs before, and the network of the mixture close to alpha f_a + (1 - alpha)
f_b, as it is for a network that is linear in its targets,

    alpha = <y - f_b, f_a - f_b>/|f_a - f_b|^2,   within 0 and 1

Source: Borup, Andersen, "Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by
Self-Distillation" (NeurIPS 2021), which shows it for kernel ridge regression.
"""

from __future__ import annotations

import torch


def mix_targets(labels: torch.Tensor, outputs: torch.Tensor, alpha: float) -> torch.Tensor:
    """Targets of the next round, alpha labels + (1 - alpha) outputs.

    Args:
        labels: one-hot or soft masks (B, C, spatial...).
        outputs: probabilities of the network before, of the same shape; they get no gradient.
        alpha: weight of the labels, 0 to 1.

    Returns:
        Soft masks in the type of the outputs.

    Raises:
        ValueError: shapes differ, or alpha is out of range.

    Example:
        >>> mix_targets(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]), alpha=0.5)
        tensor([[0.2500, 0.7500]])
    """
    if labels.shape != outputs.shape:
        raise ValueError(
            f"labels and outputs must have the same shape, got {tuple(labels.shape)} and {tuple(outputs.shape)}; make "
            "class ids one-hot first"
        )
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be a weight within 0 and 1, got {alpha}")
    return torch.lerp(outputs.detach(), labels.to(outputs), alpha)


def best_label_weight(labels: torch.Tensor, from_labels: torch.Tensor, from_outputs: torch.Tensor) -> float:
    """Weight of the labels that suits a clean set best, in squared error.

    Args:
        labels: clean one-hot masks, any shape.
        from_labels: probabilities of the network trained on labels, of the same shape.
        from_outputs: probabilities of the network trained on outputs alone, of the same shape.

    Returns:
        alpha, 0 to 1; 1 where both networks say the same.

    Raises:
        ValueError: shapes differ or values are not finite.

    Example:
        >>> y, a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.8, 0.4]), torch.tensor([1.2, -0.4])
        >>> round(best_label_weight(y, a, b), 6)
        0.5
    """
    if not labels.shape == from_labels.shape == from_outputs.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (labels, from_labels, from_outputs))
        raise ValueError(f"labels, from_labels and from_outputs must have the same shape, got {shapes}")
    y, a, b = (x.detach().as_subclass(torch.Tensor).double() for x in (labels, from_labels, from_outputs))
    apart = a - b
    gain, size = float(((y - b) * apart).sum()), float(apart.square().sum())
    if not torch.isfinite(torch.tensor([gain, size])).all():
        raise ValueError("labels and probabilities must be finite")
    return min(1.0, max(0.0, gain / size)) if size > 0 else 1.0
