"""Slabs brought back to the input grid, against MONAI's inversion."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor
from monai.transforms import Compose, Invertd, Orientationd, Spacingd

from medseg.inferers import GridMap, Slab, SlabMapper, softmax_


def _affine(seed: int, spacing: tuple[float, ...], oblique: bool) -> np.ndarray:
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(3, 3)))[0] if oblique else np.eye(3)[rng.permutation(3)]
    affine = np.eye(4)
    affine[:3, :3] = axes @ np.diag(spacing) * rng.choice([-1, 1], size=3)
    affine[:3, 3] = rng.normal(size=3) * 50
    return affine


def _mapped(grid: GridMap, logits: torch.Tensor, axis: int, depths: list[int], **options) -> SlabMapper:
    mapper = SlabMapper(grid, axis, len(logits), **options)
    start, size = 0, logits.shape[axis + 1]
    while start < size:
        stop = min(start + depths[start % len(depths)], size)
        mapper.add(Slab(start, stop, logits.narrow(axis + 1, start, stop - start).clone()))
        start = stop
    return mapper


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(*[st.integers(4, 14)] * 3),
    spacing=st.tuples(*[st.floats(0.5, 2.5)] * 3),
    oblique=st.booleans(),
    axis=st.integers(0, 2),
    depths=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_any_resampled_grid_is_mapped_back_as_monai_does(seed, shape, spacing, oblique, axis, depths):
    affine = _affine(seed, spacing, oblique)
    preprocessing = Compose(
        [
            Orientationd(keys="image", axcodes="RAS", labels=None),
            Spacingd(keys="image", pixdim=(1.0, 1.1, 0.9), mode="bilinear"),
        ]
    )
    data = preprocessing({"image": MetaTensor(torch.zeros(1, *shape), affine=torch.from_numpy(affine))})
    size = tuple(data["image"].shape[1:])
    logits = 2 * torch.randn(4, *size, generator=torch.Generator().manual_seed(seed))
    data["pred"] = MetaTensor(torch.softmax(logits, 0))
    invert = Invertd(keys="pred", transform=preprocessing, orig_keys="image", nearest_interp=False)
    expected = invert(data)["pred"].as_tensor().float()

    grid = GridMap.between(affine, shape, data["image"].affine.numpy(), size)
    kept = torch.zeros(4, *shape)
    mapper = _mapped(grid, logits, axis, depths, probabilities=kept)
    assert torch.allclose(kept, expected, atol=2e-4)
    assert torch.equal(mapper.labels.long(), kept.argmax(0))
    # Classes that are weak in most places are mapped where they can win alone; that must not show.
    assert torch.equal(_mapped(grid, logits, axis, depths).labels, mapper.labels)
    peaked = logits + 6 * torch.arange(4).reshape(-1, 1, 1, 1) * (torch.arange(size[0]) % 5 == 0).reshape(1, -1, 1, 1)
    everywhere = _mapped(grid, peaked, axis, depths, probabilities=kept).labels
    assert torch.equal(_mapped(grid, peaked, axis, depths).labels, everywhere)


def test_grids_that_coincide_keep_every_value():
    affine = _affine(0, (0.7, 0.8, 1.3), oblique=False)
    grid = GridMap.between(affine, (5, 6, 7), affine + 1e-9, (5, 6, 7))
    logits = torch.randn(3, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    kept = torch.zeros_like(logits)
    mapper = _mapped(grid, logits, 1, [2], softmax=False, probabilities=kept)
    assert torch.equal(kept, logits)
    assert torch.equal(mapper.labels.long(), logits.argmax(0))


def test_ties_go_to_the_lowest_class():
    grid = GridMap.between(np.eye(4), (2, 2, 2), np.eye(4), (2, 2, 2))
    logits = torch.zeros(3, 2, 2, 2)
    logits[1:, 0] = 1.0
    labels = _mapped(grid, logits, 0, [1]).labels
    assert labels[0].unique().tolist() == [1]
    assert labels[1].unique().tolist() == [0]


def test_uncertain_voxels_become_background_below_a_threshold():
    grid = GridMap.between(np.eye(4), (2, 1, 1), np.eye(4), (2, 1, 1))
    logits = torch.tensor([[0.0, 0.0], [0.1, 5.0]]).reshape(2, 2, 1, 1)
    assert _mapped(grid, logits, 0, [2], threshold=0.9).labels.flatten().tolist() == [0, 1]


def test_more_classes_than_a_byte_holds_keep_their_numbers():
    grid = GridMap.between(np.eye(4), (1, 1, 1), np.eye(4), (1, 1, 1))
    logits = torch.zeros(300, 1, 1, 1)
    logits[299] = 9.0
    assert _mapped(grid, logits, 0, [1]).labels.item() == 299


def test_rotated_and_sheared_grids_have_no_axis_map():
    turned = np.eye(4)
    angle = 0.1
    turned[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert GridMap.between(turned, (8, 8, 8), np.eye(4), (8, 8, 8)) is None
    sheared = np.eye(4)
    sheared[0, 1] = 0.05
    assert GridMap.between(sheared, (8, 8, 8), np.eye(4), (8, 8, 8)) is None


def test_softmax_in_place_is_softmax():
    logits = 30 * torch.randn(5, 4, 3, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.softmax(logits, 0)
    assert softmax_(logits) is logits
    # Numbers too small for float32's full precision become 0.
    assert torch.allclose(logits, expected, rtol=1e-6, atol=2e-38)
