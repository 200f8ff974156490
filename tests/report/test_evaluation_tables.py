"""Tables in plain text."""

from __future__ import annotations

import pytest

from medseg.report.evaluation_tables import format_table, interval, number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.5000"),
        (-0.5, "-0.5000"),
        (1.0, "1.000"),
        (71.31, "71.31"),
        (158.04, "158.0"),
        (1949.2, "1949"),
        (None, "-"),
    ],
)
def test_numbers_have_about_four_digits(value, text):
    assert number(value) == text


def test_an_interval_without_ends_is_a_dash():
    assert interval([None, None]) == "-"


def test_columns_are_as_wide_as_their_widest_cell():
    assert format_table(["a", "b"], [["long text", "1"], ["x", "100"]]).splitlines() == [
        "a            b",
        "long text    1",
        "x          100",
    ]
