"""Self-distillation with labels, on kernel ridge regression, where all is known."""

from __future__ import annotations

import pytest
import torch

from medseg.core.distill import best_label_weight, mix_targets


def ridge(count=40, strength=0.5, seed=0):
    """The matrix that turns targets into fitted values."""
    x = torch.linspace(0, 3, count, dtype=torch.float64)
    kernel = torch.exp(-((x[:, None] - x) ** 2))
    return kernel, kernel @ torch.linalg.inv(kernel + strength * torch.eye(count, dtype=torch.float64))


def test_rounds_settle_where_one_fit_with_a_regularisation_1_over_alpha_times_as_strong_would():
    kernel, smooth = ridge()
    y = torch.rand(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    alpha, fitted = 0.4, smooth @ y
    for _ in range(200):
        fitted = smooth @ mix_targets(y, fitted, alpha)
    stronger = kernel @ torch.linalg.inv(kernel + 0.5 / alpha * torch.eye(40, dtype=torch.float64)) @ y
    torch.testing.assert_close(fitted, stronger)
    collapsed, strong = y, ridge(strength=5.0)[1]
    for _ in range(100):
        collapsed = strong @ mix_targets(y, collapsed, 0.0)
    assert collapsed.norm() < 1e-3 * y.norm()


def test_the_best_weight_of_noisy_labels_is_that_of_the_smallest_error_on_clean_ones():
    _, smooth = ridge(strength=0.05)
    generator = torch.Generator().manual_seed(1)
    clean = torch.sin(torch.linspace(0, 3, 40, dtype=torch.float64))
    noisy = clean + 0.5 * torch.randn(40, generator=generator, dtype=torch.float64)
    before = smooth @ noisy
    found = best_label_weight(clean, smooth @ noisy, smooth @ before)
    tried = torch.linspace(0, 1, 101)
    errors = [(smooth @ mix_targets(noisy, before, float(a)) - clean).square().sum() for a in tried]
    assert found == pytest.approx(float(tried[int(torch.stack(errors).argmin())]), abs=0.01)


def test_the_weight_stays_within_0_and_1_and_is_1_where_nothing_is_to_choose():
    y, b = torch.ones(4), torch.zeros(4)
    assert best_label_weight(y, b + 0.5, b) == 1
    assert best_label_weight(y, b - 0.5, b) == 0
    assert best_label_weight(y, b, b) == 1


def test_outputs_get_no_gradient_and_keep_their_type():
    outputs = torch.rand(1, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    mixed = mix_targets(torch.ones(1, 2, 3, 3, dtype=torch.uint8), outputs, 0.25)
    assert mixed.dtype == torch.float64
    assert not mixed.requires_grad


def test_odd_arguments_are_named():
    with pytest.raises(ValueError, match="make class ids one-hot first"):
        mix_targets(torch.ones(1, 1, 2), torch.ones(1, 3, 2), 0.5)
    with pytest.raises(ValueError, match="alpha must be a weight within 0 and 1, got 2"):
        mix_targets(torch.ones(2), torch.ones(2), 2)
    with pytest.raises(ValueError, match="must have the same shape"):
        best_label_weight(torch.ones(2), torch.ones(3), torch.ones(2))
    with pytest.raises(ValueError, match="must be finite"):
        best_label_weight(torch.ones(2), torch.full((2,), torch.nan), torch.ones(2))
