"""Time separation: what was flowing comes back at any time, as long as it flows as the functions of time can say."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.data import ConeBeamScan, PerfusionScan, make_abdomen_phantom
from medseg.data.time_separation import contrast_curve

STILL = ConeBeamScan(views=45, photons=1e9)


@pytest.fixture(scope="module")
def flowing() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    options = {"shape": (40, 40, 1), "spacing": (9.0, 9.0, 30.0), "noise": 0.0}
    rest, label = make_abdomen_phantom(**options, contrast=0)
    return rest, make_abdomen_phantom(**options, contrast=1)[0] - rest, label


def test_without_flow_all_but_the_constant_image_vanish(flowing):
    rest, _, label = flowing
    images = PerfusionScan(STILL, sweeps=5).simulate(rest, [], [], spacing=9.0)
    assert images.shape == (3, 40, 40, 1)
    assert np.abs(images[1:]).mean() < 2
    assert images[0][label == 1].mean() == pytest.approx(rest[label == 1].mean(), abs=15)


def test_the_liver_follows_its_contrast_curve(flowing):
    rest, uptake, label = flowing
    perfusion = PerfusionScan(STILL, sweeps=8, components=5)
    images = perfusion.simulate(rest, [uptake], [16.0], spacing=9.0)
    before = perfusion.image_at(images, 0.0)[label == 1].mean()
    for time in (8.0, 16.0, 30.0):
        rise = perfusion.image_at(images, time)[label == 1].mean() - before
        expected = contrast_curve(np.array([time]), 16.0)[0] * uptake[label == 1].mean()
        assert rise == pytest.approx(expected, abs=0.12 * float(uptake[label == 1].mean()))


def test_sweeps_run_back_and_forth_without_a_pause():
    times = PerfusionScan(STILL, sweeps=3, seconds=4.0).view_times()
    assert times.shape == (3, 45)
    assert (np.diff(times[0]) > 0).all()
    assert (np.diff(times[1]) < 0).all()
    np.testing.assert_allclose(np.diff(np.sort(times.ravel())), 4 / 45)


def test_motion_between_sweeps_spoils_the_images_of_flow(flowing):
    rest, uptake, _ = flowing
    for_each = []
    for motion in (0.0, 10.0):
        arm = ConeBeamScan(views=45, photons=1e9, motion=motion)
        for_each.append(PerfusionScan(arm, sweeps=5).simulate(rest, [0 * uptake], [16.0], spacing=9.0)[1:].std())
    assert for_each[1] > 5 * for_each[0]


def test_what_does_not_fit_is_refused(flowing):
    rest, uptake, _ = flowing
    with pytest.raises(ValueError, match=r"components must be in \[1, sweeps = 2\], got 3"):
        PerfusionScan(STILL, sweeps=2)
    with pytest.raises(ValueError, match="seconds must be positive, got 0"):
        PerfusionScan(STILL, seconds=0)
    with pytest.raises(ValueError, match="uptakes must be as many arrays as peaks, 1"):
        PerfusionScan(STILL).simulate(rest, [uptake, uptake], [16.0], spacing=9.0)
    with pytest.raises(ValueError, match="peak must be positive"):
        contrast_curve(np.zeros(1), 0.0)
