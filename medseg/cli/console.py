"""What every verb shares: exit codes, messages on stderr, and errors turned into exit codes."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import typer

EXIT_OK = 0
EXIT_CASE_FAILED = 1
EXIT_USAGE = 2
EXIT_MISSING = 3
EXIT_BAD_INPUT = 4
EXIT_INTERRUPTED = 130


def note(message: str) -> None:
    """Tell the user something on stderr."""
    typer.echo(message, err=True)


def warn(message: str) -> None:
    """Warn the user on stderr."""
    note(f"Warning: {message}")


def fail(message: str, code: int) -> NoReturn:
    """Say what went wrong on stderr and leave with an exit code."""
    note(f"Error: {message}")
    raise typer.Exit(code)


@contextmanager
def steps_on_stderr(quiet: bool) -> Iterator[None]:
    """Show what the package says of long steps, such as a conversion, unless the user wants quiet."""
    logger, handler = logging.getLogger("medseg"), logging.Handler()
    handler.emit = lambda record: note(record.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def errors_to_exit_codes(verbose: bool = False) -> Iterator[None]:
    """Turn the errors a user can cause into one line on stderr and a documented exit code.

    Args:
        verbose: show the traceback as well.
    """
    try:
        yield
    except KeyboardInterrupt:
        fail("interrupted", EXIT_INTERRUPTED)
    except ModuleNotFoundError as error:
        _show_traceback(verbose)
        fail(str(error), EXIT_MISSING)
    except (ValueError, OSError, ArithmeticError) as error:
        _show_traceback(verbose)
        fail(str(error), EXIT_BAD_INPUT)
    except (typer.Exit, typer.Abort):
        raise
    except Exception as error:  # the last resort: a user gets a sentence, not a traceback
        _show_traceback(verbose)
        hint = "" if verbose else "; run again with -v for the traceback"
        fail(f"unexpected {type(error).__name__}: {error}{hint}", EXIT_CASE_FAILED)


def _show_traceback(verbose: bool) -> None:
    if verbose:
        import traceback

        traceback.print_exc(file=sys.stderr)
