"""Tests of `medseg.engines.normalisation`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medseg.engines import configure_norm
from medseg.engines.normalisation import choose_parameters


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.GroupNorm(1, 2), nn.InstanceNorm2d(2, affine=True))


def shifted(count: int = 8) -> torch.Tensor:
    return 5 + 3 * torch.randn(count, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def test_target_moves_the_statistics_and_source_keeps_them(model):
    before = model[1].running_mean.clone()
    for mode, moves in (("source", False), ("target", True)):
        model.train()
        assert configure_norm(model, mode) == 1
        model(shifted())
        assert torch.equal(model[1].running_mean, before) is not moves
    model.train()
    configure_norm(model, "source")
    assert torch.equal(model(shifted()), model.eval()(shifted()))


def test_batch_statistics_are_used_in_evaluation_and_leave_the_state_dict():
    layer = nn.BatchNorm3d(1)
    configure_norm(layer, "batch")
    configure_norm(layer, "batch")  # again, as after train()
    out = layer.eval()(shifted().reshape(2, 1, 4, 6, 6))
    assert out.mean().abs() < 1e-5
    assert sorted(layer.state_dict()) == ["bias", "weight"]


def test_a_network_without_batch_norm_is_told_so():
    with pytest.warns(UserWarning, match="has no batch normalisation"):
        assert configure_norm(nn.Sequential(nn.InstanceNorm2d(2)), "target") == 0
    with pytest.raises(ValueError, match="mode must be one of target, source, batch, got 'both'"):
        configure_norm(nn.BatchNorm2d(1), "both")


def test_synchronised_and_one_dimensional_layers_count():
    assert configure_norm(nn.Sequential(nn.BatchNorm1d(1), nn.SyncBatchNorm(1)), "source") == 2


def test_parameters_are_chosen_by_kind_or_by_name(model):
    assert len(choose_parameters(model, "norm")) == 6
    assert [p.requires_grad for p in model[0].parameters()] == [False, False]
    assert len(choose_parameters(model, "all")) == 8
    assert len(choose_parameters(model, lambda name, p: name.startswith("0.") and p.ndim > 1)) == 1
    assert choose_parameters(model, "none") == []
    with pytest.raises(ValueError, match="leaves no parameter to train"):
        choose_parameters(model[0], "norm")
    with pytest.raises(ValueError, match="trainable must be all, norm, none or a function"):
        choose_parameters(model, "decoder")
