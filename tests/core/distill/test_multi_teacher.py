"""The balance of several teachers."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from medseg.core.distill import MultiTeacherLoss


def make_logits(count=3, seed=0, scale=2.0):
    return list(scale * torch.randn(count, 2, 4, 3, 5, generator=torch.Generator().manual_seed(seed)))


def test_one_teacher_is_usual_distillation():
    student, teacher = make_logits(2)
    value = MultiTeacherLoss(1, tau=3.0)(student, [teacher])
    log_p, log_q = (functional.log_softmax(z / 3, 1).movedim(1, -1).reshape(-1, 4) for z in (teacher, student))
    torch.testing.assert_close(value, 9 * functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean"))


def test_equal_teachers_keep_equal_weights_and_temperatures():
    student, teacher = make_logits(2)
    loss = MultiTeacherLoss(3)
    for step in range(10):
        loss(student * 0.9**step, [teacher] * 3)
    torch.testing.assert_close(loss.weights, torch.full((3,), 1 / 3))
    assert loss.temperatures.tolist() == [2.0] * 3


def test_temperatures_make_teachers_equally_certain_and_stay_within_1_and_10():
    student, sure, unsure = make_logits(3)
    loss = MultiTeacherLoss(2, temperature_lr=0.3)
    for _ in range(300):
        loss(student, [sure * 3, unsure])
    entropies = []
    for z, tau in zip((sure * 3, unsure), loss.temperatures, strict=True):
        entropies.append(torch.distributions.Categorical(logits=(z / tau).movedim(1, -1)).entropy().mean().item())
    assert entropies[0] == pytest.approx(entropies[1], abs=1e-2)
    assert loss.temperatures[0] > loss.temperatures[1]
    for _ in range(300):
        loss(student, [sure * 1e3, unsure * 0])
    assert loss.temperatures.tolist() == [10.0, 1.0]


def test_the_teacher_that_is_learnt_more_slowly_gains_weight():
    student, one, other = make_logits(3)
    loss = MultiTeacherLoss(2, temperature_lr=0, smoothing=0.5)
    for step in range(20):
        loss((1 - step / 20) * student + step / 20 * one, [one, other])
    assert loss.weights[1] > 0.9
    assert loss.weights.sum() == pytest.approx(1)
    fixed = MultiTeacherLoss(2, beta=0)
    fixed(one, [one, other])
    fixed(one, [one, other])
    assert fixed.weights.tolist() == [0.5, 0.5]


def test_it_goes_on_from_a_checkpoint_and_rests_in_evaluation():
    student, *teachers = make_logits(3)
    loss, other = MultiTeacherLoss(2), MultiTeacherLoss(2)
    loss(student, teachers)
    loss(student * 0.5, teachers)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other(student * 0.2, teachers), loss(student * 0.2, teachers))
    before = {name: value.clone() for name, value in loss.eval().state_dict().items()}
    loss(student * 3, teachers)
    assert all(torch.equal(before[name], value) for name, value in loss.state_dict().items())


def test_only_the_student_gets_a_gradient_and_half_precision_is_computed_in_full():
    student, *teachers = (z.half().requires_grad_() for z in make_logits(3))
    value = MultiTeacherLoss(2)(student, teachers)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(student.grad).all()
    assert all(z.grad is None for z in teachers)
    exact, other = (z.double() for z in make_logits(2))
    assert torch.autograd.gradcheck(
        lambda x: MultiTeacherLoss(1)(x, [other[:1, :, :2, :2]]), (exact[:1, :, :2, :2].clone().requires_grad_(),)
    )


def test_odd_arguments_are_named():
    with pytest.raises(ValueError, match="num_teachers must be at least 1"):
        MultiTeacherLoss(0)
    with pytest.raises(ValueError, match=r"tau must lie within 1 and 10, got 0\.5"):
        MultiTeacherLoss(1, tau=0.5)
    with pytest.raises(ValueError, match="smoothing at least 0 and below 1"):
        MultiTeacherLoss(1, smoothing=1.0)
    student, teacher = make_logits(2)
    with pytest.raises(ValueError, match="teachers must be 2 tensors of shape"):
        MultiTeacherLoss(2)(student, [teacher])
