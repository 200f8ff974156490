"""Tests of `medseg info`."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

import medseg
from medseg.cli import app
from tests.factories import make_tiny_bundle


@pytest.fixture(autouse=True)
def bundles(tmp_path, monkeypatch):
    make_tiny_bundle(tmp_path / "tiny_segmentation")
    monkeypatch.setenv("MEDSEG_BUNDLES", str(tmp_path))


def test_json_names_versions_and_bundles_with_labels():
    result = CliRunner().invoke(app, ["info", "--json"])
    facts = json.loads(result.stdout)
    assert facts["medseg"] == medseg.__version__
    assert facts["packages"]["numpy"] == version("numpy")
    tiny = next(b for b in facts["bundles"] if b["name"] == "tiny_segmentation")
    assert (tiny["version"], tiny["labels"]) == ("0.1.0", {"1": "ball", "2": "shell"})
    assert "devices" not in facts


def test_the_text_is_for_people():
    lines = CliRunner().invoke(app, ["info"]).stdout.splitlines()
    assert lines[0].startswith(f"medseg {medseg.__version__}, Python ")
    assert "  tiny_segmentation 0.1.0: 1 ball, 2 shell" in lines


def test_devices_are_listed_when_asked():
    facts = json.loads(CliRunner().invoke(app, ["info", "--json", "--devices"]).stdout)
    assert facts["devices"][0]["device"] == "cpu"


def test_engines_and_the_cache_are_listed_with_the_devices(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSEG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "networks").mkdir(parents=True)
    (tmp_path / "cache" / "networks" / "model.bin").write_bytes(bytes(3_000_000))
    facts = json.loads(CliRunner().invoke(app, ["info", "--json", "--devices"]).stdout)
    assert facts["cache"] == {"path": str(tmp_path / "cache"), "bytes": 3_000_000}
    engines = {e["engine"]: e for e in facts["engines"]}
    assert engines["torch"]["version"] == version("torch")
    assert engines["openvino"]["version"] == version("openvino")
    assert "FP32" in engines["openvino"]["units"]
    lines = CliRunner().invoke(app, ["info", "--devices"]).stdout.splitlines()
    assert f"  {tmp_path / 'cache'}: 3.0 MB" in lines


def test_an_engine_that_cannot_be_imported_is_named_with_the_reason(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    facts = json.loads(CliRunner().invoke(app, ["info", "--json", "--devices"]).stdout)
    assert facts["engines"][1]["version"] == "not usable"
    assert "openvino" in facts["engines"][1]["units"]


def test_info_loads_nothing_heavy():
    code = (
        "import sys; sys.argv = ['medseg', 'info', '--json']\n"
        "from medseg.cli import main\n"
        "try:\n    main()\n"
        "finally:\n    heavy = {'torch', 'monai', 'numpy', 'nibabel', 'openvino'} & set(sys.modules)\n"
        "    print(sorted(heavy), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert result.stderr.strip() == "[]"
    assert json.loads(result.stdout)["medseg"] == medseg.__version__
