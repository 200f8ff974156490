"""Compiled code is kept where that is possible, and its absence is neither an error nor a warning."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import pytest

import medseg
from medseg.topology._compile import compiled


def test_a_function_compiles_where_no_cache_folder_can_be_found(monkeypatch):
    real = numba.njit

    def refuse(*functions, **options):
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(*functions, **options)

    monkeypatch.setattr(numba, "njit", refuse)
    assert compiled(lambda x: x + 1)(1) == 2


@pytest.mark.slow
@pytest.mark.parametrize("home_writable", [True, False])
def test_an_installation_that_cannot_be_written_to_works_without_a_word(tmp_path, home_writable):
    package = tmp_path / "site" / "medseg"
    home = tmp_path / "home"
    shutil.copytree(Path(medseg.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    home.mkdir()
    # A file where a folder would be made stops every user, unlike permissions, which do not stop root.
    (package / "topology" / "__pycache__").touch()
    if not home_writable:
        (home / ".cache").touch()
    environment = {k: v for k, v in os.environ.items() if k not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")}
    environment |= {"HOME": str(home), "PYTHONPATH": str(package.parent)}
    script = "import numpy as np, medseg.topology as t; print(t.__file__, t.persistence_barcode(np.eye(2))[0].bars)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=environment, capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert str(package) in done.stdout
    assert "[[[1 1]\n  [0 1]]]" in done.stdout
    assert done.stderr == ""
    assert any(home.rglob("*.nbi")) == home_writable
