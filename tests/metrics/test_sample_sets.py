"""Metrics of sets of segmentations: golden values, hand-made cases and laws."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.bundle import ConfigParser

import medseg.metrics as metrics
from tests.batteries.common import check_built_from_json

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [ROOT / "tests/golden/pulaski", ROOT.parent / "shared/golden/pulaski"]
GED = {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("ged_*.npz"))}
FUNCTIONS = {
    "BestSampleDiceMetric": metrics.compute_best_sample_dice,
    "BrierScoreMetric": metrics.compute_brier_score,
    "CalibrationErrorMetric": metrics.compute_calibration_error,
    "GeneralizedEnergyDistanceMetric": metrics.compute_generalized_energy_distance,
    "MatchedDiceMetric": metrics.compute_matched_dice,
    "VolumeCoverageMetric": metrics.compute_volume_coverage,
}
EVERY = pytest.mark.parametrize("name", sorted(FUNCTIONS))
BEST = {name: 1.0 if "Dice" in name or "Volume" in name else 0.0 for name in FUNCTIONS}


def make_sets(n: int = 5, m: int = 3, dims: int = 2, seed: int = 0, channels: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shape = (channels, *(6, 5, 4)[:dims])
    return tuple((torch.rand(2, k, *shape, generator=generator) > 0.5).float() for k in (n, m))


@pytest.mark.parametrize("name", sorted(GED))
def test_the_generalised_energy_distance_has_its_golden_values(name):
    with np.load(GED[name]) as file:
        golden = {key: torch.from_numpy(np.asarray(file[key])) for key in file if file[key].dtype.kind != "U"}
    samples, annotations = (golden[key][None, :, None] for key in ("samples", "annotations"))
    value = metrics.compute_generalized_energy_distance(samples, annotations)
    torch.testing.assert_close(value[0, 0].double(), golden["ged_ours_empty_iou1"], rtol=0, atol=1e-6)


def test_disjoint_sets_of_one_mind_are_as_far_apart_as_can_be():
    samples, annotations = torch.zeros(2, 1, 3, 1, 4, 4)
    samples[..., :2], annotations[..., 2:] = 1, 1
    assert metrics.compute_generalized_energy_distance(samples, annotations) == 2


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(2, 3), st.integers(0, 1000))
def test_the_energy_distance_is_symmetric_and_zero_for_a_set_and_itself_in_any_order(n, m, dims, seed):
    samples, annotations = make_sets(n, m, dims, seed)
    distance = metrics.compute_generalized_energy_distance
    torch.testing.assert_close(distance(samples, annotations), distance(annotations, samples))
    torch.testing.assert_close(distance(samples, samples.flip(1)), torch.zeros(2, 2), rtol=0, atol=1e-6)
    repeats = (1, 2, *(1,) * (dims + 1))
    torch.testing.assert_close(distance(samples.repeat(repeats), annotations), distance(samples, annotations))


def test_best_and_matched_dice_differ_where_all_samples_follow_one_expert():
    annotations = torch.zeros(1, 2, 1, 4, 4)
    annotations[:, 0, ..., :2], annotations[:, 1, ..., 2:] = 1, 1
    one_sided = annotations[:, [0, 0]]
    both_and_more = torch.cat([annotations, torch.zeros(1, 1, 1, 4, 4)], dim=1)
    for compute in (metrics.compute_best_sample_dice, metrics.compute_matched_dice):
        assert compute(one_sided, annotations) == 0.5
        assert compute(both_and_more, annotations) == 1
    twice = annotations[:, [0, 0, 1]]  # two experts of one opinion, and samples that hold it once
    assert metrics.compute_best_sample_dice(annotations[:, [0, 1, 1]], twice) == 1
    torch.testing.assert_close(metrics.compute_matched_dice(annotations[:, [0, 1, 1]], twice), torch.tensor([[2 / 3]]))


def test_fewer_samples_than_experts_cannot_be_matched():
    samples, annotations = make_sets(2, 3)
    with pytest.raises(ValueError, match=r"samples must be at least as many as annotations .* got 2 for 3"):
        metrics.compute_matched_dice(samples, annotations)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    assert metrics.compute_matched_dice(samples, annotations, annotation_mask=mask).isfinite().all()


def test_inter_rater_dice_is_the_mean_over_pairs_of_different_experts():
    _, annotations = make_sets(1, 3)
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = torch.stack([metrics.compute_dice(annotations[:, i], annotations[:, j]) for i, j in pairs]).mean(0)
    torch.testing.assert_close(metrics.compute_inter_rater_dice(annotations), expected)
    mask = torch.tensor([[1, 1, 0], [0, 1, 0]])
    masked = metrics.compute_inter_rater_dice(annotations, annotation_mask=mask)
    torch.testing.assert_close(masked[0], metrics.compute_dice(annotations[:1, 0], annotations[:1, 1])[0])
    assert masked[1].isnan().all()


def test_a_perfectly_calibrated_probability_has_no_error_and_the_experts_own_brier_score():
    _, annotations = make_sets(1, 4)
    share = annotations.mean(1, keepdim=True)
    assert metrics.compute_calibration_error(share, annotations).abs().max() < 1e-6
    disagreement = (share * (1 - share)).mean((1, 3, 4))
    torch.testing.assert_close(metrics.compute_brier_score(share, annotations), disagreement)
    assert (metrics.compute_brier_score(share.round(), annotations) > disagreement).all()


def test_bins_decide_which_errors_cancel():
    annotations = torch.zeros(1, 2, 1, 1, 2)
    annotations[..., 1] = 1
    probability = torch.tensor([0.3, 0.7]).view(1, 1, 1, 1, 2)
    one_bin = metrics.compute_calibration_error(probability, annotations, bins=1)
    torch.testing.assert_close(one_bin, torch.tensor([[0.0]]), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        metrics.compute_calibration_error(probability, annotations, bins=2), torch.tensor([[0.3]])
    )


def test_an_interval_covers_the_experts_between_its_quantiles():
    samples = torch.zeros(1, 11, 1, 4, 5)
    for k in range(11):
        samples[:, k].view(1, -1)[:, :k] = 1  # 0 to 10 pixels
    annotations = torch.zeros(1, 4, 1, 4, 5)
    for m, pixels in enumerate((0, 1, 9, 12)):
        annotations[:, m].view(1, -1)[:, :pixels] = 1
    coverage = [metrics.compute_volume_coverage(samples, annotations, interval=i).item() for i in (1.0, 0.8, 0.5)]
    assert coverage == [0.75, 0.5, 0.0]


@EVERY
def test_a_missing_annotation_counts_for_nothing_whatever_it_holds(name):
    samples, annotations = make_sets(4, 3)
    expected = FUNCTIONS[name](samples, annotations[:, :2])
    annotations[:, 2] = torch.nan
    value = FUNCTIONS[name](samples, annotations, annotation_mask=torch.tensor([[1, 1, 0], [1, 1, 0]]))
    torch.testing.assert_close(value, expected)


@EVERY
def test_the_class_gives_what_the_function_gives_for_tensors_and_lists_of_different_length(name):
    samples, annotations = make_sets(4, 3)
    mask = torch.tensor([[1, 1, 1], [1, 0, 1]])
    metric, listed = getattr(metrics, name)(), getattr(metrics, name)()
    expected = FUNCTIONS[name](samples, annotations, annotation_mask=mask)
    torch.testing.assert_close(metric(samples, annotations, annotation_mask=mask), expected)
    torch.testing.assert_close(metric.aggregate(), expected.mean()[None])
    torch.testing.assert_close(listed(list(samples), [annotations[0], annotations[1, [0, 2]]]), expected)
    again = listed(list(samples), list(annotations), annotation_mask=[[1, 1, 1], [1, 0, 1]])
    torch.testing.assert_close(again, expected)


@EVERY
def test_a_case_is_empty_only_if_its_whole_set_is(name):
    one = torch.ones(1, 1, 1, 3, 3)
    some, none = torch.cat([one, 0 * one], dim=1), torch.zeros(1, 2, 1, 3, 3)
    rules = {"both": 5.0, "missed": 6.0, "hallucinated": 7.0}
    found = [FUNCTIONS[name](s, y, empty=rules).item() for s, y in ((none, none), (none, some), (some, none))]
    assert found == [5.0, 6.0, 7.0]
    # The experts' own disagreement, and an interval that leaves out both ends.
    expected = {"BrierScoreMetric": 0.25, "VolumeCoverageMetric": 0.0}.get(name, BEST[name])
    assert FUNCTIONS[name](some, some).item() == pytest.approx(expected)
    assert FUNCTIONS[name](none, none).isnan()


@EVERY
def test_json_builds_the_class(name):
    cls, everything = getattr(metrics, name), {"reduction": "mean_batch", "empty": {"both": "best"}, "spacing": [1, 2]}
    check_built_from_json(cls, everything)
    config = json.loads(json.dumps({"metric": {"_target_": f"medseg.metrics.{name}", **everything}}))
    assert isinstance(ConfigParser(config).get_parsed_content("metric"), cls)


@EVERY
def test_what_does_not_fit_is_refused(name):
    samples, annotations = make_sets(4, 3)
    compute = FUNCTIONS[name]
    with pytest.raises(ValueError, match=r"samples must have shape \(B, N, C, H, W\)"):
        compute(samples[0], annotations)
    with pytest.raises(ValueError, match=r"samples have shape \(2, 4, 2, 6, 5\), but annotations \(2, 3, 1, 6, 5\)"):
        compute(samples, annotations[:, :, :1])
    with pytest.raises(ValueError, match=r"annotation_mask must have shape \(2, 3\), got \(2, 4\)"):
        compute(samples, annotations, annotation_mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match="leaves item 1 of the batch without an annotation"):
        compute(samples, annotations, annotation_mask=torch.tensor([[1, 1, 1], [0, 0, 0]]))
    with pytest.raises(ValueError, match="annotations must hold 0 and 1 only"):
        compute(samples, annotations / 2)
    with pytest.raises(ValueError, match=r"samples must hold .*(0 and 1|in \[0, 1\])"):
        compute(3 * samples, annotations)


def test_options_out_of_range_are_refused():
    samples, annotations = make_sets()
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        metrics.compute_calibration_error(samples, annotations, bins=0)
    with pytest.raises(ValueError, match=r"interval must be in \(0, 1\], got 0"):
        metrics.compute_volume_coverage(samples, annotations, interval=0.0)
