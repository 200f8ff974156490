"""Tests of `medseg.report.adaptation`."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medseg.report import draw_adaptation


def epoch(number: int, share: float, loss: float | None = 1.0) -> dict:
    ratios = {f"{kind}_ratio": [1 - s, s] for kind, s in (("expected", 0.1), ("soft", share), ("hard", share / 2))}
    return {"epoch": number, "loss": loss, "entropy": 0.5 / number, "kl": 0.2 / number, **ratios}


def test_a_panel_for_the_terms_and_one_for_each_class(tmp_path):
    history = [epoch(n, 0.02 * n) for n in range(1, 6)]
    with Image.open(draw_adaptation(tmp_path / "a" / "report.png", history, {0: "background", 1: "vessel"})) as page:
        assert page.size == (840, 220)
        pixels = np.asarray(page)
    assert (pixels[:, 420:] == (230, 159, 0)).all(-1).sum() > 100  # the hard ratio in the colour of label 1
    assert (pixels[:, :420] == (213, 94, 0)).all(-1).sum() > 100


def test_one_epoch_and_one_channel_can_be_drawn(tmp_path):
    alone = epoch(1, 0.1, loss=None) | {f"{kind}_ratio": [0.1] for kind in ("expected", "soft", "hard")}
    with Image.open(draw_adaptation(tmp_path / "report.png", [alone], {1: "vessel"})) as page:
        assert page.size == (840, 220)


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(ValueError, match="history is empty"):
        draw_adaptation(tmp_path / "report.png", [], {1: "vessel"})
    with pytest.raises(ValueError, match=r"must end in \.png"):
        draw_adaptation(tmp_path / "report.pdf", [epoch(1, 0.1)], {1: "vessel"})
