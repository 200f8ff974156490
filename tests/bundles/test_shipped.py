"""The bundles in configs/ pass the project's own check."""

from __future__ import annotations

from pathlib import Path

import pytest

from medseg.bundles import check_bundle

SHIPPED = sorted(p for p in (Path(__file__).parents[2] / "configs").iterdir() if p.is_dir())


@pytest.mark.parametrize("bundle", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_bundle_has_no_findings(bundle):
    assert check_bundle(bundle) == []
