"""The table of complaints names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = (TESTS / "COMPLAINTS.md").read_text(encoding="utf-8")


def test_every_test_that_the_table_names_exists():
    sources = "\n".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py"))
    there = set(re.findall(r"^\s*def (test_\w+)\(", sources, re.MULTILINE))
    named = set(re.findall(r"`(test_\w+)`", TABLE))
    assert len(named) > 15
    assert named - there == set()


def test_the_table_has_25_threads():
    rows = re.findall(r"^\| (?:Project-MONAI|MIC-DKFZ|wasserth)/\S+ \d+ \|", TABLE, re.MULTILINE)
    assert len(rows) == len(set(rows)) == 25
