"""Merging networks of one architecture, such as those of several sites: put their channels in the same order first."""

from medseg.core.merge.channel_groups import ChannelGroup, find_channel_groups, permute_channels
from medseg.core.merge.weight_matching import interpolate_weights, loss_barrier, match_weights

__all__ = [
    "ChannelGroup",
    "find_channel_groups",
    "interpolate_weights",
    "loss_barrier",
    "match_weights",
    "permute_channels",
]
