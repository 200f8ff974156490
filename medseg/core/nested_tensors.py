"""The tensors that an operation takes or gives, for those who watch a network run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch


def nested_tensors(values: Any) -> list[torch.Tensor]:
    """All tensors in nested tuples, lists and dictionaries, in their order.

    Example:
        >>> nested_tensors([torch.tensor(1), {"a": (torch.tensor(2), None)}, 3])
        [tensor(1), tensor(2)]
    """
    if isinstance(values, torch.Tensor):
        return [values]
    if isinstance(values, Mapping):
        values = list(values.values())
    return [t for value in values for t in nested_tensors(value)] if isinstance(values, tuple | list) else []
