"""`filters.py` and `layer_report.py`: what empty, alike and independent filters measure."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from medseg.core.diagnostics import diagnose_filters, diagnose_layers, layer_table, random_entropy, variance_entropy


def random_weight(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_empty_kernels_are_counted_against_the_largest_weight():
    weight = random_weight(4, 5, 3, 3, 3)
    weight[0, :3] = 0.005 * weight.abs().max() * torch.sign(weight[0, :3])
    assert diagnose_filters(weight).sparsity == pytest.approx(3 / 20)
    assert diagnose_filters(100 * weight).sparsity == pytest.approx(3 / 20)
    assert diagnose_filters(torch.zeros(2, 2, 3, 3)).sparsity == 1


def test_entropy_is_that_of_the_explained_variance():
    kernels = random_weight(50, 9).double()
    parts = np.linalg.eigvalsh(np.cov(kernels.numpy().T))
    parts /= parts.sum()
    assert variance_entropy(kernels) == pytest.approx(-(parts * np.log10(parts)).sum(), rel=1e-9)
    assert math.isnan(variance_entropy(torch.ones(5, 9)))
    assert math.isnan(variance_entropy(torch.randn(5, 1)))


def test_random_kernels_have_the_entropy_of_random_ones_and_one_pattern_has_none():
    found = diagnose_filters(random_weight(16, 16, 3, 3, 3))
    assert found.entropy_ratio == pytest.approx(1, abs=0.01)
    pattern, scale = random_weight(3, 3, 3, seed=1), random_weight(16, 16, seed=2)
    found = diagnose_filters(scale[:, :, None, None, None] * pattern)
    assert found.entropy == pytest.approx(0, abs=1e-6)
    assert 0.94 < random_entropy(5000, 9) < math.log10(9)


def test_orthogonal_filters_have_one_and_equal_ones_zero():
    square = torch.linalg.qr(random_weight(27, 27).double())[0]
    assert diagnose_filters(square[:8].reshape(8, 1, 3, 3, 3)).orthogonality == pytest.approx(1)
    same = random_weight(1, 4, 3, 3).expand(6, 4, 3, 3)
    assert diagnose_filters(same).orthogonality == pytest.approx(0, abs=1e-6)
    assert math.isnan(diagnose_filters(random_weight(1, 4, 3, 3)).orthogonality)


def test_a_transposed_layer_has_its_filters_along_the_second_axis():
    weight = random_weight(6, 4, 2, 2)
    swapped = weight.transpose(0, 1).contiguous()
    np.testing.assert_allclose(diagnose_filters(weight, transposed=True), diagnose_filters(swapped), rtol=1e-9)
    with pytest.raises(ValueError, match="at least two axes"):
        diagnose_filters(torch.ones(3))


def test_a_report_has_every_layer_and_names_what_stands_out():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv3d(1, 8, 3), nn.ConvTranspose3d(8, 8, 2), nn.Conv3d(8, 2, 1))
    with torch.no_grad():
        model[0].weight[:6] = 0
        model[1].weight.copy_(random_weight(8, 8)[:, :, None, None, None] * torch.tensor([1.0, 2.0])[:, None, None])
    layers = diagnose_layers(model)
    assert [layer.name for layer in layers] == ["0.weight", "1.weight", "2.weight"]
    assert layers[0].zeros == 0.75
    assert [layer.note for layer in layers] == ["empty kernels, few patterns", "few patterns", ""]
    table = layer_table(layers).splitlines()
    assert len(table) == 5
    assert "| 1.weight | 8 x 8 x 2 x 2 x 2 |" in table[3]
    assert "| - |" in table[4]  # kernels of one voxel have no entropy
