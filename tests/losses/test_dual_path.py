"""Loss of a dual-path network: each term by hand, items without labels, the ramp, and a step of the second stage."""

from __future__ import annotations

import math

import pytest
import torch
from monai.losses import DiceLoss

from medseg.losses import CoTrainingDisagreementLoss, DualPathZoneLoss
from medseg.networks import DualPathOutput, DualPathZoneNet, fuse_zones
from medseg.networks.dual_path import ZONES

SHAPE = (4, 8, 8)


def make_output(batch: int = 2, aux: str | None = None, seed: int = 0) -> DualPathOutput:
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(batch, channels, *SHAPE, generator=generator) for channels in (3, 4)]
    widths = {None: (), "sdf": (2, 3), "boundary": (2, 3), "gland": (1, 1), "reconstruction": (1, 1)}[aux]
    maps = [torch.randn(batch, channels, *SHAPE, generator=generator).tanh() for channels in widths]
    return DualPathOutput(fuse_zones(logits), logits, maps)


def make_ids(batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 5, (batch, 1, *SHAPE), generator=torch.Generator().manual_seed(1))


def test_the_supervised_term_sums_one_minus_dice_over_the_channels_of_both_branches():
    output, ids = make_output(), make_ids()
    expected = 0.0
    for logits, own in zip(output.branch_logits, ((1, 2), (2, 3, 4)), strict=True):
        p = logits.softmax(dim=1)
        zones = [(ids == zone).float() for zone in own]
        masks = torch.cat([*zones, 1 - sum(zones)], dim=1)
        sums = [(x.flatten(2)).sum(-1) for x in (p * masks, p, masks)]
        expected += (1 - (2 * sums[0] + 1) / (sums[1] + sums[2] + 1)).sum(dim=1).mean().item()
    loss = DualPathZoneLoss(aux=None, lambda_cot=0)
    assert loss(output, ids).item() == pytest.approx(expected, rel=1e-5)
    assert loss.terms(output, ids)["supervised"].item() == pytest.approx(expected, rel=1e-5)


def test_zones_can_be_weighed_and_the_rest_left_out():
    output, ids = make_output(), make_ids()
    loss = DualPathZoneLoss(zone_weights=[0, 0, 3, 0], include_rest=False, aux=None)
    only_dpu = loss.terms(output, ids)["supervised"]
    p = output.branch_logits[1].softmax(dim=1)[:, 1:2]
    expected = 3 * DiceLoss(smooth_nr=1, smooth_dr=1)(p, (ids == 3).float())
    torch.testing.assert_close(only_dpu, expected)


def test_the_disagreement_compares_the_shared_zone_of_both_branches():
    output = make_output()
    first, second = (logits.softmax(dim=1) for logits in output.branch_logits)
    loss = DualPathZoneLoss(aux=None, lambda_cot=2.0, ramp_epochs=0)
    terms = loss.terms(output, make_ids())
    torch.testing.assert_close(terms["disagreement"], CoTrainingDisagreementLoss()(first[:, 1:2], second[:, :1]))
    torch.testing.assert_close(loss(output, make_ids()), terms["supervised"] + 2 * terms["disagreement"])


