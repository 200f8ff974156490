"""Show the error behind MONAI's "Failed to evaluate" and "Failed to instantiate"."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def plain_config_errors() -> Iterator[None]:
    """Raise what went wrong inside a config entry as itself.

    MONAI wraps every error of a config expression in a RuntimeError that names the expression; the user needs the text
    of the first error, and callers its type.

    Example:
        >>> with plain_config_errors():
        ...     try:
        ...         raise ValueError("no such folder")
        ...     except ValueError as error:
        ...         raise RuntimeError("Failed to evaluate ConfigExpression") from error
        Traceback (most recent call last):
        ValueError: no such folder
    """
    try:
        yield
    except RuntimeError as error:
        cause: BaseException = error
        while isinstance(cause, RuntimeError) and str(cause).startswith("Failed to ") and cause.__cause__ is not None:
            cause = cause.__cause__
        if cause is error:
            raise
        raise cause from None
