"""One network outlines a structure, a small one divides it into parts, slice by slice.

Raters often divide a structure at a plane of the image: the hippocampus into head and body at a coronal slice, a vessel
or a bone at an axial one. A network that labels voxels learns the plane of every training case by heart, for there are
many voxels but only one plane a case. Here the parts are decided once for each slice, from features averaged over it,
by so small a network that it has to find what the cases have in common. With O the outline network (background first),
V convolutions that keep the slices, m the mean and the largest value over a slice, T convolutions along the axis,

    background = O_0(x),   structure = log(sum of exp(O_k(x)) over k > 0)
    evidence   = sigmoid(structure - background)                                  (without gradient)
    parts      = log_softmax(T(m(V([x, evidence]))))                              (one number for each part and slice)
    logits     = [background, structure + parts_1, structure + parts_2, ...]

so that the softmax of the logits is the outline's probability times that of the part. Losses of the logits teach the
outline and the parts at once, and neither spoils the other.

Source: our own, made for the borders of the hippocampus bundle (see its README for what it gains there).
"""

from __future__ import annotations

import torch
from torch import nn


class SlicewisePartsNet(nn.Module):
    """Logits of background and parts, (B, 1 + num_parts, X, Y, Z), of images (B, C, X, Y, Z).

    Args:
        outline: network from images to logits of background and the structure, (B, 1 + n, X, Y, Z); its channels but
            the first are summed as probabilities, so that one that was trained on parts can be used.
        in_channels: channels of the image.
        num_parts: how many parts there are.
        slice_axis: spatial axis, 0 to 2, across which the slices lie.
        width: channels of the first convolutions that look for the parts; later ones have twice and four times as many.
        dropout: share of features of a slice that are left out in training.

    Raises:
        ValueError: an option is out of range.

    Example:
        >>> outline = torch.nn.Conv3d(1, 2, 3, padding=1)
        >>> network = SlicewisePartsNet(outline, num_parts=2, slice_axis=1).eval()
        >>> logits = network(torch.rand(1, 1, 16, 24, 16))
        >>> logits.shape
        torch.Size([1, 3, 16, 24, 16])
        >>> heads = (logits[:, 1] > logits[:, 2]).float()         # the same everywhere in a coronal slice
        >>> bool((heads.std((1, 3)) == 0).all())
        True
    """

    def __init__(
        self,
        outline: nn.Module,
        in_channels: int = 1,
        num_parts: int = 2,
        *,
        slice_axis: int = 1,
        width: int = 12,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        if num_parts < 2:
            raise ValueError(f"num_parts must be at least 2, got {num_parts}; one part needs no division")
        if slice_axis not in (0, 1, 2):
            raise ValueError(f"slice_axis must be 0, 1 or 2, got {slice_axis}")
        self.outline, self.slice_axis = outline, slice_axis
        self._plane = tuple(2 + axis for axis in range(3) if axis != slice_axis)
        x, y, z = (1 if axis == slice_axis else 2 for axis in range(3))
        coarser = (x, y, z)
        self.volume = nn.Sequential(
            nn.AvgPool3d(coarser, ceil_mode=True),
            _block(in_channels + 1, width), _block(width, width),
            _block(width, 2 * width, coarser), _block(2 * width, 2 * width),
            _block(2 * width, 4 * width, coarser), _block(4 * width, 4 * width),
        )  # fmt: skip
        self.line = nn.Sequential(
            nn.Dropout(dropout),
            nn.Conv1d(8 * width, 4 * width, 7, padding=3), nn.LeakyReLU(0.01),
            nn.Conv1d(4 * width, 4 * width, 7, padding=6, dilation=2), nn.LeakyReLU(0.01),
            nn.Dropout(dropout),
            nn.Conv1d(4 * width, num_parts, 7, padding=3),
        )  # fmt: skip

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of background and parts."""
        scores = self.outline(image)
        background, structure = scores[:, :1], scores[:, 1:].logsumexp(1, keepdim=True)
        evidence = (structure - background).detach().sigmoid()
        features = self.volume(torch.cat([image, evidence], 1))
        parts = self.line(torch.cat([features.mean(self._plane), features.amax(self._plane)], 1)).log_softmax(1)
        for dim in self._plane:
            parts = parts.unsqueeze(dim)
        return torch.cat([background, structure + parts], 1)


def _block(before: int, after: int, stride: int | tuple[int, int, int] = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(before, after, 3, stride, 1), nn.InstanceNorm3d(after, affine=True), nn.LeakyReLU(0.01)
    )
