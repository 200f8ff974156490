"""Whether the probabilities of a label map mean what they say: in all voxels, in the foreground, or near borders.

For the voxels of a region, with p_c the probability of class c, y the label, and c* the best class of a voxel,

    ece             sum over bins of (share of voxels in the bin) |mean p_c* - share of voxels with y = c*|
    classwise_ece   the same for p_c and y = c, mean over classes
    brier           mean over voxels of the sum over classes of (p_c - [y = c])^2
    nll             mean over voxels of -log p_y

Bins of equal width are (low, high], the first one with its 0. Most voxels of a volume are easy background, which makes
all four small whatever the network says of the others: look at the regions. Every case gives its own value; average
them and draw cases, not voxels, for an interval (`medseg.engines.case_statistics`).

| region | voxels | what perfect probabilities reach |
|---|---|---|
| all | all | ece 0 |
| predicted | best class is not 0 | ece 0: what the network says chooses them |
| foreground | best class or label is not 0 | more than 0: wrong background is in, right background is not |
| boundary | another label within `width` voxels | nearly 0: labels choose them, but on both sides of a border |

`compute_calibration_error` and `compute_brier_score` judge channels one by one against any number of experts.

Sources: Naeini, Cooper, Hauskrecht, "Obtaining Well Calibrated Probabilities Using Bayesian Binning" (2015); Guo,
Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks" (2017); Nixon, Dusenberry, Zhang, Jerfel, Tran,
"Measuring Calibration in Deep Learning" (2019), for the class-wise error.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from medseg.core.calibration import near_boundary

Region = Literal["all", "predicted", "foreground", "boundary"]
MEASURES = ("ece", "classwise_ece", "brier", "nll")


def compute_label_calibration(
    probabilities: torch.Tensor,
    labels: torch.Tensor,
    *,
    region: Region = "all",
    width: int = 2,
    bins: int = 15,
) -> dict[str, torch.Tensor]:
    """Measure the calibration of every case.

    Args:
        probabilities: (B, C, spatial...) in 2D or 3D, in [0, 1], C of 2 or more.
        labels: class ids, (B, 1, spatial...), integers.
        region: voxels that count: `"all"`, `"predicted"`, `"foreground"` or `"boundary"`, see the table above.
        width: of the boundary, in voxels, see `near_boundary`.
        bins: bins of equal width.

    Returns:
        `ece`, `classwise_ece`, `brier` and `nll`, each (B,), float64; 0 is best, nan where a case has no such voxel.

    Raises:
        ValueError: shapes or values do not fit, or an option is out of range.

    Example:
        >>> p = torch.tensor([0.8, 0.2]).reshape(1, 2, 1, 1).expand(1, 2, 2, 5)
        >>> labels = torch.tensor([0] * 9 + [1]).reshape(1, 1, 2, 5)        # right in 9 of 10, not in 8
        >>> found = compute_label_calibration(p, labels)
        >>> round(found["ece"].item(), 3), round(found["brier"].item(), 3)
        (0.1, 0.2)
    """
    _check(probabilities, labels, region, bins)
    inside = _region(probabilities, labels, region, width)
    rows = [_measure(p, y, bins) for p, y in _voxels(probabilities, labels, inside)]
    return {name: torch.stack([row[name] for row in rows]) for name in MEASURES}


def _check(probabilities: torch.Tensor, labels: torch.Tensor, region: str, bins: int) -> None:
    if probabilities.ndim not in (4, 5) or probabilities.shape[1] < 2:
        raise ValueError(
            f"probabilities must be (B, C, spatial...) in 2D or 3D, C of 2 or more, got {tuple(probabilities.shape)}"
        )
    if tuple(labels.shape) != (len(probabilities), 1, *probabilities.shape[2:]) or labels.is_floating_point():
        raise ValueError(
            f"labels must be integers of shape {(len(probabilities), 1, *probabilities.shape[2:])}, got "
            f"{tuple(labels.shape)} of {labels.dtype}"
        )
    if not (probabilities.min() >= 0 and probabilities.max() <= 1 + 1e-3):
        raise ValueError("probabilities must lie in [0, 1] without NaN; take the softmax of logits first")
    if int(labels.min()) < 0 or int(labels.max()) >= probabilities.shape[1]:
        raise ValueError(f"labels must lie in 0 to {probabilities.shape[1] - 1}, got up to {int(labels.max())}")
    if region not in get_args(Region):
        raise ValueError(f"region must be one of {', '.join(get_args(Region))}, got {region!r}")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")


def _region(probabilities: torch.Tensor, labels: torch.Tensor, region: Region, width: int) -> torch.Tensor:
    """Voxels that count, (B, 1, spatial...)."""
    if region in ("predicted", "foreground"):
        predicted = probabilities.argmax(1, keepdim=True) > 0
        return predicted if region == "predicted" else predicted | (labels > 0)
    return near_boundary(labels, width) if region == "boundary" else torch.ones_like(labels, dtype=torch.bool)


def _voxels(
    probabilities: torch.Tensor, labels: torch.Tensor, inside: torch.Tensor
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Probabilities (voxels, C) in float64 and labels (voxels,) of each case."""
    return [
        (p[:, keep[0]].as_subclass(torch.Tensor).T.double(), y[keep].as_subclass(torch.Tensor).long())
        for p, y, keep in zip(probabilities, labels, inside, strict=True)
    ]


def _measure(p: torch.Tensor, y: torch.Tensor, bins: int) -> dict[str, torch.Tensor]:
    if not len(y):
        return {name: torch.full((), torch.nan, dtype=torch.float64, device=p.device) for name in MEASURES}
    confidence, best = p.max(1)
    truth = torch.nn.functional.one_hot(y, p.shape[1]).to(p)
    of_class = [_gap(p[:, c], truth[:, c], bins) for c in range(p.shape[1])]
    return {
        "ece": _gap(confidence, (best == y).to(p), bins),
        "classwise_ece": torch.stack(of_class).mean(),
        "brier": (p - truth).square().sum(1).mean(),
        "nll": -p.gather(1, y[:, None]).clamp_min(torch.finfo(torch.float32).tiny).log().mean(),
    }


def _gap(p: torch.Tensor, y: torch.Tensor, bins: int) -> torch.Tensor:
    """Sum over bins of the difference of the sums, by the number of voxels."""
    index = ((p * bins).ceil().long() - 1).clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=p.dtype, device=p.device).index_add_(0, index, p - y)
    return gaps.abs().sum() / len(p)
