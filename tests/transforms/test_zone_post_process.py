"""Cleaning of zone maps: golden values, ties, empty classes, distances in voxels or mm."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from scipy import ndimage

from medseg.transforms import ZonePostProcess, ZonePostProcessd
from tests.transforms.zone_golden import GOLDEN


def test_golden_labels_are_met_exactly():
    golden = np.load(GOLDEN / "islands_a.npz")
    found, expected = (
        (golden[key].astype(np.uint8) + 1) % 5 for key in ("labels_in", "labels_out")
    )  # theirs end with 0
    assert np.array_equal(ZonePostProcess()(found[None])[0], expected)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 1000), classes=st.integers(2, 4))
def test_it_agrees_with_looking_at_every_voxel(seed, classes):
    ids = np.random.default_rng(seed).integers(0, classes, (3, 5, 6)).astype(np.uint8)
    kept = np.zeros(ids.shape, bool)
    for value in range(classes):
        pieces, count = ndimage.label(ids == value)
        if count:
            kept |= pieces == 1 + np.bincount(pieces.ravel())[1:].argmax()
    expected = ids.copy()
    for voxel in np.argwhere(~kept):
        far = {
            c: min(((np.argwhere(kept & (ids == c)) - voxel) ** 2).sum(axis=1), default=np.inf) for c in range(classes)
        }
        expected[tuple(voxel)] = min([*range(1, classes), 0], key=lambda c: far[c])
    assert np.array_equal(ZonePostProcess(num_classes=classes)(ids[None])[0], expected)


def test_every_class_is_left_in_one_piece_or_grown_by_what_was_cut_off():
    ids = np.random.default_rng(0).integers(0, 5, (6, 20, 20)).astype(np.uint8)
    once = ZonePostProcess()(ids[None])
    assert set(np.unique(once)) == set(range(5))
    assert once.shape == (1, 6, 20, 20)


def test_a_map_in_one_piece_each_comes_back_as_it_is():
    label = torch.zeros(1, 6, 6)
    label[:, 2:4, 2:4] = 1
    assert ZonePostProcess()(label) is label
    assert torch.equal(ZonePostProcess()(torch.zeros(1, 4, 4, 4)), torch.zeros(1, 4, 4, 4))


def test_near_is_meant_in_voxels_unless_edges_are_given():
    label = np.zeros((1, 9, 9), np.uint8)
    label[0, :, :4] = 1
    label[0, 6:, 4:] = 2
    label[0, 3, 6] = 2  # three voxels from class 1, three from class 2 along the other axis; background is nearer
    label[0, :6, 4:6] = 3
    label[0, :3, 6:] = 3
    label[0, 3:6, 6:] = np.where(label[0, 3:6, 6:] == 2, 2, 3)
    assert ZonePostProcess()(label)[0, 3, 6] == 3
    tall, wide = (ZonePostProcess(num_classes=4, spacing=edges)(label)[0, 3, 6] for edges in ((9.0, 1.0), (1.0, 9.0)))
    assert tall == wide == 3


def test_small_zones_vanish_where_asked():
    label = np.zeros((1, 8, 8), np.uint8)
    label[0, 1:4, 1:4], label[0, 6, 6] = 1, 2
    assert ZonePostProcess(min_size=2)(label)[0, 6, 6] == 0
    assert ZonePostProcess(min_size=1)(label)[0, 6, 6] == 2
    everything = np.ones((1, 4, 4), np.uint8)
    assert not ZonePostProcess(min_size=100)(everything).any()


def test_type_and_affine_stay():
    label = MetaTensor(torch.tensor([[[1, 0, 1, 1, 0, 0]]]).float(), affine=2 * torch.eye(4))
    found = ZonePostProcessd("pred", num_classes=2)({"pred": label})["pred"]
    assert found.dtype == torch.float32
    assert found.flatten().tolist() == [1, 1, 1, 1, 0, 0]
    assert torch.equal(found.affine, label.affine)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_classes": 1}, "num_classes must lie in 2 to 255"),
        ({"min_size": -1}, "min_size must be 0 or more"),
        ({"spacing": [1.0, 0.0, 1.0]}, "spacing must be positive"),
    ],
)
def test_odd_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        ZonePostProcess(**wrong)


def test_odd_maps_are_refused():
    with pytest.raises(ValueError, match="take the argmax of probabilities first"):
        ZonePostProcess()(np.zeros((5, 4, 4)))
    with pytest.raises(ValueError, match="label must hold ids 0 to 4, got values from 0 to 7"):
        ZonePostProcess()(np.full((1, 4, 4), 7) * np.eye(4, dtype=int))
    with pytest.raises(ValueError, match="ids 0 to 4"):
        ZonePostProcess()(np.full((1, 4, 4), 0.5))
    with pytest.raises(ValueError, match="spacing must have 2 voxel edges"):
        ZonePostProcess(spacing=[1, 1, 1])(np.zeros((1, 4, 4)))
