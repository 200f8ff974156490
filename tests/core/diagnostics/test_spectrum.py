"""`medseg/core/diagnostics/spectrum.py`: golden exponents, shapes, layers of every kind."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medseg.core.diagnostics import farms_eigenvalues, hill_alpha, layer_alpha, layer_alphas, learning_rate_scales
from tests.core.compress.golden import find_golden, load_golden


@pytest.mark.parametrize("path", find_golden("farms_alpha_*.npz"), ids=lambda path: path.stem)
def test_exponents_are_the_golden_ones(path):
    golden = load_golden(path)
    matrix = torch.from_numpy(golden["W"])
    assert hill_alpha(torch.linalg.svdvals(matrix).square()) == pytest.approx(float(golden["alpha_full"]), rel=1e-10)
    shape = {"rows": int(golden["num_row_samples"]), "positions": int(golden["ops_per_dim"])}
    found = farms_eigenvalues(matrix, aspect=float(golden["Q"]), **shape)
    np.testing.assert_allclose(found, np.sort(golden["farms_eigs"]), rtol=1e-8, atol=1e-11)
    assert hill_alpha(found) == pytest.approx(float(golden["alpha_farms"]), rel=1e-10)
    assert layer_alpha(matrix, **shape) == pytest.approx(float(golden["alpha_farms"]), rel=1e-10)
    found = layer_alpha(torch.from_numpy(golden["Wconv"]), keep_rest=False)
    assert found == pytest.approx(float(golden["alpha_conv_farms"]), rel=1e-10)


@settings(deadline=None, max_examples=25)
@given(alpha=st.floats(1.5, 6), scale=st.floats(1e-6, 1e6), seed=st.integers(0, 99))
def test_the_exponent_of_a_power_law_comes_out_whatever_the_scale(alpha, scale, seed):
    # Density x^-alpha above 1; what is below the median has no part.
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values = scale * (1 - uniform) ** (-1 / (alpha - 1))
    assert hill_alpha(values) == pytest.approx(alpha, rel=0.06)


def test_an_exponent_needs_two_values_above_zero():
    assert math.isnan(hill_alpha(torch.tensor([])))
    assert math.isnan(hill_alpha(torch.zeros(5)))
    assert math.isnan(hill_alpha(torch.ones(5)))
    assert hill_alpha(torch.tensor([0.0, 0.0, 1.0, 2.0, 4.0, 8.0])) == pytest.approx(
        hill_alpha(torch.tensor([1.0, 2, 4, 8]))
    )


@pytest.mark.parametrize("kernel", [(3,), (3, 3), (3, 3, 3), (1, 1, 1)])
@pytest.mark.parametrize("shape", [(16, 32), (32, 16), (12, 20)])
def test_a_transposed_layer_has_the_exponent_of_the_plain_one(kernel, shape):
    weight = torch.randn(*shape, *kernel, generator=torch.Generator().manual_seed(0))
    plain = layer_alpha(weight)
    assert layer_alpha(weight.transpose(0, 1).contiguous()) == pytest.approx(plain, rel=1e-9)
    assert layer_alpha(8 * weight) == pytest.approx(plain, rel=1e-9)


def test_places_of_a_kernel_in_3d_are_pooled():
    weight = torch.randn(8, 8, 3, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    places = [torch.linalg.svdvals(weight[:, :, i, j, k]) for i in range(3) for j in range(3) for k in range(3)]
    assert layer_alpha(weight) == pytest.approx(hill_alpha(torch.cat(places) ** 2), rel=1e-10)


def test_channels_beyond_a_multiple_count():
    weight = torch.randn(20, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    changed = weight.clone()
    changed[16:] *= torch.logspace(0, 3, 4)[:, None, None, None]
    assert layer_alpha(changed) != pytest.approx(layer_alpha(weight), rel=1e-3)
    assert layer_alpha(changed, keep_rest=False) == layer_alpha(weight, keep_rest=False) == layer_alpha(weight[:16])


def test_random_layers_of_all_shapes_have_nearly_one_exponent():
    torch.manual_seed(0)
    square, wide = layer_alpha(torch.randn(32, 32, 3, 3, 3)), layer_alpha(torch.randn(32, 128, 3, 3, 3))
    assert wide == pytest.approx(square, rel=0.05)
    unequal = hill_alpha(torch.linalg.svdvals(torch.randn(32, 128 * 27)).square())
    assert unequal > 2 * square  # without windows the shape decides


def test_a_network_has_an_exponent_for_every_matrix():
    model = nn.Sequential(
        nn.Conv3d(1, 8, 3), nn.InstanceNorm3d(8, affine=True), nn.ConvTranspose3d(8, 4, 2), nn.Linear(4, 3)
    )
    found = layer_alphas(model)
    assert list(found) == ["0.weight", "2.weight", "3.weight"]
    assert found["2.weight"] == layer_alpha(model[2].weight.transpose(0, 1))
    assert math.isnan(layer_alpha(torch.ones(1, 1, 1, 1)))
    half_empty = torch.cat([model[2].weight.detach()[:4], torch.zeros(4, 4, 2, 2, 2)])
    assert layer_alpha(half_empty) == layer_alpha(half_empty[:4])


def test_learning_rates_rise_with_the_exponent_and_unknown_ones_stay():
    scales = learning_rate_scales({"a": 3.0, "b": float("nan"), "c": 5.0, "d": 3.5})
    assert scales == pytest.approx({"a": 0.5, "b": 1.0, "c": 1.5, "d": 0.75})
    assert learning_rate_scales({"a": 2.0, "b": 2.0}) == {"a": 1.0, "b": 1.0}
    with pytest.raises(ValueError, match="0 < low <= high"):
        learning_rate_scales({}, low=2.0)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: farms_eigenvalues(torch.ones(2, 2, 2)), "matrix must have two axes"),
        (lambda: farms_eigenvalues(torch.ones(2, 2), rows=0), "rows must be a whole number"),
        (lambda: layer_alpha(torch.ones(3)), "weight must have at least two axes"),
    ],
)
def test_wrong_shapes_are_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()
