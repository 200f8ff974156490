"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

# Workers of one run share the cores: more threads than one each would wait for each other. Read when torch is imported.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED_DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real development data beside the checkout; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("needs the development data in ../shared/data, which is not here")
    return SHARED_DATA


@pytest.fixture(autouse=True)
def _no_bundles_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep bundles that the user set up out of the tests."""
    monkeypatch.delenv("MEDSEG_BUNDLES", raising=False)


@pytest.fixture(scope="session")
def _cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _no_cache_of_the_user(monkeypatch: pytest.MonkeyPatch, _cache_of_the_session: Path) -> None:
    """Keep converted networks of the tests out of the user's cache folder."""
    monkeypatch.setenv("MEDSEG_CACHE", str(_cache_of_the_session))


@pytest.fixture
def oblique_affine() -> np.ndarray:
    """Affine of a rotated, anisotropic grid with the first axis running right to left."""
    angle = np.deg2rad(20)
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = rotation @ np.diag([-0.9, 1.1, 1.6])
    affine[:3, 3] = (21.5, -13.25, 7.0)
    return affine


@pytest.fixture
def make_nifti(tmp_path: Path) -> Callable[..., Path]:
    """Factory that writes an array as NIfTI below the test's folder and returns the path."""

    def write(name: str, array: np.ndarray, affine: np.ndarray | None = None, **header: Any) -> Path:
        image = nib.Nifti1Image(array, np.eye(4) if affine is None else affine)
        for field, value in header.items():
            image.header[field] = value
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        return path

    return write
