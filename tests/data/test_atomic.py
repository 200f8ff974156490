"""Files appear whole or not at all."""

from __future__ import annotations

import pytest

from medseg.data import atomic_path


def test_the_ending_stays_so_that_writers_know_the_format(tmp_path):
    with atomic_path(tmp_path / "mask.nii.gz") as part:
        assert part.name.startswith(".mask.")
        assert part.name.endswith(".part.nii.gz")
        part.write_text("x")
    assert (tmp_path / "mask.nii.gz").read_text() == "x"


def test_an_error_leaves_the_earlier_file_and_no_debris(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("earlier")

    def write_half() -> None:
        with atomic_path(target) as part:
            part.write_text("half")
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        write_half()
    assert target.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [target]
