"""The battery of networks tells a good network from a bad one, for every property."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.batteries import networks as battery


class GoodNetwork(nn.Module):
    """Two convolutions with an instance norm, and a second output at half the size while training."""

    def __init__(self, spatial_dims=3, in_channels=1, out_channels=2, width=4):
        super().__init__()
        convolution = {2: nn.Conv2d, 3: nn.Conv3d}[spatial_dims]
        self.first = convolution(in_channels, width, 3, padding=1)
        self.norm = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}[spatial_dims](width, affine=True)
        self.last = convolution(width, out_channels, 1)

    def forward(self, image):
        output = self.last(self.norm(self.first(image)).relu())
        return [output, output[:, :, ::2, ::2]] if self.training else output


class LosesBorders(GoodNetwork):
    def __init__(self, spatial_dims=3, in_channels=1, out_channels=2, width=4):
        super().__init__(spatial_dims, in_channels, out_channels, width)
        self.first.padding = (0,) * spatial_dims


class HasADeadBranch(GoodNetwork):
    def __init__(self, spatial_dims=3, in_channels=1, out_channels=2, width=4):
        super().__init__(spatial_dims, in_channels, out_channels, width)
        self.forgotten = nn.Linear(width, width)


class BranchesOnValues(GoodNetwork):
    def forward(self, image):
        return super().forward(image if image.mean() > 0 else -image)


class MixesTheBatch(GoodNetwork):
    def forward(self, image):
        return super().forward(image - image.mean())


class KeepsAHiddenWeight(GoodNetwork):
    def __init__(self, spatial_dims=3, in_channels=1, out_channels=2, width=4):
        super().__init__(spatial_dims, in_channels, out_channels, width)
        self.hidden = float(torch.rand(()))

    def forward(self, image):
        return super().forward(image * (1 + self.hidden))


class SetsASeed(GoodNetwork):
    def __init__(self, spatial_dims=3, in_channels=1, out_channels=2, width=4):
        torch.manual_seed(0)
        super().__init__(spatial_dims, in_channels, out_channels, width)


class SwallowsTypos(GoodNetwork):
    def __init__(self, spatial_dims=3, in_channels=1, out_channels=2, width=4, **kwargs):
        super().__init__(spatial_dims, in_channels, out_channels, width)


BROKEN = {
    battery.keeps_the_shape_in_2d_and_3d: LosesBorders,
    battery.trains_every_parameter: HasADeadBranch,
    battery.can_be_exported: BranchesOnValues,
    battery.treats_samples_alone: MixesTheBatch,
    battery.is_restored_from_its_weights: KeepsAHiddenWeight,
    battery.sets_no_seed: SetsASeed,
    battery.is_built_from_json: SwallowsTypos,
}
# Here the exporter's own error speaks, not the battery's assertion.
RAISES_ITSELF = {battery.can_be_exported: RuntimeError}


def test_every_property_has_a_network_that_breaks_it():
    assert set(BROKEN) == set(battery.PROPERTIES)


@pytest.mark.parametrize("check", battery.PROPERTIES, ids=lambda p: p.__name__)
def test_a_good_network_passes(check):
    check(GoodNetwork, {"width": 6})


@pytest.mark.parametrize("check", battery.PROPERTIES, ids=lambda p: p.__name__)
def test_a_network_broken_in_one_way_is_caught(check):
    with pytest.raises(RAISES_ITSELF.get(check, AssertionError)):
        check(BROKEN[check], {"width": 6})
