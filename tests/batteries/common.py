"""What the batteries share: finding public classes and checking that JSON can build them."""

from __future__ import annotations

import importlib
import inspect
import json
from typing import Any


def public_classes(package: str, base: type) -> list[type]:
    """Public classes of a sub-package that derive from `base`; none where the sub-package does not exist yet."""
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        return []
    things = (getattr(module, name) for name in module.__all__)
    return [t for t in things if inspect.isclass(t) and issubclass(t, base)]


def check_built_from_json(cls: type, kwargs: dict[str, Any]) -> None:
    """Arguments are JSON types given by keyword, and a misspelt one is refused."""
    # Of `__init__`, not of the class: older Pythons then look at a base's `__new__`, which takes anything.
    own = cls.__init__ is not object.__init__
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:] if own else []
    by_keyword_only_kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    odd = [str(p) for p in parameters if p.kind not in by_keyword_only_kinds]
    assert not odd, f"{cls.__name__} swallows arguments or takes them by position only: {odd}"
    text = json.dumps(kwargs)
    assert isinstance(cls(**json.loads(text)), cls)
    try:
        cls(**kwargs, misspelt_argument=1)
    except TypeError:
        return
    raise AssertionError(f"{cls.__name__} accepts an argument that does not exist")