def test_three_branches_are_compared_pair_by_pair():
    groups = (("a", "b"), ("b", "c"), ("b",))
    logits = [torch.randn(1, len(g) + 1, 4, 4, generator=torch.Generator().manual_seed(len(g))) for g in groups]
    loss = DualPathZoneLoss(groups, zones=("a", "b", "c"), aux=None)
    output = DualPathOutput(fuse_zones(logits, groups, ("a", "b", "c")), logits, [])
    b = [maps.softmax(dim=1)[:, i : i + 1] for maps, i in zip(logits, (1, 0, 0), strict=True)]
    pairs = [CoTrainingDisagreementLoss()(b[i], b[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    found = loss.terms(output, torch.zeros(1, 1, 4, 4))["disagreement"]
    torch.testing.assert_close(found, torch.stack(pairs).mean())


def test_items_without_a_label_count_for_the_disagreement_only():
    output, ids = make_output(aux="gland"), make_ids()
    labelled = torch.tensor([True, False])
    loss = DualPathZoneLoss(aux="gland")
    found, odd = (loss.terms(output, x, labelled=labelled) for x in (ids, torch.cat([ids[:1], ids[1:] * 0 + 99])))
    alone = DualPathOutput(*([m[:1] for m in maps] if isinstance(maps, list) else maps[:1] for maps in output))
    first = loss.terms(alone, ids[:1])
    both = loss.terms(output, ids)
    for name in ("supervised", "auxiliary"):
        torch.testing.assert_close(found[name], first[name])
        torch.testing.assert_close(odd[name], first[name])
    torch.testing.assert_close(found["disagreement"], both["disagreement"])
    none = loss.terms(output, ids, labelled=torch.tensor([False, False]))
    assert none["supervised"] == none["auxiliary"] == 0


def test_distances_count_for_zones_that_are_there():
    output, ids = make_output(batch=1, aux="sdf"), make_ids(1)
    ids[ids == 3] = 0  # no urethra in this crop
    distance = torch.rand(1, 4, *SHAPE, generator=torch.Generator().manual_seed(2))
    loss = DualPathZoneLoss()
    found = loss.terms(output, ids, distance)["auxiliary"]
    distance[:, 2] = -1
    torch.testing.assert_close(loss.terms(output, ids, distance)["auxiliary"], found)
    distance[:, 3] = -1
    assert loss.terms(output, ids, distance)["auxiliary"] != found


def test_a_perfect_auxiliary_answer_costs_nothing():
    distance = torch.rand(2, 4, *SHAPE)
    output = make_output(aux="sdf")._replace(aux=[distance[:, [0, 1]], distance[:, [1, 2, 3]]])
    assert DualPathZoneLoss().terms(output, make_ids(), distance)["auxiliary"] == 0
    image = torch.rand(2, 1, *SHAPE)
    output = output._replace(aux=[image, image])
    assert DualPathZoneLoss(aux="reconstruction").terms(output, make_ids(), image=image)["auxiliary"] == 0


def test_the_contour_is_one_voxel_wide_inside_the_zone():
    ids = torch.zeros(1, 1, 9, 9)
    ids[..., 2:7, 2:7] = 1
    contour = (ids == 1).float()
    contour[..., 3:6, 3:6] = 0
    loss = DualPathZoneLoss((("z",), ("z",)), zones=("z",), aux="boundary")
    logits = [torch.zeros(1, 2, 9, 9)] * 2
    right = DualPathOutput(fuse_zones(logits, (("z",), ("z",)), ("z",)), logits, [40 * contour - 20] * 2)
    wrong = right._replace(aux=[20 - 40 * contour] * 2)
    assert loss.terms(right, ids)["auxiliary"] < 1e-4
    assert loss.terms(wrong, ids)["auxiliary"] > 10


def test_the_ramp_rises_from_nearly_nothing_to_one():
    loss = DualPathZoneLoss(ramp_epochs=10)
    factors = []
    for epoch in (0, 5, 10, 20):
        loss.set_epoch(epoch)
        factors.append(loss.ramp)
    assert factors == pytest.approx([math.exp(-5), math.exp(-1.25), 1, 1])


def test_a_step_of_the_second_stage_lowers_the_disagreement_and_hardly_raises_the_rest():
    torch.manual_seed(0)
    network = DualPathZoneNet(features=[4, 4, 8, 8, 8], dropout=0.0, aux=None)
    image, ids = torch.rand(2, 1, *SHAPE), make_ids()
    loss = DualPathZoneLoss(aux=None, lambda_cot=1.0, ramp_epochs=0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    before = loss.terms(network(image), ids)
    loss(network(image), ids).backward()
    optimizer.step()
    after = loss.terms(network(image), ids)
    assert after["disagreement"] < before["disagreement"]
    assert after["supervised"] < 1.05 * before["supervised"]


def test_equal_branches_never_disagree():
    network = DualPathZoneNet(features=[2, 4, 4, 4, 4], branches=(ZONES, ZONES), aux=None, dropout=0.0)
    for part in (network.stems, network.trunks, network.decoders, network.heads):
        part[1].load_state_dict(part[0].state_dict())
    loss = DualPathZoneLoss((ZONES, ZONES), aux=None)
    assert loss.terms(network(torch.rand(2, 1, *SHAPE)), make_ids())["disagreement"] == 0


def test_training_without_labels_is_warned_of():
    with pytest.warns(UserWarning, match="lambda_sup is 0.*may collapse"):
        DualPathZoneLoss(lambda_sup=0, lambda_cot=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"zone_weights": [1, 1]}, "zone_weights must be 4 numbers"),
        ({"lambda_cot": -1}, "lambda_cot must be a finite number, at least 0"),
        ({"aux": "depth"}, "aux must be one of"),
        ({"branches": [["PZ", "TZ"], ["DPU", "AFS"]]}, "branches share no zone"),
    ],
)
def test_odd_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DualPathZoneLoss(**wrong)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"distance is needed for aux='sdf', got None; add medseg.transforms.Zone"):
        DualPathZoneLoss()(make_output(aux="sdf"), make_ids())
    with pytest.raises(ValueError, match=r"output\.aux must hold 2 maps for aux='gland', got 0"):
        DualPathZoneLoss(aux="gland")(make_output(), make_ids())
    with pytest.raises(ValueError, match=r"target must have shape \(2, 1, 4, 8, 8\)"):
        DualPathZoneLoss(aux=None)(make_output(), make_ids(1))
