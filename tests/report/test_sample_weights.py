"""Tests of `medseg.report.sample_weights`."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medseg.report import draw_sample_weights, summarise_sample_weights

pairs = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=20)


@settings(deadline=None, max_examples=25)
@given(pairs)
def test_auc_is_the_share_of_pairs_in_the_right_order_with_ties_counted_half(samples):
    weights, dense = (np.array(part) for part in zip(*samples, strict=True))
    found = summarise_sample_weights(weights, dense)["auc"]
    if dense.all() or not dense.any():
        assert np.isnan(found)
    else:
        difference = weights[dense][:, None] - weights[~dense]
        assert found == pytest.approx(np.mean((difference > 0) + 0.5 * (difference == 0)))


def test_groups_are_described_apart_and_an_empty_one_is_nan():
    found = summarise_sample_weights(np.array([0.0, 0.5, 1.0]), np.array([True, True, True]))
    assert (found["dense_samples"], found["dense_mean"], found["dense_median"]) == (3, 0.5, 0.5)
    assert (found["dense_q25"], found["dense_q75"]) == (0.25, 0.75)
    assert found["sparse_samples"] == 0
    assert np.isnan(found["sparse_mean"])
    with pytest.raises(ValueError, match=r"one shape \(n,\)"):
        summarise_sample_weights(np.zeros(3), np.zeros(2, bool))


def test_the_picture_is_written_whole_where_matplotlib_is(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        {"epoch": e, **summarise_sample_weights(np.array([0.5, 0.5 - e / 9]), np.array([True, False]))}
        for e in (1, 2, 3)
    ]
    draw_sample_weights(tmp_path / "weights.png", rows)
    assert (tmp_path / "weights.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 1


def test_without_matplotlib_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"medseg\[plot\]"):
        draw_sample_weights(tmp_path / "weights.png", [])
