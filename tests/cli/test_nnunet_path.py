"""Tests of `medseg nnunet-path`."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from medseg.cli import app


def test_the_folder_printed_holds_trainers_and_nothing_that_shadows_other_modules():
    result = CliRunner().invoke(app, ["nnunet-path"])
    assert result.exit_code == 0
    folder = Path(result.stdout.strip())
    assert folder.is_absolute()
    assert sorted(path.name for path in folder.glob("*.py")) == ["medseg_trainers.py"]
