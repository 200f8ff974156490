"""One step of a mean teacher: the averaged network labels the plain image, the network learns from a perturbed one.

    teacher <- d teacher + (1 - d) student          after every step, d = 0.98 in the source

Sources are those of `medseg.losses.PseudoLabelLoss`. Buffers of normalisation are copied from the student, as there.
Perturbations leave voxels where they are: brightness, contrast and noise.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def perturb_intensity(image: torch.Tensor, strength: float = 0.3) -> torch.Tensor:
    """Change contrast, brightness and noise of each image by a random amount, from torch's generator.

    Args:
        image: (B, channels, spatial...).
        strength: largest change of contrast (as a factor) and of brightness (in standard deviations of the image);
            noise has at most half of it.

    Returns:
        A new tensor.

    Example:
        >>> perturb_intensity(torch.zeros(1, 1, 4, 4)).shape
        torch.Size([1, 1, 4, 4])
    """
    shape = (len(image),) + (1,) * (image.ndim - 1)
    axes = tuple(range(1, image.ndim))
    spread = image.std(axes, keepdim=True)

    def draw(low: float, high: float) -> torch.Tensor:
        return torch.empty(shape, device=image.device).uniform_(low, high)

    changed = image * draw(1 - strength, 1 + strength) + spread * draw(-strength, strength)
    return changed + spread * draw(0, strength / 2) * torch.randn_like(image)


def student_and_teacher(
    image: torch.Tensor,
    student: torch.nn.Module,
    teacher: torch.nn.Module,
    infer: Callable[[torch.Tensor, torch.nn.Module], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the student on a perturbed image, and of the teacher, in evaluation, on the plain one.

    Args:
        image: (B, channels, spatial...).
        student: the network that learns.
        teacher: its running average.
        infer: how a network is run on an image.

    Returns:
        Both logits; those of the teacher without a gradient.
    """
    teacher.eval()
    with torch.no_grad():
        labels = infer(image, teacher)
    return infer(perturb_intensity(image), student), labels
