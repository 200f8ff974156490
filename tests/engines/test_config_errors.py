"""What a user reads when a config entry fails."""

from __future__ import annotations

import pytest
from monai.bundle import ConfigParser

from medseg.engines.config_errors import plain_config_errors


def _resolve(expression: str) -> None:
    with plain_config_errors():
        ConfigParser({"outer": "$@inner", "inner": expression}).get_parsed_content("outer")


def test_the_first_error_comes_through_with_its_type():
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        _resolve("$1 / 0")


def test_a_runtime_error_of_another_kind_stays():
    with pytest.raises(RuntimeError, match="out of memory"), plain_config_errors():
        raise RuntimeError("out of memory")
