"""Voxel for voxel the pairs of the authors' C++ code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medseg.topology import betti_matching

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = [ROOT / "tests/golden/betti_matching", ROOT.parent / "shared/golden/betti_matching"]
CASES = {path.stem: path for folder in FOLDERS for path in sorted(folder.glob("[23]d_*.npz"))}


@pytest.mark.parametrize("strict", [False, True], ids=["all", "positive"])
@pytest.mark.parametrize("filtration", ["superlevel", "sublevel"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_pairs_are_those_of_the_published_code(name, filtration, strict):
    with np.load(CASES[name]) as file:
        golden = dict(file)
    prefix = f"{filtration}/strict" if strict else filtration
    if f"{prefix}/dim0/matched" not in golden:
        pytest.skip("the strict rule was recorded for small images only")
    results = betti_matching(
        golden["pred"], golden["target"], filtration=filtration, image_bars="positive" if strict else "all"
    )
    for dim, result in enumerate(results):
        assert (result.dim, result.filtration) == (dim, filtration)
        for field in ("matched",) if strict else ("matched", "unmatched_pred", "unmatched_target"):
            expected = golden[f"{prefix}/dim{dim}/{field}"]
            found = getattr(result, field)
            assert found.shape == (len(expected), 4 if field == "matched" else 2, golden["pred"].ndim)
            np.testing.assert_array_equal(found.reshape(expected.shape), expected)


def test_there_are_golden_cases():
    assert len(CASES) >= 13
