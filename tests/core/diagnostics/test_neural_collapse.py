"""Neural collapse, on features whose means and spread are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.core.diagnostics import NeuralCollapse, interior_voxels


def simplex(classes, channels, seed=0):
    """Unit vectors as far apart as can be, in a random direction of space, (classes, channels)."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(channels, classes, generator=generator, dtype=torch.float64)).Q.T
    return (axes - axes.mean(0)) / np.sqrt(1 - 1 / classes)


def draw(means, count, sd, seed=1):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.arange(len(means)).repeat_interleave(count)
    return means[ids] + sd * torch.randn(len(ids), means.shape[1], generator=generator, dtype=torch.float64), ids


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 6), st.integers(0, 99), st.floats(0.1, 50), st.floats(-100, 100))
def test_a_collapsed_network_has_all_measures_at_their_best_wherever_it_lies(classes, seed, size, shift):
    means = size * simplex(classes, 8, seed)
    features, ids = means.repeat(3, 1) + shift, torch.arange(classes).repeat(3)
    collapse = NeuralCollapse(classes)
    collapse.update(features, ids)
    report = collapse.report(weight=2 * means + 0.5)
    found = [report.nc1, report.nc2_equinorm, report.nc2_equiangular, report.nc3]
    np.testing.assert_allclose(found, 0, atol=1e-6)
    assert collapse.agreement(features, ids, means, -means @ torch.full((8,), float(shift)).double()) == 1


def test_nc1_is_the_spread_over_the_distance_of_a_simplex():
    """Noise of variance v in all directions around a simplex of radius r: v (C - 1)^2/(r^2 C)."""
    features, ids = draw(3 * simplex(4, 6), 4000, 0.5)
    collapse = NeuralCollapse(4)
    collapse.update(features, ids)
    assert collapse.report().nc1 == pytest.approx(0.25 * 9 / (9 * 4), rel=0.03)
    assert np.isnan(collapse.report().nc3)


def test_nc2_and_nc3_see_unequal_lengths_angles_and_a_foreign_last_layer():
    means = simplex(3, 5)
    stretched = means * torch.tensor([[1.0], [1.0], [3.0]])
    collapse = NeuralCollapse(3)
    collapse.update(stretched, torch.arange(3))
    report = collapse.report(weight=-stretched)
    centred = (stretched - stretched.mean(0)).norm(dim=1)
    assert report.nc2_equinorm == pytest.approx(float(centred.std(correction=0) / centred.mean()))
    assert report.nc2_equiangular > 0.05
    assert report.nc3 == pytest.approx(2.0)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 99), st.lists(st.integers(1, 59), max_size=4, unique=True))
def test_batches_of_any_size_give_what_one_batch_gives(seed, cuts):
    features, ids = draw(simplex(3, 5), 20, 1.0, seed)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(seed))
    whole, parts = NeuralCollapse(3), NeuralCollapse(3)
    whole.update(features, ids)
    for part in torch.tensor_split(order, sorted(cuts)):
        parts.update(features[part], ids[part])
    one, other = whole.report(), parts.report()
    assert one.counts == other.counts == (20, 20, 20)
    assert one.nc1 == pytest.approx(other.nc1, rel=1e-10)
    covariance = np.mean([np.cov(features[ids == c].T, bias=True) for c in range(3)], axis=0)
    np.testing.assert_allclose(torch.stack(parts._scatters).sum(0) / 60, covariance, atol=1e-12)


def test_a_large_mean_does_not_drown_a_small_spread():
    features, ids = draw(1e4 + simplex(2, 3), 500, 1e-3)
    far, near = NeuralCollapse(2), NeuralCollapse(2)
    for part in range(4):
        far.update(features[part::4], ids[part::4])
        near.update(features[part::4] - 1e4, ids[part::4])
    assert far.report().nc1 == pytest.approx(near.report().nc1, rel=1e-6)


