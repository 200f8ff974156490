"""MESA: the averaged teacher, and the loss that keeps near to it."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from medseg.core.optim import EMATeacher, TrajectoryLoss


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("softmax", [True, False])
def test_equal_logits_cost_nothing_and_pull_nowhere(softmax):
    logits = noise(2, 3, 4, 5).requires_grad_()
    loss = TrajectoryLoss(softmax=softmax)(logits, logits.detach())
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)


def test_it_is_the_divergence_of_torch_times_the_squared_temperature():
    student, teacher = noise(2, 3, 4), noise(2, 3, 4, seed=1)
    expected = nn.functional.kl_div((student / 2).log_softmax(1), (teacher / 2).softmax(1), reduction="none").sum(1)
    for reduction in ("mean", "sum", "none"):
        found = TrajectoryLoss(0.7, 2.0, reduction=reduction)(student, teacher)
        torch.testing.assert_close(found, 2.8 * (expected if reduction == "none" else getattr(expected, reduction)()))


def test_sigmoid_channels_are_softmaxes_of_two():
    student, teacher = noise(2, 1, 4), noise(2, 1, 4, seed=1)
    pairs = (torch.cat([z, torch.zeros_like(z)], dim=1) for z in (student, teacher))
    torch.testing.assert_close(TrajectoryLoss(softmax=False)(student, teacher), TrajectoryLoss()(*pairs))


def test_at_high_temperature_it_pulls_like_a_squared_distance_of_centred_logits():
    student, teacher = noise(1, 4, 1).requires_grad_(), noise(1, 4, 1, seed=1)
    (gradient,) = torch.autograd.grad(TrajectoryLoss(1.0, 1e4)(student, teacher), student)
    apart = student.detach() - teacher
    torch.testing.assert_close(gradient, (apart - apart.mean(1, keepdim=True)) / 4, rtol=1e-3, atol=1e-4)


def test_it_waits_in_training_and_computes_half_precision_in_full():
    loss = TrajectoryLoss(start=2)
    student, teacher = noise(1, 2, 3).half(), noise(1, 2, 3, seed=1).half()
    values = [loss(student, teacher) for _ in range(3)]
    assert [value.item() == 0 for value in values] == [True, True, False]
    assert values[2].dtype == torch.float32
    assert TrajectoryLoss(start=2).eval()(student, teacher) > 0


def test_extreme_logits_stay_finite():
    student = torch.tensor([[[400.0], [-400.0]]], requires_grad=True)
    for softmax in (True, False):
        loss = TrajectoryLoss(temperature=1.0, softmax=softmax)(student, -student.detach())
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_the_teacher_is_the_running_average_of_the_weights():
    student = nn.Linear(2, 1)
    teacher, expected = EMATeacher(student, decay=0.75), student.weight.detach().clone()
    for step in range(3):
        nn.init.constant_(student.weight, float(step))
        teacher.update(student)
        expected = 0.75 * expected + 0.25 * step
    torch.testing.assert_close(teacher.network.weight, expected)


def test_in_the_warm_up_the_first_weights_are_soon_forgotten():
    student = nn.Linear(1, 1, bias=False)
    nn.init.constant_(student.weight, 100.0)
    teacher = EMATeacher(student, decay=0.999, warmup_steps=10)
    nn.init.zeros_(student.weight)
    for _ in range(30):
        teacher.update(student)
    assert teacher.network.weight.item() < 0.1


@pytest.mark.parametrize(("update", "mean"), [("copy", 5.0), ("average", 0.5), ("keep", 0.0)])
def test_buffers_follow_as_told_and_the_teacher_never_trains(update, mean):
    student = nn.BatchNorm1d(2)
    teacher = EMATeacher(student, decay=0.9, update_buffers=update)
    student.running_mean.fill_(5.0)
    teacher.update(student)
    torch.testing.assert_close(teacher.network.running_mean, torch.full((2,), mean))
    assert not teacher.train().network.training
    assert not teacher(torch.ones(3, 2)).requires_grad


def test_half_precision_students_have_a_full_precision_teacher_that_can_be_saved():
    student = nn.Linear(2, 1).bfloat16()
    teacher = EMATeacher(student, decay=0.9)
    teacher.update(student)
    assert teacher.network.weight.dtype == torch.float32
    stream = io.BytesIO()
    torch.save(teacher.state_dict(), stream)
    stream.seek(0)
    other = EMATeacher(student, decay=0.9)
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert other.count == 1


def test_odd_arguments_are_named():
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        TrajectoryLoss(temperature=0)
    with pytest.raises(ValueError, match="of one shape, got"):
        TrajectoryLoss()(torch.ones(1, 2, 3), torch.ones(1, 2, 4))
    with pytest.raises(ValueError, match="update_buffers must be one of"):
        EMATeacher(nn.Linear(1, 1), update_buffers="no")
    with pytest.raises(ValueError, match="these differ"):
        EMATeacher(nn.Linear(1, 1)).update(nn.Linear(1, 1, bias=False))
