"""Estimates that order the ways back, and the choice among them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from medseg.engines import InsufficientMemoryError
from medseg.engines.memory_plan import CaseSize, activation_bytes, available_memory, choose_plan

_LARGE = CaseSize(
    input_voxels=320 * 320 * 240,
    network_shape=(320, 320, 240),
    window=(96, 96, 96),
    axis=0,
    batch_size=1,
    channels=1,
    num_classes=25,
)


def test_streaming_needs_least_and_the_whole_way_most():
    needed = {way: _LARGE.needed(way) for way in ("streamed", "low", "classwise", "whole")}
    assert max(needed["streamed"], needed["low"]) < needed["classwise"] < needed["whole"]
    # The accumulator of 96 of 320 slices is most of it.
    assert needed["streamed"] > 4 * 25 * 96 * 320 * 240
    assert needed["streamed"] < 2 * 4 * 25 * 96 * 320 * 240


def test_kept_probabilities_count():
    assert _LARGE.needed("streamed", keep=True) - _LARGE.needed("streamed") == 4 * 25 * 320 * 320 * 240


def test_a_volume_smaller_than_a_window_counts_as_a_window():
    small = replace(_LARGE, input_voxels=1000, network_shape=(10, 10, 10))
    assert small.needed("streamed") > 4 * 25 * 96**3


def test_a_preprocessing_that_takes_more_than_the_network_decides():
    assert replace(_LARGE, preparing=10**9).needed("streamed") == _LARGE.needed("streamed")
    assert replace(_LARGE, preparing=10**11).needed("streamed") == 10**11


def test_the_first_way_that_fits_is_taken():
    plan = choose_plan(_LARGE, ("classwise", "low"), available=_LARGE.needed("low"))
    assert (plan.way, plan.bytes) == ("low", _LARGE.needed("low"))
    assert choose_plan(_LARGE, ("classwise", "low"), available=10**12).way == "classwise"


def test_what_does_not_fit_is_refused_with_both_figures():
    with pytest.raises(InsufficientMemoryError, match=r"needs about \d+\.\d\d GB of memory, 0\.10 GB may be used"):
        choose_plan(_LARGE, ("low",), available=10**8)


def test_a_budget_is_for_the_whole_process():
    assert available_memory(10**12) < 10**12
    assert available_memory(1) < 0
    assert available_memory(None) > 0


def test_activations_are_those_of_the_largest_layers():
    network = nn.Sequential(nn.Conv3d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 4, 3, padding=1, stride=2))
    assert activation_bytes(network, (1, 16, 16, 16)) == 4 * (8 * 16**3 * 2 + 4 * 8**3)
    assert next(network.parameters()).device == torch.device("cpu")


def test_a_network_that_needs_values_has_no_estimate():
    class Picky(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    assert activation_bytes(Picky(), (1, 4, 4, 4)) == 0
