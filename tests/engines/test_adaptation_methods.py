"""Tests of `medseg.engines.adaptation_methods`: every method runs, and changes what it says."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import nn

from medseg.data import ClassRatioPrior
from medseg.engines import build_adapter
from medseg.engines.adaptation_methods import METHODS
from tests.engines.test_source_free_adapter import changed, make_loader, make_model

PRIOR = ClassRatioPrior([0.9, 0.1])
EXPECTED = {
    "none": set(),
    "batch_norm": {"1.running_mean", "1.running_var", "1.num_batches_tracked"},
    "tent": {"1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"},
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_changes_what_it_says(method):
    model = make_model()
    before = deepcopy(model.state_dict())
    adapter = build_adapter(method, model, PRIOR, class_weight=[0.1, 0.9], learning_rate=1e-2, max_epochs=2)
    history = adapter.fit(make_loader())
    assert len(history) == 2
    assert changed(before, model.state_dict()) == EXPECTED.get(method, set(before))
    assert adapter.selected_state().keys() == before.keys()


def test_a_uniform_ratio_takes_the_place_of_the_prior():
    adapter = build_adapter("uniform", make_model(), PRIOR, max_epochs=1)
    assert adapter.fit(make_loader())[0]["expected_ratio"] == [0.5, 0.5]


def test_channels_of_a_sigmoid_adapt_as_problems_of_their_own():
    prior = ClassRatioPrior([0.8, 0.2])
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    adapter = build_adapter("kl", model, prior, sigmoid=True, learning_rate=1e-1, max_epochs=40)
    adapter.fit(make_loader())
    found = adapter.diagnose([torch.stack([item["image"] for item in make_loader().dataset])])
    assert found.soft_ratio == pytest.approx((0.8, 0.2), abs=0.15)


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="method must be one of kl, kl_reverse, none"):
        build_adapter("shot", make_model(), PRIOR)
    with pytest.raises(ValueError, match="mean_teacher is for networks with a softmax"):
        build_adapter("mean_teacher", make_model(), PRIOR, sigmoid=True)
