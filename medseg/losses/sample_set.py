"""Distance between a set of predicted segmentations and the set of the experts' annotations of one image.

Each segmentation is one point s_i or y_j, its voxels and classes the coordinates, with weights a_i and b_j (equal by
default):

    energy      sum a_i b_j |s_i - y_j| - sum a_i a_k |s_i - s_k| / 2 - sum b_j b_l |y_j - y_l| / 2
    sinkhorn    solver "exact":     min over plans P of sum P_ij |s_i - y_j|^2 / 2, half a squared Wasserstein distance
                solver "sinkhorn":  the debiased Sinkhorn divergence at temperature blur^2
    frechet     Fréchet distance of features of all segmentations of the batch, see `frechet.py`

Sources: Chatterjee et al., "PULASki: Learning inter-rater variability using statistical distances to improve
probabilistic segmentation" (2025); Feydy et al., "Interpolating between Optimal Transport and MMD using Sinkhorn
Divergences" (2019); Székely, Rizzo, "Energy statistics" (2013).

The paper's "Hausdorff" is the energy distance, halved, as it is here; no Hausdorff distance of sets is involved.
Differences from the published code: distances are sums of differences in float32, where that takes a dot product, in
half precision under autocast, which rounds to multiples of two and overflows above 65504 voxels; the transport problem
of a few points is solved exactly, because a dozen Sinkhorn steps at a temperature far below the costs end 1 to 4 % too
low; equal points have distance 0, not 1e-4; `normalize` divides by the number of voxels, so that blur means the same
for every patch size.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch.nn.modules.loss import _Loss

from medseg.losses._inputs import (
    check_activation,
    check_reduction,
    check_scores,
    in_full_precision,
    make_one_hot,
    reduce,
    refuse_stray_ids,
)
from medseg.losses._point_distances import distances, squared_distances
from medseg.losses._transport import exact_cost, schedule, sinkhorn_divergence
from medseg.losses.frechet import frechet_distance

_ALIASES = {"hausdorff_energy": "energy"}
_DISTANCES = ("energy", "sinkhorn", "frechet")
_SOLVERS = ("exact", "sinkhorn")


class SampleSetLoss(_Loss):
    """Statistical distance between N samples (B, N, C, spatial...) and M annotations (B, M, C, spatial...).

    In 2D and 3D; N and M may differ. Computed in float32 (float64 stays), with memory linear in voxels.

    Args:
        distance: "energy" (alias "hausdorff_energy"), "sinkhorn" or "frechet".
        include_background: whether channel 0 counts; a single channel always does.
        to_onehot_y: whether annotations hold class ids (B, M, 1, spatial...).
        sigmoid: apply a sigmoid to the samples.
        softmax: apply a softmax over their channels.
        other_act: apply this function instead.
        solver: of "sinkhorn": "exact" (best up to some tens of points) or "sinkhorn" (by the schedule of geomloss).
        normalize: divide squared distances by the number of coordinates.
        blur: of the solver "sinkhorn": differences of this length are smoothed over.
        scaling: of the solver "sinkhorn": ratio of neighbouring temperatures, in (0, 1).
        extra_steps: of the solver "sinkhorn": updates at the last temperature beyond the schedule; the published
            schedule is 0 and does not converge where distances are far above `blur`.
        feature_net: of "frechet": turns (n, C, spatial...) into features (n, d); by default the voxels themselves.
        reduction: "mean" over items, "sum", or "none" for shape (B,); "frechet" has one value for the batch.

    Raises:
        ValueError: an option is unknown or out of range.

    Example:
        >>> samples = torch.zeros(1, 2, 1, 4, 4)                 # two empty masks
        >>> annotations = torch.zeros(1, 2, 1, 4, 4)
        >>> annotations[:, 1, :, 0] = 1                          # one empty, one of four voxels
        >>> SampleSetLoss()(samples, annotations)                # mean(0, 2) - mean(0, 0, 2, 2) / 2
        tensor(0.5000)
        >>> SampleSetLoss("sinkhorn")(samples, annotations)      # mean(0, 4) / 2
        tensor(1.)
    """

    def __init__(
        self,
        distance: str = "energy",
        *,
        include_background: bool = True,
        to_onehot_y: bool = False,
        sigmoid: bool = False,
        softmax: bool = False,
        other_act: Callable[[torch.Tensor], torch.Tensor] | None = None,
        solver: str = "exact",
        normalize: bool = False,
        blur: float = 0.05,
        scaling: float = 0.5,
        extra_steps: int = 0,
        feature_net: Callable[[torch.Tensor], torch.Tensor] | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        self.distance = _ALIASES.get(distance, distance)
        if self.distance not in _DISTANCES:
            raise ValueError(f"distance must be one of {', '.join(_DISTANCES)}, got {distance!r}")
        if solver not in _SOLVERS:
            raise ValueError(f"solver must be one of {', '.join(_SOLVERS)}, got {solver!r}")
        if not (math.isfinite(blur) and blur > 0):
            raise ValueError(f"blur must be a finite number above 0, got {blur}")
        if not 0 < scaling < 1:
            raise ValueError(f"scaling must be in (0, 1), got {scaling}")
        if extra_steps < 0:
            raise ValueError(f"extra_steps must be at least 0, got {extra_steps}")
        check_activation(sigmoid=sigmoid, softmax=softmax, other_act=other_act)
        check_reduction(reduction)
        self.include_background, self.to_onehot_y = include_background, to_onehot_y
        self.sigmoid, self.softmax, self.other_act = sigmoid, softmax, other_act
        self.solver, self.normalize = solver, normalize
        self.blur, self.scaling, self.extra_steps = float(blur), float(scaling), extra_steps
        self.feature_net = feature_net

    def forward(
        self,
        samples: torch.Tensor,
        annotations: torch.Tensor,
        sample_weights: torch.Tensor | None = None,
        annotation_weights: torch.Tensor | None = None,
        annotation_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the distance.

        Args:
            samples: logits or probabilities (B, N, C, spatial...), any float type.
            annotations: one-hot or soft masks (B, M, C, spatial...), or class ids (B, M, 1, spatial...) with
                `to_onehot_y`.
            sample_weights: (B, N), not negative; scaled to sum 1 over N.
            annotation_weights: (B, M), not negative, such as the raters' reliability; scaled to sum 1 over M.
            annotation_mask: (B, M), true where an annotation exists; the others may hold anything.

        Returns:
            A scalar, or (B,) without reduction; float32, or float64 if the samples are. NaN where they hold NaN.

        Raises:
            ValueError: shapes or types do not fit, an item has no annotation or no weight, or annotations hold an id
                without a channel.
        """
        self._check(samples, annotations)
        device = samples.device
        mask = _as_mask(annotation_mask, annotations)
        with torch.autocast(device.type, enabled=False):
            s = self._activate(in_full_precision(samples))
            y = self._read(annotations.detach().as_subclass(torch.Tensor), s, mask)
            first = 0 if self.include_background or s.shape[2] == 1 else 1
            s, y = s[:, :, first:], y[:, :, first:]
            if self.distance == "frechet":
                if sample_weights is not None or annotation_weights is not None:
                    raise ValueError("sample_weights and annotation_weights have no effect on frechet; leave them out")
                values = self._frechet(s, y, mask)[None]
            else:
                a = _as_weights("sample_weights", sample_weights, torch.ones_like(mask[:, :1]).expand(s.shape[:2]), s)
                b = _as_weights("annotation_weights", annotation_weights, mask, s)
                values = self._compare(s.flatten(2), y.flatten(2), a, b)
        return reduce(values, self.reduction)

    def _check(self, samples: torch.Tensor, annotations: torch.Tensor) -> None:
        if samples.ndim not in (5, 6):
            raise ValueError(
                f"samples must have shape (B, N, C, H, W) or (B, N, C, H, W, D), got {tuple(samples.shape)}"
            )
        check_scores(samples.flatten(0, 1), softmax=self.softmax)
        channels = 1 if self.to_onehot_y else samples.shape[2]
        expected = (samples.shape[0], "M", channels, *samples.shape[3:])
        found = tuple(annotations.shape)
        if len(found) != len(expected) or found[:1] != expected[:1] or found[2:] != expected[2:]:
            hint = "; set to_onehot_y=True if these are class ids" if found[2:3] == (1,) and channels > 1 else ""
            raise ValueError(f"annotations must have shape {expected} for these samples, got {found}{hint}")
        if samples.shape[1] < 1 or annotations.shape[1] < 1:
            raise ValueError(
                f"samples and annotations must hold at least one segmentation of each image, got {samples.shape[1]} "
                f"and {annotations.shape[1]}"
            )
        if annotations.shape[1] == 1:
            warnings.warn(
                "there is one annotation of each image: all samples will become alike; a loss on single masks does "
                "the same at less cost",
                stacklevel=3,
            )

    def _activate(self, samples: torch.Tensor) -> torch.Tensor:
        if self.sigmoid:
            return torch.sigmoid(samples)
        if self.softmax:
            return torch.softmax(samples, dim=2)
        return samples if self.other_act is None else self.other_act(samples)

    def _read(self, annotations: torch.Tensor, s: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Masks (B, M, C, spatial...) in the samples' type, zeros where there is no annotation."""
        annotations = torch.where(mask.view(*mask.shape, *(1,) * (s.ndim - 2)), annotations, 0)
        channels = s.shape[2]
        if not self.to_onehot_y or channels == 1:
            return annotations.to(s)
        one_hot, stray = make_one_hot(annotations.flatten(0, 1), channels)
        refuse_stray_ids(stray.tolist(), channels)
        return one_hot.unflatten(0, mask.shape).to(s)

    def _compare(self, s: torch.Tensor, y: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Distances (B,) of points (B, N, V) and (B, M, V) with weights."""
        scale = 1 / s.shape[2] if self.normalize else 1.0
        xy = scale * squared_distances(s, y)
        if self.distance == "energy":
            within = [scale * squared_distances(points, points) for points in (s, y)]
            return _mean(xy, a, b) - _mean(within[0], a, a) / 2 - _mean(within[1], b, b) / 2
        if self.solver == "exact":
            return exact_cost(xy / 2, a, b)
        within = [scale * squared_distances(points, points.detach()) for points in (s, y)]
        diameter = math.sqrt(scale) * _diameter(s.detach(), y, b)
        temperatures = schedule(diameter, self.blur, self.scaling)
        temperatures += [self.blur**2] * self.extra_steps
        return sinkhorn_divergence((xy / 2, within[0] / 2, within[1] / 2), a, b, temperatures)

    def _frechet(self, s: torch.Tensor, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        features = []
        for images in (s.flatten(0, 1), y[mask]):
            found = images.flatten(1) if self.feature_net is None else self.feature_net(images)
            if found.ndim != 2 or len(found) != len(images):
                raise ValueError(
                    f"feature_net must turn {tuple(images.shape)} into features of shape ({len(images)}, d), got "
                    f"{tuple(found.shape)}; pool over space at its end"
                )
            features.append(in_full_precision(found))
        return frechet_distance(features[0], features[1])


def _mean(squared: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.einsum("bij,bi,bj->b", distances(squared), a, b)


def _diameter(s: torch.Tensor, y: torch.Tensor, b: torch.Tensor) -> float:
    """Diagonal of the box around all points of the batch that have a weight."""
    y = torch.where((b > 0)[..., None], y, y[b > 0][0])
    low = torch.minimum(s.amin((0, 1)), y.amin((0, 1)))
    high = torch.maximum(s.amax((0, 1)), y.amax((0, 1)))
    return float((high - low).square().sum().sqrt())


def _as_mask(mask: torch.Tensor | None, annotations: torch.Tensor) -> torch.Tensor:
    shape = tuple(annotations.shape[:2])
    if mask is None:
        return torch.ones(shape, dtype=torch.bool, device=annotations.device)
    if tuple(mask.shape) != shape:
        raise ValueError(f"annotation_mask must have shape {shape} for these annotations, got {tuple(mask.shape)}")
    mask = mask.as_subclass(torch.Tensor).to(annotations.device).bool()
    if not bool(mask.any(1).all()):
        lonely = int((~mask.any(1)).nonzero()[0])
        raise ValueError(f"annotation_mask leaves item {lonely} of the batch without an annotation; leave the item out")
    return mask


def _as_weights(name: str, weights: torch.Tensor | None, mask: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Weights that sum to 1 for every item and are 0 outside the mask."""
    if weights is None:
        return mask.to(like) / mask.sum(1, keepdim=True)
    if tuple(weights.shape) != tuple(mask.shape):
        raise ValueError(f"{name} must have shape {tuple(mask.shape)}, got {tuple(weights.shape)}")
    weights = torch.where(mask, weights.detach().to(like), 0)
    total = weights.sum(1, keepdim=True)
    if not bool((weights >= 0).all() & (total > 0).all() & total.isfinite().all()):
        raise ValueError(f"{name} must be finite, not negative and not all zero for any item, got {weights.tolist()}")
    return weights / total
