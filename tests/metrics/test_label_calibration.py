"""Calibration of label maps: golden values, regions, bins, and what has no value."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from medseg.metrics import compute_brier_score, compute_calibration_error, compute_label_calibration

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = (ROOT / "tests" / "golden" / "calibration", ROOT.parent / "shared" / "golden" / "calibration")
FILES = sorted({path.name: path for folder in FOLDERS for path in folder.glob("*.npz")}.values())


def make_case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(2, 1, 12, 12, 8, dtype=torch.int64)
    labels[:, :, 3:9, 3:9] = 1
    labels[1, :, 5:7, 5:7] = 2
    logits = torch.randn(2, 3, 12, 12, 8, generator=generator)
    return (logits + 3 * torch.nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1)).softmax(1), labels


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_values_are_met(path):
    with np.load(path) as file:
        golden = dict(file)
    p = torch.from_numpy(golden["logits"]).softmax(1).T[None, :, None]
    found = compute_label_calibration(p, torch.from_numpy(golden["labels"])[None, None, None])
    assert found["ece"].item() == pytest.approx(float(golden["ece15"]), rel=1e-9)
    assert found["brier"].item() == pytest.approx(float(golden["brier_sum"]), rel=1e-9)
    assert found["nll"].item() == pytest.approx(float(golden["nll_at_1"]), rel=1e-9)


def test_measures_by_channel_agree_with_those_against_experts():
    p, labels = make_case()
    onehot = torch.nn.functional.one_hot(labels[:, 0], 3).movedim(-1, 1)[:, None]
    found = compute_label_calibration(p, labels)
    errors, brier = (f(p[:, None], onehot) for f in (compute_calibration_error, compute_brier_score))
    torch.testing.assert_close(found["classwise_ece"][1], errors[1].double().mean(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["brier"][1], brier[1].double().sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("region", ["predicted", "foreground", "boundary"])
def test_regions_hold_the_voxels_they_name(region):
    p, labels = make_case()
    # Far from labels, borders and best classes of foreground, probabilities do not count.
    changed, spared = p.clone(), torch.ones_like(labels, dtype=torch.bool)
    spared[:, :, 1:11, 1:11] = False
    calm = spared & (p.argmax(1, keepdim=True) == 0)
    changed[:, 0:1][calm], changed[:, 1:2][calm], changed[:, 2:3][calm] = 0.5, 0.3, 0.2
    before, after = (compute_label_calibration(q, labels, region=region, width=1) for q in (p, changed))
    for name, values in before.items():
        assert torch.equal(values, after[name])
    everywhere = [compute_label_calibration(q, labels)["nll"] for q in (p, changed)]
    assert not torch.equal(*everywhere)


def test_a_wrong_foreground_counts_as_foreground():
    p = torch.tensor([0.1, 0.9]).reshape(1, 2, 1, 1).expand(1, 2, 4, 4)
    found = compute_label_calibration(p, torch.zeros(1, 1, 4, 4, dtype=torch.uint8), region="foreground")
    assert found["ece"].item() == pytest.approx(0.9)


def test_perfect_probabilities_are_calibrated_where_they_choose_the_voxels():
    generator = torch.Generator().manual_seed(0)
    p = (2 * torch.randn(1, 3, 80, 80, 10, generator=generator)).softmax(1)
    labels = torch.multinomial(p[0].flatten(1).T, 1, generator=generator).reshape(1, 1, 80, 80, 10)
    errors = {
        r: compute_label_calibration(p, labels, region=r)["ece"].item() for r in ("all", "predicted", "foreground")
    }
    assert max(errors["all"], errors["predicted"]) < 0.01
    assert errors["foreground"] > 0.03


def test_a_region_without_voxels_has_no_value():
    p = torch.tensor([0.9, 0.1]).reshape(1, 2, 1, 1).expand(1, 2, 4, 4)
    found = compute_label_calibration(p, torch.zeros(1, 1, 4, 4, dtype=torch.uint8), region="boundary")
    assert all(values.isnan().all() for values in found.values())


def test_an_impossible_label_costs_a_finite_likelihood():
    p = torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).expand(1, 2, 4, 4)
    assert compute_label_calibration(p, torch.ones(1, 1, 4, 4, dtype=torch.uint8))["nll"].isfinite().all()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"region": "edges"}, "region must be one of all, predicted, foreground, boundary, got 'edges'"),
        ({"bins": 0}, "bins must be at least 1"),
        ({"probabilities": torch.full((2, 3, 12, 12, 8), 1.5)}, "take the softmax"),
        ({"probabilities": torch.zeros(2, 1, 12, 12, 8)}, "C of 2 or more"),
        ({"labels": torch.full((2, 1, 12, 12, 8), 3)}, "labels must lie in 0 to 2"),
        ({"labels": torch.zeros(2, 12, 12, 8)}, "labels must be integers of shape"),
    ],
)
def test_odd_input_is_refused(change, match):
    p, labels = make_case()
    with pytest.raises(ValueError, match=match):
        compute_label_calibration(**{"probabilities": p, "labels": labels, **change})
