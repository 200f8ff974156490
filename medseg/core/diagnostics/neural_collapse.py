"""Neural collapse: how far a network has drawn the features of each class to one point, and these points apart.

With features h of C classes in D channels, class means mu_c and their mean mu_G, all classes of equal weight (voxels
are not balanced), Sigma_W the mean of the classes' covariances and Sigma_B the covariance of the class means:

    NC1              tr(Sigma_W pinv(Sigma_B))/C          0: each class is a point
    NC2 equinorm     sd of |mu_c - mu_G| over their mean  0: all as far from the middle
    NC2 equiangular  mean |cos + 1/(C - 1)| over pairs    0: as far apart as C directions can be
    NC3              | W/|W| - M/|M| |, Frobenius norms   0: the last layer's rows W are the centred means M; at most 2
    NC4              share of voxels whose nearest class mean is the last layer's choice

Along the levels of a decoder NC1 should fall; a level where it does not adds nothing. Voxels at the borders of classes
see both sides through the network's field of view: leave them out (`interior_voxels`).

Source: Papyan, Han, Donoho, "Prevalence of neural collapse during the terminal phase of deep learning training" (PNAS,
2020). Differs in weighing classes equally, in taking the mean over classes off W (which a softmax does not see), and in
updating means and covariances batch by batch, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

_COINCIDE = 1e-12  # of the means' size: what rounding leaves of equal means


@dataclass(frozen=True)
class CollapseReport:
    """Neural collapse of the classes that were seen; all measures are nan where their means coincide.

    Attributes:
        classes: class ids, ascending.
        counts: features of each.
        nc1: spread within classes against that between them.
        nc2_equinorm: variation of the lengths of the centred means.
        nc2_equiangular: deviation of their angles from those of a simplex.
        nc3: distance of the last layer from the centred means; nan without a last layer.
    """

    classes: tuple[int, ...]
    counts: tuple[int, ...]
    nc1: float
    nc2_equinorm: float
    nc2_equiangular: float
    nc3: float


class NeuralCollapse:
    """Means and covariances of the features of each class, batch by batch.

    Args:
        num_classes: number of classes, at least 2.
        per_class: most features of a class to take from each batch, drawn at random; None takes all.
        seed: of the draws.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> collapse = NeuralCollapse(2)
        >>> collapse.update(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0, 1]))
        >>> report = collapse.report(weight=torch.tensor([[2.0, -2.0], [-2.0, 2.0]]))
        >>> report.counts, report.nc1, round(report.nc3, 6)
        ((2, 1), 0.0, 0.0)
    """

    def __init__(self, num_classes: int, per_class: int | None = None, seed: int = 0) -> None:
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        if per_class is not None and per_class < 1:
            raise ValueError(f"per_class must be at least 1, or None for all, got {per_class}")
        self.num_classes, self.per_class = num_classes, per_class
        self.counts = [0] * num_classes
        self._random = torch.Generator().manual_seed(seed)
        self._means: list[torch.Tensor] = []
        self._scatters: list[torch.Tensor] = []

    @torch.no_grad()
    def update(self, features: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None = None) -> None:
        """Add a batch.

        Args:
            features: (N, D), or (B, D, spatial...) of any level of a network.
            labels: class ids (N,), or (B, 1, spatial...) on the same grid; ids that are no class are left out.
            mask: true where a feature counts, shape of `labels`; all by default.

        Raises:
            ValueError: shapes do not fit, or features are not finite where they count.
        """
        rows, ids = self._as_rows(features, labels, mask)
        if not self._means:
            self._means = [rows.new_zeros(rows.shape[1]) for _ in range(self.num_classes)]
            self._scatters = [rows.new_zeros((rows.shape[1],) * 2) for _ in range(self.num_classes)]
        for label in range(self.num_classes):
            found = (ids == label).nonzero()[:, 0]
            if self.per_class is not None and len(found) > self.per_class:
                found = found[torch.randperm(len(found), generator=self._random)[: self.per_class].to(found.device)]
            if len(found):
                self._merge(label, rows[found])

    def report(self, weight: torch.Tensor | None = None) -> CollapseReport:
        """Give the measures of all features so far.

        Args:
            weight: of the last layer, (classes, D) or (classes, D, 1...), for NC3; None leaves it out.

        Raises:
            ValueError: fewer than two classes were seen, or the weight does not fit.
        """
        seen, means = self._seen()
        last = None if weight is None else self._rows_of(weight)[seen]
        spread = torch.stack([self._scatters[c] / self.counts[c] for c in seen]).mean(0)
        centred = means - means.mean(0)
        between = centred.T @ centred / len(seen)
        lengths = centred.norm(dim=1)
        if lengths.max() <= _COINCIDE * means.norm(dim=1).max():  # a dead level, which nothing would call collapsed
            nan = float("nan")
            return CollapseReport(tuple(seen), tuple(self.counts[c] for c in seen), nan, nan, nan, nan)
        cosines = (centred @ centred.T) / (lengths[:, None] * lengths).clamp(min=torch.finfo(centred.dtype).tiny)
        pairs = cosines[tuple(torch.triu_indices(len(seen), len(seen), 1))]
        return CollapseReport(
            classes=tuple(seen),
            counts=tuple(self.counts[c] for c in seen),
            nc1=float((spread @ torch.linalg.pinv(between, rtol=1e-10, hermitian=True)).trace() / len(seen)),
            nc2_equinorm=float(lengths.std(correction=0) / lengths.mean()),
            nc2_equiangular=float((pairs + 1 / (len(seen) - 1)).abs().mean()),
            nc3=float("nan") if last is None else _distance(last, centred),
        )

    @torch.no_grad()
    def agreement(
        self, features: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
    ) -> float:
        """NC4: share of features whose nearest mean is the class that the last layer chooses, among the classes seen.

        Args:
            features: as for `update`.
            labels: which features count: those whose id is a class that was seen.
            weight: of the last layer, (classes, D) or (classes, D, 1...).
            bias: of the last layer, (classes,).

        Returns:
            The share, nan where no feature counts.

        Raises:
            ValueError: shapes do not fit, or fewer than two classes were seen.
        """
        seen, means = self._seen()
        rows, ids = self._as_rows(features, labels, None)
        if bias is not None and tuple(bias.shape) != (self.num_classes,):
            raise ValueError(f"bias must have shape {(self.num_classes,)}, got {tuple(bias.shape)}")
        rows = rows[torch.isin(ids, torch.tensor(seen, device=ids.device))]
        scores = rows @ self._rows_of(weight)[seen].T
        if bias is not None:
            scores = scores + bias.detach().to(scores)[seen]
        nearest = torch.cdist(rows, means).argmin(1)
        return float((nearest == scores.argmax(1)).double().mean())

    def _seen(self) -> tuple[list[int], torch.Tensor]:
        seen = [c for c, count in enumerate(self.counts) if count]
        if len(seen) < 2:
            raise ValueError(f"at least two classes must have been seen, got {seen}; call update with their features")
        return seen, torch.stack([self._means[c] for c in seen])

    def _rows_of(self, weight: torch.Tensor) -> torch.Tensor:
        shape = (self.num_classes, len(self._means[0]))
        if weight.shape[:2] != shape or weight[0, 0].numel() != 1:
            raise ValueError(f"weight must have shape {shape}, got {tuple(weight.shape)}")
        return weight.detach().flatten(1).to(self._means[0])

    def _as_rows(
        self, features: torch.Tensor, labels: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (n, D) in float64 and class ids (n,) of those that count."""
        if features.ndim < 2:
            raise ValueError(f"features must be (N, D) or (B, D, spatial...), got shape {tuple(features.shape)}")
        if self._means and features.shape[1] != len(self._means[0]):
            raise ValueError(f"features must have {len(self._means[0])} channels, as before, got {features.shape[1]}")
        expected = (features.shape[0], 1, *features.shape[2:]) if features.ndim > 2 else (features.shape[0],)
        for name, value in (("labels", labels), ("mask", mask)):
            if value is not None and tuple(value.shape) != expected:
                raise ValueError(f"{name} must have shape {expected} for these features, got {tuple(value.shape)}")
        rows = features.detach().as_subclass(torch.Tensor).movedim(1, -1).reshape(-1, features.shape[1])
        ids = labels.detach().as_subclass(torch.Tensor).flatten()
        counts = (ids >= 0) & (ids < self.num_classes)
        if mask is not None:
            counts &= mask.detach().as_subclass(torch.Tensor).flatten().bool()
        rows, ids = rows[counts], ids[counts]
        if not torch.isfinite(rows).all():
            raise ValueError("features must be finite; find out where the network made NaN or infinity")
        return rows.double(), ids

    def _merge(self, label: int, rows: torch.Tensor) -> None:
        """Add features of a class without ever subtracting large numbers."""
        before, new = self.counts[label], len(rows)
        mean = rows.mean(0)
        apart, centred = mean - self._means[label], rows - mean
        self.counts[label] = before + new
        self._scatters[label] += centred.T @ centred + torch.outer(apart, apart) * (before * new / (before + new))
        self._means[label] = self._means[label] + apart * (new / (before + new))


def interior_voxels(labels: torch.Tensor, width: int = 1) -> torch.Tensor:
    """Voxels whose neighbours all have the same label.

    Args:
        labels: class ids (B, 1, H, W) or (B, 1, H, W, D).
        width: how many voxels away from a border, at least 1; diagonal neighbours count.

    Returns:
        Booleans of the same shape.

    Example:
        >>> interior_voxels(torch.tensor([[[[0, 0, 0, 1]] * 3]])).int()[0, 0, 1].tolist()
        [1, 1, 0, 0]
    """
    if labels.ndim not in (4, 5) or width < 1:
        raise ValueError(f"labels must be (B, 1, H, W[, D]) and width at least 1, got {tuple(labels.shape)}, {width}")
    ids = labels.detach().as_subclass(torch.Tensor).float()
    pool = functional.max_pool2d if ids.ndim == 4 else functional.max_pool3d
    size = 2 * width + 1
    return pool(ids, size, 1, width) == -pool(-ids, size, 1, width)


def _distance(weight: torch.Tensor, means: torch.Tensor) -> float:
    weight = weight - weight.mean(0)
    return float((weight / weight.norm() - means / means.norm()).norm())
