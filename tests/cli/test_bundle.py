"""Tests of `medseg bundle`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from medseg.cli import app
from tests.factories import make_tiny_bundle


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEDSEG_BUNDLES", str(tmp_path))
    return make_tiny_bundle(tmp_path / "tiny_segmentation")


def run(*arguments: object):
    return CliRunner().invoke(app, ["bundle", *map(str, arguments)])


def test_list_gives_a_line_a_bundle(tiny):
    assert "tiny_segmentation 0.1.0: Tiny" in run("list").stdout.splitlines()
    assert "tiny_segmentation" in [b["name"] for b in json.loads(run("list", "--json").stdout)]


def test_info_tells_channels_labels_and_the_digest_of_the_weights(tiny):
    facts = json.loads(run("info", "tiny_segmentation", "--json").stdout)
    assert facts["input_channels"] == {"0": "T1w"}
    assert facts["labels"] == {"1": "ball", "2": "shell"}
    assert len(facts["weights_sha256"]) == 64
    assert "labels:          1 ball, 2 shell" in run("info", tiny).stdout.splitlines()


@pytest.mark.parametrize("name", ["no_such_bundle", "https://example.org/bundle"])
def test_an_unknown_or_remote_bundle_is_a_usage_error(tiny, name):
    for verb in ("info", "check"):
        result = run(verb, name)
        assert result.exit_code == 2
        assert result.stderr.startswith("Error: ")


def test_check_leaves_with_0_when_there_are_only_warnings(tiny):
    result = run("check", "tiny_segmentation")
    assert result.exit_code == 0, result.stdout
    assert result.stdout.splitlines()[-1] == "tiny_segmentation 0.1.0: 0 errors, 1 warnings"


def test_check_leaves_with_1_when_there_is_an_error(tiny):
    (tiny / "LICENSE").unlink()
    result = run("check", tiny, "--no-dry-run", "--json")
    assert result.exit_code == 1
    content = json.loads(result.stdout)
    assert content["errors"] == 1
    assert content["findings"][0]["where"] == "LICENSE"
