"""Norms with `sync` on two ranks with gloo learn what one process learns from the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.core.norm.train_on_ranks import NORMS, train_all
from tests.core.two_ranks import run_two_ranks

PROGRAM = Path(__file__).with_name("train_on_ranks.py")


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What each of two ranks ended with, and one process alone."""
    return run_two_ranks(PROGRAM, tmp_path_factory.mktemp("ranks")), train_all(0, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="gloo is tested on POSIX systems")
@pytest.mark.parametrize("name", NORMS)
def test_two_ranks_have_the_weights_statistics_and_gradients_of_one(ends, name):
    (first, second), alone = ends
    assert any(key.startswith("gradient of 0") for key in alone[name])
    for key, want in alone[name].items():
        assert torch.equal(first[name][key], second[name][key])
        # A rank's loss is the mean of its own half: gradients within it are twice those of the whole batch, until DDP
        # takes their mean.
        factor = 2 if "grad_stat" in key or "window_backward" in key else 1
        torch.testing.assert_close(first[name][key], factor * want, rtol=1e-4, atol=1e-6)
