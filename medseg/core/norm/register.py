"""Names of the layers of this package in MONAI's factory, so that networks take them as `norm=("power", {...})`.

MONAI hands a layer its number of channels where the class has a parameter called `num_features`; all of these have.
Registering replaces nothing of MONAI: names are added to `monai.networks.layers.Norm`, once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from monai.networks.layers import Norm

from medseg.core.norm.adaptive_batch import AdaBatchNorm
from medseg.core.norm.affine import Affine
from medseg.core.norm.batch_channel import BatchChannelNorm
from medseg.core.norm.evonorm import EvoNormB0, EvoNormS0
from medseg.core.norm.feature_norm import FeatureNorm
from medseg.core.norm.ghost_batch import GhostBatchNorm
from medseg.core.norm.l1 import L1BatchNorm, L1GroupNorm, L1InstanceNorm
from medseg.core.norm.layer import LayerNormChannel
from medseg.core.norm.norm_act import GroupNormAct, InstanceNormAct
from medseg.core.norm.power import PowerNorm
from medseg.core.norm.region import RegionNorm
from medseg.core.norm.region_learned import RegionNormLearned
from medseg.core.norm.rms import CRMSNorm, RMSNorm
from medseg.core.norm.unified import UnifiedNorm

NORMS: dict[str, type[FeatureNorm]] = {
    "adab2n": AdaBatchNorm,
    "affine": Affine,
    "bcn": BatchChannelNorm,
    "crms": CRMSNorm,
    "evo_b0": EvoNormB0,
    "evo_s0": EvoNormS0,
    "ghost_batch": GhostBatchNorm,
    "group_act": GroupNormAct,
    "instance_act": InstanceNormAct,
    "l1_batch": L1BatchNorm,
    "l1_group": L1GroupNorm,
    "l1_instance": L1InstanceNorm,
    "layer_channel": LayerNormChannel,
    "power": PowerNorm,
    "region": RegionNorm,
    "region_learned": RegionNormLearned,
    "rms": RMSNorm,
    "unified": UnifiedNorm,
}


def register_norms() -> list[str]:
    """Add the layers of this package to MONAI's `Norm` factory; done by importing the package.

    Returns:
        The names.

    Example:
        >>> "power" in register_norms()
        True
    """
    for name, layer in NORMS.items():
        if name.upper() not in Norm.components:
            Norm.add_factory_callable(name, partial(_for_dimension, layer), (layer.__doc__ or name).splitlines()[0])
    return list(NORMS)


def _for_dimension(layer: type[FeatureNorm], spatial_dims: int | None = None) -> Callable[..., Any]:
    if layer is RegionNormLearned and spatial_dims is not None:
        return partial(layer, spatial_dims=spatial_dims)
    return layer
