"""Checks of arguments that several optimizers share; every error names the argument and what is expected."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


def check_least(name: str, value: float | torch.Tensor, least: float = 0.0) -> None:
    """Refuse NaN, infinity and what is below `least`.

    Raises:
        ValueError: it is.
    """
    number = float(value)
    if not math.isfinite(number) or number < least:
        raise ValueError(f"{name} must be a finite number of at least {least:g}, got {value}")


def check_share(name: str, value: float, *, with_one: bool = True) -> None:
    """Refuse what lies outside [0, 1], or outside [0, 1) without one.

    Raises:
        ValueError: it does.
    """
    if not 0 <= value <= 1 or (value == 1 and not with_one):
        raise ValueError(f"{name} must be in [0, 1{']' if with_one else ')'}, got {value}")


def check_betas(betas: Sequence[float]) -> tuple[float, float]:
    """Two decay rates in [0, 1), as a tuple whatever sequence JSON gave.

    Raises:
        ValueError: they are not.
    """
    if len(betas) != 2:
        raise ValueError(f"betas must be two numbers, got {betas}")
    for number, beta in enumerate(betas):
        check_share(f"betas[{number}]", beta, with_one=False)
    return betas[0], betas[1]


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Refuse what is not among the choices; 1 is not taken for True.

    Raises:
        ValueError: it is not among them.
    """
    if not any(value == choice and isinstance(value, type(choice)) for choice in choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_whole(name: str, value: int, least: int) -> None:
    """Refuse what is not a whole number of at least `least`.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
