"""Pictures of scaling laws and extrapolated curves."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from medseg.core.scaling import CurveExtrapolator, PowerLawOffset
from medseg.report import draw_annotation_budget, draw_extrapolation

CASES = np.array([10.0, 20, 40, 80, 160])


def make_fit():
    return PowerLawOffset().fit(CASES, 0.08 + 0.9 * CASES**-0.5, bootstrap=50)


def test_both_pictures_are_written_whole(tmp_path):
    pytest.importorskip("matplotlib")
    draw_annotation_budget(tmp_path / "a.png", make_fit(), target=0.86, largest=1e9, truth=(300, 0.86))
    t = np.arange(1, 20)
    posterior = CurveExtrapolator(100, moves=10).fit(t, 0.8 - 0.5 / t, 50)
    draw_extrapolation(tmp_path / "b.png", t, 0.8 - 0.5 / t, posterior, incumbent=0.7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_other_formats_are_refused_and_a_missing_matplotlib_names_the_extra(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"must end in \.png"):
        draw_annotation_budget(tmp_path / "a.pdf", make_fit())
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"medseg\[plot\]"):
        draw_annotation_budget(tmp_path / "a.png", make_fit())
