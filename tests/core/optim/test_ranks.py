"""Training on two ranks with gloo ends with the weights of training on one with the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from tests.core.optim.train_on_ranks import OPTIMIZERS, train_all
from tests.core.two_ranks import run_two_ranks

PROGRAM = Path(__file__).with_name("train_on_ranks.py")


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """What each of two ranks ended with, and one process alone."""
    return run_two_ranks(PROGRAM, tmp_path_factory.mktemp("ranks")), train_all(0, 1)


@pytest.mark.skipif(sys.platform == "win32", reason="gloo is tested on POSIX systems")
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_ranks_stay_together_and_do_what_one_does(ends, name):
    (first, second), alone = ends
    for key in alone[name]:
        assert torch.equal(first[name][key], second[name][key])
        if name == "surrogate":  # its batch size is the rank's own, as is the gradient of its mean loss
            continue
        torch.testing.assert_close(first[name][key], alone[name][key], rtol=1e-4, atol=1e-5)
