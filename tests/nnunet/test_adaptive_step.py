"""AdaWAC's step on patches, with a network that has nnU-Net's parts."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.nnunet.adaptive_step import AdaptiveStep, _mirror_matrices


class _Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 6, 3, stride=2, padding=1)])


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = _Encoder(), nn.Conv3d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for stage in self.encoder.stages:
            x = torch.tanh(stage(x))
        return nn.functional.interpolate(self.head(x), scale_factor=2)


def make_step(seed: int = 0) -> AdaptiveStep:
    torch.manual_seed(3)
    network = _Network()
    return AdaptiveStep(network, torch.optim.SGD(network.parameters(), lr=0.5), seed=seed)


def make_patch() -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.rand(2, 1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    return image, (image > 0.5).short()


def test_steps_lower_the_loss_and_leave_no_trace_in_the_names_of_the_weights():
    step, (image, label) = make_step(), make_patch()
    names = set(step.tap.model.state_dict())
    losses = [float(step(image, label)) for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5])
    assert set(step.tap.model.state_dict()) == names
    assert not step.loss.last["weights"].requires_grad


def test_equal_seeds_give_equal_weights_and_others_do_not():
    image, label = make_patch()
    first, again, other = (make_step(seed) for seed in (0, 0, 1))
    for step in (first, again, other):
        for _ in range(3):
            step(image, label)
    weights = [step.tap.model.head.weight for step in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("axes", [2, 3])
def test_the_matrix_of_a_mirrored_axis_mirrors_that_axis(axes):
    image = torch.rand(1, 1, *(4, 5, 6)[:axes])
    for axis in range(axes):
        _, mirrored = _mirror_matrices(1, axes, axis, image.device)
        grid = nn.functional.affine_grid(mirrored[:, :-1], list(image.shape), align_corners=False)
        found = nn.functional.grid_sample(image, grid, align_corners=False)
        torch.testing.assert_close(found, image.flip(axis + 2), atol=1e-5, rtol=0)


def test_a_network_without_stages_is_refused():
    network = nn.Conv3d(1, 2, 1)
    with pytest.raises(ValueError, match=r"Conv3d has no encoder\.stages"):
        AdaptiveStep(network, torch.optim.SGD(network.parameters(), lr=0.1))
