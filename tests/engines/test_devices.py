"""Devices and precision are chosen openly."""

from __future__ import annotations

import pytest
import torch

from medseg.engines import DeviceNotFoundError
from medseg.engines.devices import autocast, select_device, select_precision


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


def test_precision_auto_depends_on_the_device():
    assert select_precision("auto", torch.device("cpu")) == "fp32"
    assert select_precision("auto", torch.device("cuda")) == "fp16"
    assert select_precision("bf16", torch.device("cpu")) == "bf16"
    with pytest.raises(ValueError, match="precision must be"):
        select_precision("fp8", torch.device("cpu"))  # type: ignore[arg-type]


def test_autocast_changes_the_arithmetic():
    layer = torch.nn.Linear(2, 2)
    with autocast(torch.device("cpu"), "bf16"):
        assert layer(torch.zeros(1, 2)).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), "fp32"):
        assert layer(torch.zeros(1, 2)).dtype == torch.float32
