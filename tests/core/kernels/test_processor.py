from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from medseg.core.kernels import processor
from medseg.core.kernels.processor import compiled, dot, exp_below_zero, keep_larger, share


@compiled
def fill(x, y):
    for i in range(len(x)):
        y[i] = exp_below_zero(x[i])


def test_exponentials_are_exact_to_two_units_in_the_last_place():
    x = -np.concatenate([np.linspace(0, 87, 200001), np.logspace(-30, 1, 1001)]).astype(np.float32)
    y = np.empty_like(x)
    fill(x, y)
    want = np.exp(x.astype(np.float64))
    assert np.abs(y / want - 1).max() < 2 * np.finfo(np.float32).eps


def test_exponentials_of_infinity_and_nan_are_zero_and_nan():
    x = np.array([-np.inf, -1e30, np.nan, 0], np.float32)
    y = np.empty_like(x)
    fill(x, y)
    assert (y[:2] == 0).all()
    assert np.isnan(y[2])
    assert y[3] == 1


def test_a_dot_product_counts_the_first_entries():
    a = np.arange(5, dtype=np.float32)
    assert dot(a, a, 4) == 14


def test_the_larger_of_two_rows_is_kept_and_nan_in_the_first_gives_way():
    top = np.array([1, 5, np.nan, -np.inf, 9], np.float32)
    keep_larger(top, np.array([3, 2, 4, -1, 99], np.float32), 4)
    assert top.tolist() == [3, 5, 4, -1, 9]


def test_a_change_of_any_file_beside_it_makes_compiled_code_stale():
    file = getattr(getattr(dot, "_cache", None), "_cache_file", None)
    if file is None:
        pytest.skip("no cache on disk is possible here")
    assert file._source_stamp[1] == processor._STAMP


@pytest.mark.parametrize("parts", [0, 1, 2, 7])
def test_every_part_is_worked_on_once_whatever_the_threads(parts):
    threads, lock, done = torch.get_num_threads(), threading.Lock(), []

    def work(first, last):
        with lock:
            done.extend(range(first, last))

    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            done.clear()
            share(work, parts)
            assert sorted(done) == list(range(parts))
    finally:
        torch.set_num_threads(threads)


def test_an_error_in_a_thread_is_raised():
    def work(first, last):
        if last == 4:
            raise ValueError("the last part failed")

    with pytest.raises(ValueError, match="the last part failed"):
        share(work, 4)
