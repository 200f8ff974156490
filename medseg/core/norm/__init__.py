"""Normalisation for 2D and 3D networks: layers, where they stand in a network, and how they are trained and adapted.

Importing this package adds its layers to MONAI's `Norm` factory: UNet, BasicUNet, DynUNet, SegResNet, UNETR and
SwinUNETR then take `norm=("power", {...})` (or `norm_name=`). A bundle says `"imports": ["$import medseg.core.norm"]`.
What the factory does not reach, such as the norms of tokens, is changed by `convert_norm`.
"""

from medseg.core.norm.adaptive_batch import AdaBatchNorm, adaptive_regularization, task_ids
from medseg.core.norm.affine import Affine
from medseg.core.norm.batch_channel import BatchChannelNorm
from medseg.core.norm.batch_statistics import adapt_batch_stats
from medseg.core.norm.convert import convert_norm, is_norm
from medseg.core.norm.evonorm import EvoNormB0, EvoNormS0
from medseg.core.norm.fold import fold_norm, fold_norms
from medseg.core.norm.fuse_act import fuse_norm_act
from medseg.core.norm.ghost_batch import GhostBatchNorm
from medseg.core.norm.l1 import L1BatchNorm, L1GroupNorm, L1InstanceNorm
from medseg.core.norm.layer import LayerNormChannel
from medseg.core.norm.multi_sample_dropout import MultiSampleDropoutHead, multi_sample_loss
from medseg.core.norm.norm_act import GroupNormAct, InstanceNormAct
from medseg.core.norm.only_norm import freeze_except_norm, norm_parameters, norm_state_dict, small_scale_fraction
from medseg.core.norm.placement import place_norms
from medseg.core.norm.power import PowerNorm
from medseg.core.norm.preln import ZeroMeanOutput, convert_preln, find_preln_plan
from medseg.core.norm.region import RegionNorm, region_mask
from medseg.core.norm.region_learned import RegionNormLearned
from medseg.core.norm.register import register_norms
from medseg.core.norm.removal import FrozenScaleLayerNorm, NormRemovalSchedule, fold_frozen_norms, uniform_std_loss
from medseg.core.norm.residual_scale import scale_residuals
from medseg.core.norm.rms import CRMSNorm, RMSNorm
from medseg.core.norm.self_normalizing import activation_stats, make_self_normalizing
from medseg.core.norm.soft_attention import SoftmaxFreeAttention, soft_attention
from medseg.core.norm.stability import StabilityProbe, add_qk_norm, lr_sensitivity, z_loss
from medseg.core.norm.tanh_gate import MixtureOfDepthsBlock, TanhGate
from medseg.core.norm.unified import UnifiedNorm
from medseg.core.norm.weight_compander import WeightCompander, compand_weights
from medseg.core.norm.weight_standardization import WeightStandardization, fuse_weights, standardize_weights

register_norms()

__all__ = [
    "AdaBatchNorm",
    "Affine",
    "BatchChannelNorm",
    "CRMSNorm",
    "EvoNormB0",
    "EvoNormS0",
    "FrozenScaleLayerNorm",
    "GhostBatchNorm",
    "GroupNormAct",
    "InstanceNormAct",
    "L1BatchNorm",
    "L1GroupNorm",
    "L1InstanceNorm",
    "LayerNormChannel",
    "MixtureOfDepthsBlock",
    "MultiSampleDropoutHead",
    "NormRemovalSchedule",
    "PowerNorm",
    "RMSNorm",
    "RegionNorm",
    "RegionNormLearned",
    "SoftmaxFreeAttention",
    "StabilityProbe",
    "TanhGate",
    "UnifiedNorm",
    "WeightCompander",
    "WeightStandardization",
    "ZeroMeanOutput",
    "activation_stats",
    "adapt_batch_stats",
    "adaptive_regularization",
    "add_qk_norm",
    "compand_weights",
    "convert_norm",
    "convert_preln",
    "find_preln_plan",
    "fold_frozen_norms",
    "fold_norm",
    "fold_norms",
    "freeze_except_norm",
    "fuse_norm_act",
    "fuse_weights",
    "is_norm",
    "lr_sensitivity",
    "make_self_normalizing",
    "multi_sample_loss",
    "norm_parameters",
    "norm_state_dict",
    "place_norms",
    "region_mask",
    "register_norms",
    "scale_residuals",
    "small_scale_fraction",
    "soft_attention",
    "standardize_weights",
    "task_ids",
    "uniform_std_loss",
    "z_loss",
]
