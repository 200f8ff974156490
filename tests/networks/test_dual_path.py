"""The dual-path network: sizes, sharing, fusing and the groups it accepts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.networks import DualPathZoneNet, fuse_zones
from medseg.networks.dual_path import BRANCHES, ZONES

SMALL = {"features": [2, 4, 4, 4, 4], "dropout": 0.0}


def count(network: torch.nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("share", "expected"), [("none", 12_196_391), ("encoder", 9_110_663), ("stem", 12_181_991)])
def test_its_size_follows_from_what_is_shared(share, expected):
    assert count(DualPathZoneNet(aux=None, share=share)) == expected


@pytest.mark.parametrize("share", ["none", "stem", "encoder"])
@pytest.mark.parametrize(("aux", "channels"), [("sdf", [2, 3]), ("boundary", [2, 3]), ("gland", [1, 1])])
def test_training_gives_all_parts_and_reaches_every_parameter(share, aux, channels):
    torch.manual_seed(0)
    network = DualPathZoneNet(share=share, aux=aux, **SMALL)
    output = network(torch.rand(2, 1, 4, 16, 16))
    assert [maps.shape[1] for maps in output.branch_logits] == [3, 4]
    assert [maps.shape[1] for maps in output.aux] == channels
    sum(maps.square().mean() for maps in (output.zones, *output.branch_logits, *output.aux)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@torch.no_grad()
def test_evaluation_gives_the_fused_map_alone_unless_asked():
    network = DualPathZoneNet(aux=None, **SMALL).eval()
    image = torch.rand(1, 1, 4, 16, 16)
    fused, output = network(image), network(image, return_dict=True)
    assert torch.equal(fused, output.zones)
    assert output.aux == []
    assert torch.equal(fused, fuse_zones(output.branch_logits))
    assert torch.is_tensor(network.train()(image, return_dict=False))


@settings(deadline=None, max_examples=25)
@given(scale=st.floats(0, 50), seed=st.integers(0, 1000))
def test_fused_probabilities_sum_to_one_and_are_not_negative(scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = [scale * torch.randn(1, len(group) + 1, 4, 5, generator=generator) for group in BRANCHES]
    fused = fuse_zones(logits)
    assert (fused >= 0).all()
    torch.testing.assert_close(fused.sum(dim=1), torch.ones(1, 4, 5))


def test_branches_that_own_everything_and_agree_give_their_softmax():
    logits = torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    expected = logits.softmax(dim=1)[:, [4, 0, 1, 2, 3]]
    torch.testing.assert_close(fuse_zones([logits, logits], (ZONES, ZONES)), expected)


def test_zones_that_claim_more_than_all_are_scaled_down():
    sure_of_pz = torch.tensor([30.0, 0.0, 0.0]).view(1, 3, 1)
    sure_of_dpu = torch.tensor([0.0, 30.0, 0.0, 0.0]).view(1, 4, 1)
    torch.testing.assert_close(fuse_zones([sure_of_pz, sure_of_dpu]).flatten(), torch.tensor([0, 0.5, 0, 0.5, 0]))


def test_branches_start_from_different_weights_and_equal_ones_are_noticed():
    network = DualPathZoneNet(branches=(ZONES, ZONES), aux=None, **SMALL)
    assert not network.has_identical_branches()
    for part in (network.stems, network.trunks, network.decoders, network.heads):
        part[1].load_state_dict(part[0].state_dict())
    assert network.has_identical_branches()


@pytest.mark.parametrize(
    "groups", [(("PZ", "TZ", "DPU"), ("TZ", "AFS")), (ZONES, ZONES), (("PZ", "TZ"), ("TZ", "DPU"), ("DPU", "AFS"))]
)
def test_other_groups_that_are_linked_are_accepted(groups):
    assert DualPathZoneNet(branches=groups, **SMALL).branches == groups


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"branches": [["PZ", "TZ"], ["DPU", "AFS"]]}, "branches share no zone: the co-training loss would be empty"),
        ({"branches": [["PZ", "TZ"], ["TZ", "DPU"]]}, r"missing: \['AFS'\]"),
        ({"branches": [["PZ", "TZ"], ["TZ", "DPU", "AFS", "SV"]]}, r"unknown: \['SV'\]"),
        ({"branches": [["PZ", "TZ", "DPU", "AFS"]]}, "branches must be two or more groups"),
        ({"zones": ["PZ", "PZ"]}, "zones must be different names"),
        ({"out_channels": 4}, "out_channels must be 5"),
        ({"share": "all"}, "share must be none, stem or encoder, got 'all'"),
        ({"aux": "depth"}, "aux must be one of sdf, boundary, gland, reconstruction, or None"),
        ({"up_mode": "nearest"}, "up_mode must be legacy or stride"),
    ],
)
def test_groups_and_options_that_do_not_fit_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DualPathZoneNet(**wrong)


def test_logits_with_another_number_of_channels_are_refused():
    with pytest.raises(ValueError, match=r"branch \('TZ', 'DPU', 'AFS'\) must have 4 channels"):
        fuse_zones([torch.zeros(1, 3, 2), torch.zeros(1, 3, 2)])
