"""Run a program on two ranks and read what each of them ended with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]


def run_two_ranks(program: Path, folder: Path) -> list[Any]:
    """Call `program WORLD RANK FOLDER` for both ranks at once, which leave FOLDER/RANK.pt."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(program), "2", str(r), str(folder)], env=environment, stderr=subprocess.PIPE, text=True
        )
        for r in range(2)
    ]
    said = [rank.communicate(timeout=240)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    return [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(2)]
