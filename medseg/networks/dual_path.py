"""Dual-path network for prostate zones: each branch segments zones that touch, and some zones belong to both.

A branch is an anisotropic U-Net with a softmax over its zones and a channel `rest` for everything else. With p_bz the
probability of zone z in branch b,

    s_z = mean over the branches that own z of p_bz,    t = sum of s_z
    fused probabilities = [max(0, 1 - t), s_1, s_2, ...] / max(1, t)          background first; they sum to 1

An auxiliary head (1 x 1 x 1) reads the last features of each branch: `sdf` the truncated signed distance of each owned
zone (tanh), `boundary` the contour of each (logits), `gland` the whole prostate (a logit), `reconstruction` the image.

Source: Das, Ghosh, Stober, "PI-RADS v2 Compliant Automated Segmentation of Prostate Zones Using co-training Motivated
Multi-task Dual-Path CNN" (2023). Its abstract says that there are two branches for sets of connected zones, that both
predict at least one class, and that there is an auxiliary task. Which zones go where, what is shared and which task it
is, are our guesses, no code being published: all are arguments, and the defaults are not "the paper's".

The transition zone touches the other three, so that with it in both branches each holds a connected set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from medseg.networks.anisotropic_unet import BATCH_NORM, FEATURES, Decoder, Plan, Stem, Trunk, initialise

ZONES = ("PZ", "TZ", "DPU", "AFS")
BRANCHES = (("PZ", "TZ"), ("TZ", "DPU", "AFS"))
AUXILIARY = ("sdf", "boundary", "gland", "reconstruction")


class DualPathOutput(NamedTuple):
    """What a training step needs of a dual-path network.

    Attributes:
        zones: fused probabilities (B, 1 + zones, spatial...), background first.
        branch_logits: logits of each branch, (B, its zones + 1, spatial...), `rest` last.
        aux: output of each branch's auxiliary head; empty without one.
    """

    zones: torch.Tensor
    branch_logits: list[torch.Tensor]
    aux: list[torch.Tensor]


class DualPathZoneNet(nn.Module):
    """Two or more U-Nets, each for a group of zones, fused into one map without gaps or overlaps.

    In evaluation it gives the fused probabilities alone, one tensor, as sliding windows and bundles expect; in training
    a `DualPathOutput`. Branches are initialised one after the other and so differ; branches with equal groups and equal
    weights would never disagree.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: one more than there are zones; None takes that number.
        zones: names of the zones, in the order of labels 1, 2, ...
        branches: names of the zones of each branch, two or more groups that are linked through shared zones.
        share: "none" (whole networks), "stem" (the finest level is one) or "encoder" (all but decoders and heads).
        features: as in `AnisotropicUNet`, with this and the following.
        strides: pooling from each level to the next; by default for (B, C, Z, Y, X).
        dropout: probability at the bottom and in each level of the decoders.
        norm: MONAI's name of the norm, with its arguments.
        aux: "sdf", "boundary", "gland", "reconstruction", or None.
        up_mode: "legacy" (upsampling kernels of 2 along every axis) or "stride" (as large as their stride).

    Raises:
        ValueError: an option is out of range, or the groups do not fit the zones or each other.

    Example:
        >>> network = DualPathZoneNet(features=[2, 2, 2, 2, 2])
        >>> output = network(torch.zeros(2, 1, 4, 16, 16))
        >>> output.zones.shape, [logits.shape[1] for logits in output.branch_logits]
        (torch.Size([2, 5, 4, 16, 16]), [3, 4])
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int | None = None,
        *,
        zones: Sequence[str] = ZONES,
        branches: Sequence[Sequence[str]] = BRANCHES,
        share: str = "none",
        features: Sequence[int] = FEATURES,
        strides: Sequence[Sequence[int]] | None = None,
        dropout: float = 0.5,
        norm: str | Sequence = BATCH_NORM,
        aux: str | None = "sdf",
        up_mode: str = "legacy",
    ) -> None:
        super().__init__()
        self.zones, self.branches = tuple(zones), check_branches(branches, zones)
        if out_channels not in (None, len(self.zones) + 1):
            raise ValueError(f"out_channels must be {len(self.zones) + 1} for zones {self.zones}, got {out_channels}")
        if share not in ("none", "stem", "encoder"):
            raise ValueError(f"share must be none, stem or encoder, got {share!r}")
        if up_mode not in ("legacy", "stride"):
            raise ValueError(f"up_mode must be legacy or stride, got {up_mode!r}")
        check_aux(aux)
        self.in_channels, self.out_channels, self.aux = in_channels, len(self.zones) + 1, aux
        self.plan = plan = Plan(spatial_dims, features, strides, dropout, norm, up_mode == "legacy", False)
        count, width = len(self.branches), plan.features[1]
        self.stems = nn.ModuleList(Stem(plan, in_channels) for _ in range(count if share == "none" else 1))
        self.trunks = nn.ModuleList(Trunk(plan) for _ in range(1 if share == "encoder" else count))
        self.decoders = nn.ModuleList(Decoder(plan) for _ in range(count))
        self.heads = nn.ModuleList(plan.conv(width, len(group) + 1, 1) for group in self.branches)
        widths = [] if aux is None else [_aux_channels(aux, len(group), in_channels) for group in self.branches]
        self.aux_heads = nn.ModuleList(plan.conv(width, channels, 1) for channels in widths)
        initialise(self)

    def forward(self, image: torch.Tensor, return_dict: bool | None = None) -> torch.Tensor | DualPathOutput:
        """Run the network.

        Args:
            image: (B, in_channels, spatial...), sides as `AnisotropicUNet` takes them.
            return_dict: give all parts, as a `DualPathOutput`; by default in training only.

        Returns:
            Fused probabilities (B, 1 + zones, spatial...), or all parts.

        Raises:
            ValueError: the shape does not fit.
        """
        self.plan.check_image(image, self.in_channels, self.training)
        features = self._features(image)
        logits = [head(found) for head, found in zip(self.heads, features, strict=True)]
        zones = fuse_zones(logits, self.branches, self.zones)
        if not (self.training if return_dict is None else return_dict):
            return zones
        # Without auxiliary heads there is nothing to pair with the features.
        aux = [head(found) for head, found in zip(self.aux_heads, features, strict=False)]
        return DualPathOutput(zones, logits, [torch.tanh(a) for a in aux] if self.aux == "sdf" else aux)

    def has_identical_branches(self) -> bool:
        """Whether two branches own the same zones with the same weights: they then agree by construction."""
        parts = [self.stems, self.trunks, self.decoders, self.heads]
        seen = []
        for number, group in enumerate(self.branches):
            own = [part[number if len(part) > 1 else 0] for part in parts]
            weights = torch.cat([p.detach().flatten() for module in own for p in module.parameters()])
            if any(group == other and torch.equal(weights, same) for other, same in seen):
                return True
            seen.append((group, weights))
        return False

    def _features(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Last features of every branch; what branches share is computed once."""
        stems = [stem(image) for stem in self.stems] * (len(self.branches) if len(self.stems) == 1 else 1)
        if len(self.trunks) == 1:
            trunks = [self.trunks[0](stems[0])] * len(self.branches)
        else:
            trunks = [trunk(stem) for trunk, stem in zip(self.trunks, stems, strict=True)]
        together = zip(self.decoders, stems, trunks, strict=True)
        return [decoder([stem, *trunk]) for decoder, stem, trunk in together]


def fuse_zones(
    branch_logits: Sequence[torch.Tensor], branches: Sequence[Sequence[str]] = BRANCHES, zones: Sequence[str] = ZONES
) -> torch.Tensor:
    """Fuse the branches' logits into probabilities of background and zones, see the module's formula.

    Args:
        branch_logits: logits of each branch, (B, its zones + 1, spatial...), `rest` last.
        branches: names of the zones of each branch, in the order of its channels.
        zones: names of all zones, in the order of the result.

    Returns:
        (B, 1 + zones, spatial...), background first; at least float32, summing to 1.

    Raises:
        ValueError: a branch has another number of channels than zones and rest.

    Example:
        >>> sure = torch.tensor([20.0, -20.0, -20.0]).view(1, 3, 1)       # PZ
        >>> rest = torch.tensor([-20.0, -20.0, -20.0, 20.0]).view(1, 4, 1)
        >>> fuse_zones([sure, rest]).flatten().round()                    # background, PZ, TZ, DPU, AFS
        tensor([0., 1., 0., 0., 0.])
    """
    scores = zone_scores([branch_probabilities(logits) for logits in branch_logits], branches, zones)
    total = scores.sum(dim=1, keepdim=True)
    return torch.cat([(1 - total).clamp_min(0), scores], dim=1) / total.clamp_min(1)


def branch_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Softmax over the channels of a branch, in float32 at least."""
    return torch.softmax(logits if logits.dtype == torch.float64 else logits.float(), dim=1)


def zone_scores(
    probabilities: Sequence[torch.Tensor], branches: Sequence[Sequence[str]], zones: Sequence[str]
) -> torch.Tensor:
    """Mean probability of every zone over the branches that own it, (B, zones, spatial...); sums may exceed 1."""
    for p, group in zip(probabilities, branches, strict=True):
        if p.shape[1] != len(group) + 1:
            raise ValueError(
                f"branch_logits of the branch {tuple(group)} must have {len(group) + 1} channels (its zones and rest), "
                f"got shape {tuple(p.shape)}"
            )
    owned = [
        [p[:, tuple(group).index(zone)] for p, group in zip(probabilities, branches, strict=True) if zone in group]
        for zone in zones
    ]
    return torch.stack([torch.stack(maps).mean(dim=0) for maps in owned], dim=1)


def check_branches(branches: Sequence[Sequence[str]], zones: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Check that groups cover the zones and are all linked through shared zones; give them as tuples.

    Raises:
        ValueError: they do not.
    """
    groups = tuple(tuple(group) for group in branches)
    if len(zones) < 1 or len(set(zones)) < len(zones):
        raise ValueError(f"zones must be different names, at least one, got {list(zones)}")
    if len(groups) < 2 or any(not group or len(set(group)) < len(group) for group in groups):
        raise ValueError(f"branches must be two or more groups of different zones, got {groups}")
    named = set().union(*groups)
    if named != set(zones):
        raise ValueError(
            f"branches must together hold exactly the zones {tuple(zones)}; missing: {sorted(set(zones) - named)}, "
            f"unknown: {sorted(named - set(zones))}"
        )
    linked, reached = set(groups[0]), 0
    while len(linked) != reached:
        reached = len(linked)
        linked = linked.union(*(group for group in groups if linked & set(group)))
    if any(not linked & set(group) for group in groups):
        raise ValueError(f"branches share no zone: the co-training loss would be empty; link the groups {groups}")
    return groups


def check_aux(aux: str | None) -> None:
    """Refuse an auxiliary task that is not known."""
    if aux is not None and aux not in AUXILIARY:
        raise ValueError(f"aux must be one of {', '.join(AUXILIARY)}, or None, got {aux!r}")


def _aux_channels(aux: str, zones: int, in_channels: int) -> int:
    return {"sdf": zones, "boundary": zones, "gland": 1, "reconstruction": in_channels}[aux]
