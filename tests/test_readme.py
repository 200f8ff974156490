"""The README can be followed by a script: its two commands are marked and its links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [
    *sorted(ROOT.glob("*.md")),
    *sorted(ROOT.glob("sample_data/*.md")),
    *sorted(ROOT.glob("configs/*/docs/*.md")),
]
LINK = re.compile(r"(?<!\!)\[[^\]]+\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def command_below(marker: str, text: str) -> str:
    """Text of the fenced block right below an HTML comment."""
    found = re.findall(rf"^<!-- {marker} -->\n```(?:bash|sh|console)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 1, f"README must have one <!-- {marker} --> right above a fenced block, found {len(found)}"
    return found[0]


@pytest.mark.parametrize("marker", ["run", "test"])
def test_each_command_is_marked_once_and_right_above_its_block(marker):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text.count(f"<!-- {marker} -->") == 1
    assert command_below(marker, text).strip()


def test_the_run_command_installs_and_names_sample_files_that_exist():
    command = command_below("run", (ROOT / "README.md").read_text(encoding="utf-8"))
    samples = re.findall(r"sample_data/\S+", command)
    assert "pip install" in command
    assert samples
    assert all((ROOT / s).is_file() for s in samples)


def test_the_test_command_installs_the_test_extra_and_runs_pytest():
    command = command_below("test", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert "[test]" in command
    assert "pytest" in command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_relative_links_lead_to_files(document):
    text = FENCE.sub("", document.read_text(encoding="utf-8"))
    targets = [first or second for first, second in LINK.findall(text)]
    local = [t.split("#")[0] for t in targets if not re.match(r"[a-z]+:|#", t)]
    assert [t for t in local if not (document.parent / t).exists()] == []
