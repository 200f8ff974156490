"""The picture of schedules."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from medseg.report import draw_schedule


@pytest.mark.parametrize("log", [False, True])
def test_schedules_of_different_lengths_are_drawn_whole(tmp_path, log):
    pytest.importorskip("matplotlib")
    draw_schedule(tmp_path / "s.png", {"linear": np.linspace(1, 0, 50), "constant": np.ones(20)}, log=log)
    assert np.ptp(np.asarray(Image.open(tmp_path / "s.png").convert("L"))) > 100
    assert [path.name for path in tmp_path.iterdir()] == ["s.png"]


def test_nothing_to_draw_and_other_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match="schedules is empty"):
        draw_schedule(tmp_path / "s.png", {})
    with pytest.raises(ValueError, match=r"must end in \.png"):
        draw_schedule(tmp_path / "s.pdf", {"a": [1.0]})


def test_without_matplotlib_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(ImportError, match=r"medseg\[plot\]"):
        draw_schedule(tmp_path / "s.png", {"a": [1.0]})
