"""A volume whose class volumes do not fit into the memory that the system grants."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medseg.data import make_phantom, read_mask
from tests.factories import make_tiny_bundle, write_json

ROOT = Path(__file__).parents[2]
LABELS = ["background", "ball", "shell", *(f"absent{i}" for i in range(27))]
# The loaded program takes 0.6 GB; thirty class volumes of 5 million voxels take that again on either grid.
LIMIT = 1_500_000_000


def _predict(
    bundle: Path, scan: Path, out: Path, *arguments: str, limit: int | None = None
) -> subprocess.CompletedProcess:
    def restrict() -> None:
        import resource

        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    command = [sys.executable, "-m", "medseg", "predict", scan, "-o", out, "--bundle", bundle, "--device", "cpu"]
    command += ["--report", out.with_suffix(".json"), *arguments]
    return subprocess.run(
        [str(c) for c in command], cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=restrict
    )


def _way(out: Path) -> str:
    return json.loads(out.with_suffix(".json").read_text())["cases"][0]["memory_plan"]["way"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited through Linux's RLIMIT_DATA")
def test_streaming_finishes_where_the_whole_way_is_out_of_memory_and_gives_the_same_mask(tmp_path):
    image, _ = make_phantom(shape=(160, 180, 170), spacing=(1.1, 1.0, 0.9), seed=1, noise=0.02)
    scan = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(image, np.diag([1.1, 1.0, 0.9, 1.0])), scan)
    streaming = make_tiny_bundle(tmp_path / "streaming", labels=LABELS)
    whole = make_tiny_bundle(tmp_path / "whole", labels=LABELS)
    config = json.loads((whole / "configs" / "inference.json").read_text())
    # A step between softmax and inversion keeps the classes together.
    config["postprocessing"]["transforms"].insert(1, {"_target_": "Lambdad", "keys": "pred", "func": "$lambda x: x"})
    write_json(whole / "configs" / "inference.json", config)

    free = _predict(whole, scan, tmp_path / "free")
    assert free.returncode == 0, free.stderr
    assert _way(tmp_path / "free") == "whole"
    limited = _predict(streaming, scan, tmp_path / "limited", "--max-memory", str(LIMIT), limit=LIMIT)
    assert limited.returncode == 0, limited.stderr
    assert _way(tmp_path / "limited") == "streamed"
    expected, got = (read_mask(tmp_path / f / "scan_seg.nii.gz").array for f in ("free", "limited"))
    assert {0, 1, 2} <= set(np.unique(expected))
    assert (got != expected).sum() <= 1e-6 * expected.size  # ties in the last bit

    planned = _predict(whole, scan, tmp_path / "planned", "--max-memory", str(LIMIT))
    assert planned.returncode == 1
    assert "GB of memory" in planned.stderr
    killed = _predict(whole, scan, tmp_path / "killed", limit=LIMIT)
    assert killed.returncode != 0
    assert not (tmp_path / "killed" / "scan_seg.nii.gz").exists()
