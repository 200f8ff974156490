from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.losses import DiceCELoss as MonaiDiceCELoss
from monai.losses import DiceLoss
from torch.nn import functional

from medseg.losses import DiceCELoss


@st.composite
def cases(draw):
    """Arguments that both losses know, the number of channels, and whether the target holds class ids."""
    channels = draw(st.integers(1, 5))
    acts = ["sigmoid", "none", "other", *(["softmax"] if channels > 1 else [])]
    act = draw(st.sampled_from(acts))
    options = {name: draw(st.booleans()) for name in ("squared_pred", "jaccard", "batch")}
    options["include_background"] = channels == 1 or draw(st.booleans())
    options |= (
        {act: True} if act in ("sigmoid", "softmax") else {"other_act": functional.softplus} if act == "other" else {}
    )
    options["reduction"] = draw(st.sampled_from(["mean", "sum"]))
    options["smooth_nr"] = draw(st.sampled_from([0.0, 1e-5, 1.0]))
    options["smooth_dr"] = draw(st.sampled_from([1e-5, 1.0]))
    options["lambda_dice"], options["lambda_ce"] = draw(st.sampled_from([(1.0, 1.0), (0.5, 2.0), (0.0, 1.0)]))
    options["label_smoothing"] = draw(st.sampled_from([0.0, 0.2]))
    if draw(st.booleans()):
        options["weight"] = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0])[:channels]
    return options, channels, channels > 1 and draw(st.booleans())


@settings(deadline=None, max_examples=60)
@given(cases(), st.integers(0, 9), st.sampled_from([(5, 6), (3, 4, 5)]))
def test_value_and_gradient_are_those_of_monai(case, seed, shape):
    options, channels, by_id = case
    torch.manual_seed(seed)
    logits = 2 * torch.randn(2, channels, *shape)
    # Without an activation, scores of both signs let the denominator cancel, and no two orders of adding agree.
    logits = (logits if {"sigmoid", "softmax", "other_act"} & options.keys() else logits.sigmoid()).requires_grad_()
    ids = torch.randint(0, max(channels, 2), (2, 1, *shape))
    one_hot = functional.one_hot(ids[:, 0], max(channels, 2)).movedim(-1, 1).float()
    target = ids if by_id else one_hot if channels > 1 else ids.float()
    want = MonaiDiceCELoss(to_onehot_y=by_id, **options)(logits, target)
    got = DiceCELoss(to_onehot_y=by_id, **options)(logits, target)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    (left,), (right,) = (torch.autograd.grad(value, logits) for value in (got, want))
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ignored", [-1, 255, 1])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ignored_voxels_count_in_neither_term(ignored, smoothing):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, requires_grad=True)
    target = torch.randint(0, 3, (2, 1, 4, 5, 6))
    target[torch.rand(target.shape) < 0.3] = ignored
    dice = DiceLoss(to_onehot_y=True, softmax=True, ignore_index=ignored)(logits, target)
    entropy = functional.cross_entropy(logits, target[:, 0], ignore_index=ignored, label_smoothing=smoothing)
    got = DiceCELoss(to_onehot_y=True, softmax=True, ignore_index=ignored, label_smoothing=smoothing)(logits, target)
    torch.testing.assert_close(got, dice + entropy)
    (left,), (right,) = (torch.autograd.grad(value, logits) for value in (got, dice + entropy))
    torch.testing.assert_close(left, right)
    assert not left[(target == ignored).expand_as(left)].any()


def test_a_batch_of_ignored_voxels_gives_zero_with_gradient_zero():
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    value = DiceCELoss(to_onehot_y=True, softmax=True, ignore_index=255)(logits, torch.full((1, 1, 4, 4), 255))
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_memory_layouts_give_the_same_value_and_gradient():
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 4, 5, 6), torch.randint(0, 3, (2, 1, 4, 5, 6))
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    found = []
    for x in (logits, logits.to(memory_format=torch.channels_last_3d), logits.transpose(2, 4).clone().transpose(2, 4)):
        x = x.clone(memory_format=torch.preserve_format).requires_grad_()
        value = loss(x, target)
        found.append((value, *torch.autograd.grad(value, x)))
    for value, gradient in found[1:]:
        torch.testing.assert_close(value, found[0][0])
        torch.testing.assert_close(gradient, found[0][1])


# The compiler reads this attribute of a plain view and warns of it.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_a_compiled_training_step_runs_through_the_loss():
    logits, target = torch.randn(1, 3, 4, 4, requires_grad=True), torch.randint(0, 3, (1, 1, 4, 4))
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    compiled = torch.compile(lambda x, y: loss(2 * x, y), backend="aot_eager")
    compiled(logits, target).backward()
    (want,) = torch.autograd.grad(loss(2 * logits, target), logits)
    torch.testing.assert_close(logits.grad, want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": "none"}, "reduction must be mean or sum"),
        ({"lambda_ce": -1.0}, "lambda_ce must be"),
        ({"label_smoothing": 2.0}, "label_smoothing must be"),
        ({"weight": [1.0, -1.0]}, "weight must hold"),
        ({"sigmoid": True, "softmax": True}, "choose one activation"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        DiceCELoss(**options)


def test_labels_that_are_no_ids_are_refused():
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    with pytest.raises(ValueError, match="no whole numbers"):
        loss(torch.zeros(1, 2, 2, 2), torch.full((1, 1, 2, 2), 0.5))
    with pytest.raises(ValueError, match="weight must hold one number for each of 2 channels, got 3"):
        DiceCELoss(softmax=True, to_onehot_y=True, weight=[1, 1, 1])(torch.zeros(1, 2, 2, 2), torch.zeros(1, 1, 2, 2))
