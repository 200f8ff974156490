"""Distillation through a second head."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medseg.core.distill import DistilledLoss, DualHeadDistillation, binary_distillation_loss


def make_network(width, conv=nn.Conv3d, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(conv(1, width, 3, padding=1), nn.LeakyReLU(), conv(width, 2, 1))


def make_pair(seed=0, **options):
    return DualHeadDistillation(make_network(4, seed=seed), make_network(8, seed=9), "1", 4, 2, **options)


def make_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, 1, 4, 5, 6, generator=generator), torch.rand(2, 2, 4, 5, 6, generator=generator).round()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999), st.floats(0.3, 20))
def test_the_term_is_the_divergence_by_its_definition_and_0_only_where_logits_agree(seed, tau):
    z, t = torch.randn(2, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p, q = torch.sigmoid(t / tau), torch.sigmoid(z / tau)
    kl = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    torch.testing.assert_close(binary_distillation_loss(z, t, tau), tau**2 * kl.mean())
    assert binary_distillation_loss(z, t, tau) > 0 == binary_distillation_loss(z, z, tau)
    assert torch.autograd.gradcheck(lambda x: binary_distillation_loss(x, t, tau), (z.requires_grad_(),))


def test_a_high_temperature_compares_logits_and_huge_logits_stay_finite():
    z, t = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(binary_distillation_loss(z, t, 300.0), ((z - t) ** 2).mean() / 8, rtol=1e-2, atol=0)
    huge = torch.tensor([1e4, -1e4], requires_grad=True)
    value = binary_distillation_loss(huge, -huge)
    value.backward()
    assert torch.isfinite(value)
    assert torch.isfinite(huge.grad).all()
    half = binary_distillation_loss(z.half(), t.half())
    assert half.dtype == torch.float32


def test_in_evaluation_it_is_the_student_and_leaves_no_trace_on_it():
    network, (x, _) = make_pair(), make_batch()
    expected = copy.deepcopy(network.student)(x)
    assert torch.equal(network(x), expected)
    assert network.distillation_loss is not None
    assert not network.student[1]._forward_hooks
    assert torch.equal(network.eval()(x), expected)
    assert network.distillation_loss is None


def test_the_teacher_is_neither_trained_nor_saved_but_moves_along():
    network = make_pair().double()
    assert network.teacher[0].weight.dtype == torch.float64
    assert not network.teacher.training
    assert not any("teacher" in name for name in network.state_dict())
    assert not any(p.requires_grad for p in network.teacher.parameters())
    assert len(list(network.parameters())) == 4 + 2
    network.train()
    assert not network.teacher.training


def test_the_last_layer_learns_from_labels_alone_and_the_body_from_both():
    x, y = make_batch()
    network = make_pair(align=False)
    loss = DistilledLoss(nn.BCEWithLogitsLoss(), network)
    loss(network(x), y).backward()
    plain = make_network(4)
    nn.BCEWithLogitsLoss()(plain(x), y).backward()
    torch.testing.assert_close(network.student[2].weight.grad, plain[2].weight.grad)
    assert not torch.allclose(network.student[0].weight.grad, plain[0].weight.grad)
    body, head = network.student[0].weight.grad, network.head[0].weight.grad
    network.zero_grad()
    network(x)
    network.distillation_loss.backward()
    torch.testing.assert_close(body, plain[0].weight.grad + network.student[0].weight.grad)
    torch.testing.assert_close(head, network.head[0].weight.grad)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 999))
def test_an_opposing_gradient_gives_way_and_an_agreeing_one_is_kept(seed):
    generator = torch.Generator().manual_seed(seed)
    main, second = torch.randn(2, 3, 4, 2, 2, generator=generator, dtype=torch.float64)
    gradients = {}
    for align in (True, False):
        network = DualHeadDistillation(nn.Identity(), nn.Identity(), "", 4, 4, spatial_dims=2, align=align)
        network.head = nn.Identity()
        network._compare = lambda logits, _: (logits * second).sum()
        x = torch.zeros(3, 4, 2, 2, dtype=torch.float64, requires_grad=True)
        ((network(x) * main).sum() + network.distillation_loss).backward()
        gradients[align] = x.grad
    torch.testing.assert_close(gradients[False], main + second)
    for item in range(3):
        agree = (main[item] * second[item]).sum() >= 0
        extra = gradients[True][item] - main[item]
        if agree:
            torch.testing.assert_close(extra, second[item])
        else:
            assert (extra * main[item]).sum().abs() < 1e-5
            assert ((second[item] - extra) / main[item]).std() < 1e-5


def test_features_of_half_the_resolution_are_compared_at_the_teachers():
    torch.manual_seed(0)
    student = nn.Sequential(nn.Conv2d(1, 3, 2, stride=2), nn.Upsample(scale_factor=2), nn.Conv2d(3, 2, 1))
    network = DualHeadDistillation(
        student, make_network(4, nn.Conv2d), "0", 3, 2, spatial_dims=2, hidden_channels=5, weight=0.5
    )
    network(torch.randn(2, 1, 8, 8))
    network.distillation_loss.backward()
    assert student[2].weight.grad is None
    assert student[0].weight.grad.abs().sum() > 0
    assert network.head[0].out_channels == 5


def test_a_student_comes_to_agree_with_its_teacher():
    x, _ = make_batch()
    network = make_pair()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
    values = []
    for _ in range(12):
        network(x)
        optimizer.zero_grad()
        network.distillation_loss.backward()
        optimizer.step()
        values.append(network.distillation_loss.item())
    assert values[-1] < 0.5 * values[0]


def test_odd_arguments_are_named():
    with pytest.raises(ValueError, match="layer must be a submodule of student, got 'decoder'; there are: 0, 1, 2"):
        DualHeadDistillation(make_network(4), make_network(4), "decoder", 4, 2)
    with pytest.raises(ValueError, match="tau must be a finite number above 0, got 0"):
        make_pair(tau=0)
    with pytest.raises(ValueError, match="spatial_dims must be 2 or 3"):
        make_pair(spatial_dims=1)
    with pytest.raises(ValueError, match="same shape"):
        binary_distillation_loss(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(TypeError, match="network must be a DualHeadDistillation, got Conv2d"):
        DistilledLoss(nn.BCEWithLogitsLoss(), nn.Conv2d(1, 1, 1))