def test_voxels_are_rows_and_those_at_borders_or_of_no_class_are_left_out():
    labels = torch.zeros(1, 1, 6, 6, 6)
    labels[..., 3:] = 1
    labels[..., 0, 0, 0] = 255
    features = torch.cat((labels, 1 - labels), 1).half()
    inside = interior_voxels(labels)
    assert not inside[..., 2:4].any()
    assert inside[0, 0, 3, 3].tolist() == [True, True, False, False, True, True]
    collapse = NeuralCollapse(3)
    collapse.update(features, labels, inside)
    report = collapse.report()
    assert report.classes == (0, 1)
    assert sum(report.counts) == int(inside.sum())
    assert report.nc1 == 0
    flat = interior_voxels(torch.tensor([[[[0, 0, 0, 0, 1, 1]] * 5]]), width=2)
    assert flat[0, 0, 2].tolist() == [True, True, False, False, False, False]


def test_draws_limit_each_class_and_repeat_with_their_seed():
    features, ids = draw(simplex(2, 4), 300, 1.0)

    def report(seed):
        collapse = NeuralCollapse(2, per_class=50, seed=seed)
        collapse.update(features, ids)
        return collapse.report()

    assert report(0).counts == (50, 50)
    assert report(0).nc1 == report(0).nc1 != report(1).nc1


def test_nearest_means_and_last_layer_disagree_where_the_layer_is_turned():
    means = simplex(2, 4)
    features, ids = draw(means, 50, 0.1)
    collapse = NeuralCollapse(2)
    collapse.update(features, ids)
    assert collapse.agreement(features, ids, means[:, :, None, None]) == 1
    assert collapse.agreement(features, ids, -means) == 0
    assert np.isnan(collapse.agreement(features, torch.full_like(ids, 9), means))


def test_a_dead_level_is_not_called_collapsed():
    constant, noise = torch.full((30, 4), 0.1), torch.randn(15, 4, dtype=torch.float64).repeat(2, 1)
    for features in (constant, noise, torch.zeros(30, 4)):
        collapse = NeuralCollapse(2)
        collapse.update(features, torch.arange(2).repeat_interleave(15))
        report = collapse.report(weight=torch.ones(2, 4))
        assert report.counts == (15, 15)
        assert np.isnan([report.nc1, report.nc2_equinorm, report.nc2_equiangular, report.nc3]).all()


def test_what_belongs_to_no_class_may_be_anything():
    features, ids = simplex(2, 4).repeat(2, 1), torch.tensor([0, 1, 255, -1])
    features[2:] = torch.nan
    collapse = NeuralCollapse(2)
    collapse.update(features, ids)
    assert collapse.report().counts == (1, 1)
    assert collapse.agreement(features, ids, simplex(2, 4)) == 1


def test_odd_arguments_are_named():
    collapse = NeuralCollapse(3)
    for call, match in (
        (lambda: NeuralCollapse(1), "num_classes must be at least 2"),
        (lambda: NeuralCollapse(2, per_class=0), "per_class must be at least 1"),
        (collapse.report, r"at least two classes must have been seen, got \[\]"),
        (
            lambda: collapse.update(torch.ones(2, 3, 4, 4), torch.ones(2, 4, 4)),
            r"labels must have shape \(2, 1, 4, 4\)",
        ),
        (lambda: collapse.update(torch.full((2, 3), torch.nan), torch.zeros(2)), "features must be finite"),
        (lambda: collapse.update(torch.ones(2), torch.zeros(2)), r"features must be .*, got shape \(2,\)"),
        (lambda: interior_voxels(torch.zeros(3, 3)), "labels must be"),
    ):
        with pytest.raises(ValueError, match=match):
            call()
    collapse.update(torch.ones(2, 3), torch.arange(2))
    with pytest.raises(ValueError, match="features must have 3 channels, as before, got 4"):
        collapse.update(torch.ones(2, 4), torch.arange(2))
    with pytest.raises(ValueError, match="features must have 3 channels, as before, got 4"):
        collapse.agreement(torch.ones(2, 4), torch.arange(2), torch.ones(3, 3))
    with pytest.raises(ValueError, match=r"bias must have shape \(3,\), got \(3, 1\)"):
        collapse.agreement(torch.ones(2, 3), torch.arange(2), torch.ones(3, 3), torch.ones(3, 1))
    with pytest.raises(ValueError, match=r"weight must have shape \(3, 3\), got \(3, 3, 2\)"):
        collapse.report(torch.ones(3, 3, 2))
