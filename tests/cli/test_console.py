"""Errors become one line and a documented exit code."""

from __future__ import annotations

import pytest
import typer

from medseg.cli.console import errors_to_exit_codes, fail


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ValueError("labels are odd"), 4, "Error: labels are odd"),
        (OSError("disk full"), 4, "Error: disk full"),
        (FloatingPointError("loss is nan"), 4, "Error: loss is nan"),
        (ModuleNotFoundError("install medseg[x]"), 3, "Error: install medseg[x]"),
        (KeyboardInterrupt(), 130, "Error: interrupted"),
        (TypeError("no such argument"), 1, "Error: unexpected TypeError: no such argument; run again with -v"),
    ],
)
def test_errors_become_a_line_and_an_exit_code(capsys, error, code, text):
    with pytest.raises(typer.Exit) as caught, errors_to_exit_codes():
        raise error
    assert caught.value.exit_code == code
    printed = capsys.readouterr().err
    assert text in printed
    assert "Traceback" not in printed


def test_the_traceback_is_shown_when_asked_for(capsys):
    with pytest.raises(typer.Exit), errors_to_exit_codes(verbose=True):
        raise ValueError("labels are odd")
    assert "Traceback" in capsys.readouterr().err


def test_an_exit_code_chosen_inside_stays():
    with pytest.raises(typer.Exit) as caught, errors_to_exit_codes():
        fail("-o is missing", 2)
    assert caught.value.exit_code == 2
