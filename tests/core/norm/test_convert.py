"""Exchanging the norms of a network whose blocks know a layer by two names."""

from __future__ import annotations

from torch import nn

from medseg.core.norm import convert_norm


def test_a_layer_with_two_names_stays_one():
    block = nn.Module()
    block.norm = nn.InstanceNorm3d(4, affine=True)
    block.steps = nn.Sequential(nn.Conv3d(1, 4, 1), block.norm)
    assert convert_norm(block, "power") == 1
    assert block.steps[1] is block.norm
