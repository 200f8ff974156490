"""What a check has to say about a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a bundle.

    Args:
        level: `"error"` when somebody cannot use the bundle because of it, else `"warning"`.
        where: the file, and the id in it where there is one.
        message: what was found, what is expected, and what to do.
    """

    level: Level
    where: str
    message: str
