"""`medseg/core/compress/global_magnitude.py`: golden masks, floors, ties, scale."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medseg.core.compress import cubic_sparsity, global_magnitude_masks, layer_magnitude_masks, magnitude_scores
from medseg.core.optim import Invariance, find_scale_invariant
from tests.core.compress.golden import find_golden, load_golden


@pytest.mark.parametrize("path", find_golden("global_magnitude_*.npz"), ids=lambda path: path.stem)
def test_masks_are_the_golden_ones(path):
    golden = load_golden(path)
    names = [key for key in golden if key.startswith("w")]
    weights = {name: torch.from_numpy(golden[name]) for name in names}
    masks = global_magnitude_masks(weights, float(golden["sparsity"]), int(golden["min_per_layer"]))
    for number, name in enumerate(names):
        assert torch.equal(masks[name], torch.from_numpy(golden[f"mask{name[1:]}"])), name
        assert masks[name].sum() == golden["kept_per_layer"][number]


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    sparsity=st.floats(0, 1),
    floor=st.integers(0, 6),
    levels=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_floors_hold_and_the_number_is_met_where_floors_allow(sizes, sparsity, floor, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    weights = {
        str(n): torch.randint(-levels, levels + 1, (size,), generator=generator).double()
        for n, size in enumerate(sizes)
    }
    masks = global_magnitude_masks(weights, sparsity, floor)
    total, safe = sum(sizes), sum(min(size, floor) for size in sizes)
    assert sum(int((~mask).sum()) for mask in masks.values()) == min(round(sparsity * total), total - safe)
    for name, weight in weights.items():
        kept, pruned = weight[masks[name]].abs(), weight[~masks[name]].abs()
        assert len(kept) >= min(len(weight), floor)
        assert not (len(kept) and len(pruned)) or pruned.max() <= kept.min()


def test_equal_weights_go_in_the_order_of_layers_and_entries():
    masks = global_magnitude_masks({"a": torch.ones(2, 2), "b": torch.ones(4)}, 5 / 8)
    assert [mask.flatten().tolist() for mask in masks.values()] == [[False] * 4, [False, True, True, True]]


def test_a_part_of_a_layer_is_rounded_up():
    weights = {"large": torch.arange(1000.0) + 10, "head": torch.arange(30.0) / 100}
    assert int(global_magnitude_masks(weights, 0.5, 0.05)["head"].sum()) == 2


def test_more_pruning_prunes_what_was_pruned_and_more():
    weights = {"a": torch.randn(50, generator=torch.Generator().manual_seed(1))}
    half = global_magnitude_masks(weights, 0.5)["a"]
    again = global_magnitude_masks({"a": weights["a"] * half}, 0.7)["a"]
    assert torch.equal(again, global_magnitude_masks(weights, 0.7)["a"])


@pytest.mark.parametrize("transposed", [False, True])
def test_scores_do_not_know_the_scale_of_filters_before_a_norm(transposed):
    torch.manual_seed(0)
    conv = nn.ConvTranspose2d(2, 6, 2) if transposed else nn.Conv2d(2, 6, 3)
    model = nn.Sequential(conv, nn.InstanceNorm2d(6), nn.Conv2d(6, 2, 1))
    known = find_scale_invariant(model, [1, 2, 8, 8])
    before = magnitude_scores({"0.weight": conv.weight}, known)["0.weight"]
    scale = torch.rand(6) + 0.1
    with torch.no_grad():
        conv.weight.mul_(scale.reshape(1, -1, 1, 1) if transposed else scale.reshape(-1, 1, 1, 1))
    after = magnitude_scores({"0.weight": conv.weight}, known)["0.weight"]
    torch.testing.assert_close(after, before)
    assert not torch.allclose(magnitude_scores({"0.weight": conv.weight})["0.weight"], before)


def test_filters_that_share_a_norm_keep_their_ratio_and_zeros_stay_zero():
    weight = torch.tensor([[3.0], [4.0], [0.0], [0.0]])
    scores = magnitude_scores({"w": weight}, {"w": Invariance(0, 2)})["w"]
    torch.testing.assert_close(scores.flatten(), torch.tensor([3.0, 4.0, 0.0, 0.0]) / (5 / 2**0.5))


def test_layers_can_have_sparsities_of_their_own():
    weights = {"a": torch.tensor([1.0, -3.0, 2.0, 0.5]), "b": torch.tensor([5.0, 6.0])}
    masks = layer_magnitude_masks(weights, {"a": 0.5, "b": 1.0})
    assert masks["a"].tolist() == [False, True, True, False]
    assert masks["b"].tolist() == [False, False]
    with pytest.raises(ValueError, match=r"sparsities must have a value for every layer.*'b'"):
        layer_magnitude_masks(weights, {"a": 0.5})


def test_the_cubic_way_starts_at_nothing_and_ends_at_all():
    way = [cubic_sparsity(step, 10, 0.9) for step in range(-1, 13)]
    assert way[:2] == [0, 0]
    assert way[-2:] == [0.9, 0.9]
    assert way == sorted(way)
    assert cubic_sparsity(5, 10, 0.8) == pytest.approx(0.8 * (1 - 0.5**3))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"sparsity": 1.2}, r"sparsity must be in \[0, 1\], got 1.2"),
        ({"sparsity": 0.5, "min_per_layer": -1}, "min_per_layer must be a finite number"),
        ({"sparsity": 0.5, "min_per_layer": 2.5}, "whole number of weights or a part below 1, got 2.5"),
    ],
)
def test_options_out_of_range_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        global_magnitude_masks({"a": torch.ones(3)}, **options)
