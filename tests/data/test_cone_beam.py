"""A simulated C-arm: a perfect one gives the volume back, and every flaw does what it is known for."""

from __future__ import annotations

import numpy as np
import pytest

from medseg.data import ConeBeamScan, add_metal, make_abdomen_phantom

PERFECT = {"views": 90, "photons": 1e8}


def water(size: int = 48) -> np.ndarray:
    grid = np.hypot(*np.mgrid[-(size // 2) : size // 2, -(size // 2) : size // 2])
    return np.where(grid < 0.35 * size, 0.0, -1000.0)[..., None]


def scan(volume: np.ndarray, **options) -> np.ndarray:
    return ConeBeamScan(**{**PERFECT, **options}).simulate(volume, spacing=6.0, seed=0)


def middle(image: np.ndarray) -> float:
    n = image.shape[0] // 2
    return float(image[n - 4 : n + 4, n - 4 : n + 4].mean())


def rim(image: np.ndarray) -> float:
    grid = np.hypot(*np.mgrid[-24:24, -24:24])
    return float(image[(grid > 12) & (grid < 14)].mean())


def test_a_perfect_scan_gives_the_densities_back():
    seen = scan(water())
    assert middle(seen) == pytest.approx(0, abs=10)
    assert rim(seen) == pytest.approx(0, abs=10)
    assert seen[:4, :4].mean() == pytest.approx(-1000, abs=20)
    assert seen.dtype == np.float32


def test_slices_that_are_not_square_stay_in_place():
    volume, _ = make_abdomen_phantom((40, 32, 1), spacing=(10, 10, 30), noise=0)
    seen = scan(volume)
    assert seen.shape == volume.shape
    assert np.corrcoef(seen.ravel(), volume.ravel())[0, 1] > 0.97


@pytest.mark.parametrize("flaw", [{"scatter": 0.5}, {"hardening": 0.05}])
def test_scatter_and_hardening_darken_the_middle_more_than_the_rim(flaw):
    seen = scan(water(), **flaw)
    assert middle(seen) < -20
    assert middle(seen) < rim(seen) - 10


def test_few_photons_few_views_a_short_sweep_motion_and_truncation_each_add_errors():
    volume, _ = make_abdomen_phantom((48, 48, 1), spacing=(8, 8, 30), noise=0)
    best = np.abs(scan(volume) - volume).mean()
    flaws = [{"photons": 1e3}, {"views": 15}, {"sweep": 120.0}, {"motion": 12.0}, {"field_of_view": 150.0}]
    for flaw in flaws:
        assert np.abs(scan(volume, **flaw) - volume).mean() > 1.2 * best, flaw


def test_a_truncated_scan_is_right_where_the_detector_sees():
    volume = water()
    whole, cut = scan(volume), scan(volume, field_of_view=180.0)
    assert abs(middle(cut) - middle(whole)) < 150
    assert np.abs(cut - whole)[:6].mean() > 0


def test_metal_leaves_streaks_far_from_itself():
    volume = water()
    metal = add_metal(volume, volume > -10, pieces=2, seed=1)
    assert (metal != volume).sum() > 2
    assert (volume <= 0).all(), "the volume itself was changed"
    clean, streaky = (scan(v, photons=1e5, hardening=0.05) for v in (volume, metal))
    far = (metal == volume) & (volume == 0)
    assert streaky[far].std() > 2 * clean[far].std()


def test_a_scan_is_the_same_for_the_same_seed_and_differs_for_another():
    flawed = ConeBeamScan(views=20, photons=1e4, motion=5)
    first, again, other = (flawed.simulate(water(), spacing=6.0, seed=s) for s in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"views": 1}, "views must be at least 2"),
        ({"sweep": 200}, r"sweep in \(0, 180\], got 120 and 200"),
        ({"photons": 0}, "photons and field_of_view must be positive"),
        ({"motion": -1}, "motion must be 0 or more, got -1"),
    ],
)
def test_what_no_arm_can_do_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ConeBeamScan(**options)


def test_wrong_volumes_and_masks_are_refused():
    with pytest.raises(ValueError, match=r"volume must have axes \(X, Y, Z\)"):
        ConeBeamScan().simulate(np.zeros((8, 8)), spacing=1.0)
    with pytest.raises(ValueError, match="inside must be a non-empty mask"):
        add_metal(np.zeros((8, 8, 1)), np.zeros((8, 8, 1), bool))
    with pytest.raises(ValueError, match="field_of_view must span at least 2 voxels"):
        ConeBeamScan(views=4, field_of_view=1.0).simulate(np.zeros((16, 16, 1)), spacing=6.0)
