"""The table of complaints names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
TABLE = (TESTS / "COMPLAINTS.md").read_text(encoding="utf-8")


def test_every_test_that_the_table_names_is_where_it_says():
    named = set(re.findall(r"`([\w/]+\.py)::(test_\w+)`", TABLE))
    assert len(named) > 15
    assert len(named) == len(set(re.findall(r"`[^`]*\btest_\w+`", TABLE)))
    for file, name in sorted(named):
        source = (TESTS / file).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", source, re.MULTILINE), f"{file} has no {name}"


def test_every_complaint_has_a_test_or_says_why_not():
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in TABLE.splitlines() if re.match(r"\| \w+[-/]", line)
    ]
    without = {thread for thread, _, _, tests in rows if not tests}
    assert without == {
        "Project-MONAI/MONAI 9132",  # needs a GPU
        "Project-MONAI/MONAI 5345",  # needs a GPU
        "Project-MONAI/MONAI 7287",  # PyTorch's own packages
        "MIC-DKFZ/nnUNet 1395",  # advice, not code
    }


def test_the_table_has_25_threads():
    rows = re.findall(r"^\| (?:Project-MONAI|MIC-DKFZ|wasserth)/\S+ \d+ \|", TABLE, re.MULTILINE)
    assert len(rows) == len(set(rows)) == 25
