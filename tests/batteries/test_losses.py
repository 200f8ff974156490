"""The battery of losses tells a good loss from a bad one, for every property."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch.autograd.gradcheck import GradcheckError
from torch.nn.modules.loss import _Loss

from tests.batteries import losses as battery

KWARGS = {"to_onehot_y": True, "softmax": True}


class GoodLoss(_Loss):
    """Soft Dice plus squared error, written to meet the contract."""

    def __init__(self, to_onehot_y=False, softmax=False, reduction="mean"):
        super().__init__(reduction=reduction)
        self.to_onehot_y, self.softmax = to_onehot_y, softmax

    def prepare(self, logits, target):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        classes = logits.shape[1]
        if target.max() >= classes:
            raise ValueError(f"target has label {int(target.max())} but input has {classes} channels")
        onehot = torch.nn.functional.one_hot(target[:, 0].long(), classes).movedim(-1, 1).to(logits.dtype)
        return logits.softmax(1), onehot

    def score(self, probability, onehot):
        axes = tuple(range(2, probability.ndim))
        overlap = 2 * (probability * onehot).sum(axes) + 1
        size = probability.sum(axes) + onehot.sum(axes) + 1
        return 1 - overlap / size

    def forward(self, logits, target):
        value = self.score(*self.prepare(logits, target))
        return {"mean": value.mean, "sum": value.sum, "none": lambda: value}[self.reduction]()


class DetachedGradient(GoodLoss):
    def score(self, probability, onehot):
        return super().score(probability, onehot) + (probability**2).detach().mean() * probability.mean()


class HalfStaysHalf(GoodLoss):
    def forward(self, logits, target):
        return super().forward(logits, target).to(logits.dtype)


class IntegerTargetsDiffer(GoodLoss):
    def forward(self, logits, target):
        return super().forward(logits, target) * (1.0 if target.is_floating_point() else 2.0)


class EmptyDividesByZero(GoodLoss):
    def score(self, probability, onehot):
        axes = tuple(range(2, probability.ndim))
        return 1 - (probability * onehot).sum(axes) / onehot.sum(axes)


class HidesNan(GoodLoss):
    def forward(self, logits, target):
        return super().forward(logits, target).nan_to_num()


class ForgetsReduction(GoodLoss):
    def forward(self, logits, target):
        return self.score(*self.prepare(logits, target)).mean() * (2 if self.reduction == "sum" else 1)


class Only3D(GoodLoss):
    def forward(self, logits, target):
        return super().forward(logits, target) * (1 if logits.ndim == 5 else float("nan"))


class WeighsOneSide(GoodLoss):
    def prepare(self, logits, target):
        probability, onehot = super().prepare(logits, target)
        return probability * torch.linspace(0, 1, logits.shape[-1]).to(logits.dtype), onehot


class ChangesItsInput(GoodLoss):
    def forward(self, logits, target):
        with torch.no_grad():
            logits *= 1.5
        return super().forward(logits, target)


class ClampsLabels(GoodLoss):
    def prepare(self, logits, target):
        return super().prepare(logits, target.clamp(max=logits.shape[1] - 1))


class SwallowsTypos(GoodLoss):
    def __init__(self, to_onehot_y=False, softmax=False, reduction="mean", **kwargs):
        super().__init__(to_onehot_y, softmax, reduction)


class HoldsALambda(GoodLoss):
    def __init__(self, to_onehot_y=False, softmax=False, reduction="mean"):
        super().__init__(to_onehot_y, softmax, reduction)
        self.activation = lambda x: x


BROKEN = {
    battery.has_exact_gradient: DetachedGradient,
    battery.computes_in_float32: HalfStaysHalf,
    battery.accepts_integer_targets: IntegerTargetsDiffer,
    battery.survives_empty_foreground: EmptyDividesByZero,
    battery.lets_nan_through: HidesNan,
    battery.reduces_consistently: ForgetsReduction,
    battery.works_in_2d_and_3d: Only3D,
    battery.ignores_mirroring: WeighsOneSide,
    battery.leaves_inputs_alone: ChangesItsInput,
    battery.refuses_labels_out_of_range: ClampsLabels,
    battery.is_built_from_json: SwallowsTypos,
    battery.survives_pickling: HoldsALambda,
}

# Here the library's own error speaks, not the battery's assertion.
RAISES_ITSELF = {
    battery.has_exact_gradient: GradcheckError,
    battery.survives_pickling: (AttributeError, pickle.PicklingError),
}


def test_every_property_has_a_loss_that_breaks_it():
    assert set(BROKEN) == set(battery.PROPERTIES)


@pytest.mark.parametrize("check", battery.PROPERTIES, ids=lambda p: p.__name__)
def test_a_good_loss_passes(check):
    check(GoodLoss, KWARGS)


@pytest.mark.parametrize("check", battery.PROPERTIES, ids=lambda p: p.__name__)
def test_a_loss_broken_in_one_way_is_caught(check):
    expected = RAISES_ITSELF.get(check, AssertionError)
    with pytest.raises(expected):
        check(BROKEN[check], KWARGS)
