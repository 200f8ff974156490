"""Devices and precision are chosen openly."""

from __future__ import annotations

import pytest
import torch

from medseg.engines import DeviceNotFoundError
from medseg.engines.devices import select_device


def test_auto_says_why():
    device, reason = select_device("auto")
    assert device.type == ("cuda" if torch.cuda.is_available() else device.type)
    assert reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is present")
@pytest.mark.parametrize("name", ["cuda", "cuda:3"])
def test_an_absent_device_is_an_error(name):
    with pytest.raises(DeviceNotFoundError, match="0 CUDA devices are present"):
        select_device(name)


@pytest.mark.parametrize("name", ["gpu", "meta", ""])
def test_a_name_that_is_no_device_is_an_error(name):
    with pytest.raises(ValueError, match="device must be auto, cpu"):
        select_device(name)
