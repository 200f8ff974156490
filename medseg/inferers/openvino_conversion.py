"""From a PyTorch network in memory to an OpenVINO model in a folder.

The network is exported with `torch.export` and read by OpenVINO's PyTorch front end. The front end is called directly
rather than through `openvino.convert_model`, which reports each conversion to its maker unless the user opted out.

Instance normalisation needs care. Exported as it is, it becomes a mean over all voxels of a channel, summed one after
another in float32; over 96^3 values that alone moves probabilities by 3e-4. In the exported copy the mean is therefore
taken in two stages, over slices and then over their means, the second as a matrix product, since two means in a row
would be fused into one:

    m(x) = 1/D sum_d (1/HW sum_hw x_dhw),   y = (x - m(x)) / sqrt(m((x - m(x))^2) + eps) * weight + bias

This is pairwise summation in its simplest form (N. J. Higham, "The accuracy of floating point summation", 1993).
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import nn

# Part of the cache key: raise it whenever this file makes another model of the same network.
CONVERSION_VERSION = "2"
# Values summed one after another; beyond it the rounding of float32 shows.
_LONGEST_SUM = 128 * 128
_NORMS = (nn.InstanceNorm2d, nn.InstanceNorm3d)


def convert(network: nn.Module, window_shape: Sequence[int], folder: Path) -> None:
    """Write `model.xml` and `model.bin` of a network, float32, for one window of a fixed shape.

    Args:
        network: a network on the CPU in evaluation; it is copied, not changed.
        window_shape: shape of its input without the batch, (C, spatial...).
        folder: where the two files go.

    Raises:
        Exception: whatever PyTorch or OpenVINO raise when they cannot convert it; there is no common class.
    """
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    with quiet(), torch.inference_mode(False), torch.no_grad():
        example = example_window(window_shape)
        prepared = copy.deepcopy(network).eval()
        prepared.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        prepared = with_two_stage_norms(prepared)
        exported = torch.export.export(prepared, (example,), strict=False)
        front_end: Any = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchFXPythonDecoder.from_exported_program(exported)  # must outlive the conversion
        model = front_end.convert(front_end.load(decoder))
        if len(model.outputs) != 1:
            raise ValueError(f"the network has {len(model.outputs)} outputs, expected 1")
        model.reshape(list(example.shape))
        openvino.save_model(model, str(folder / "model.xml"), compress_to_fp16=False)


def example_window(window_shape: Sequence[int]) -> torch.Tensor:
    """Draw a window of standard normal noise, the same at every call, shape (1, C, spatial...)."""
    return torch.randn(1, *window_shape, generator=torch.Generator().manual_seed(0))


def with_two_stage_norms(network: nn.Module) -> nn.Module:
    """Replace instance norms that compute their own statistics, in place; the answer stays the same to rounding."""
    # A module may be registered under several names and be called by any of them, as in nnU-Net's blocks.
    for name, module in list(network.named_modules(remove_duplicate=False)):
        # A subclass may compute something else.
        if type(module) not in _NORMS or module.track_running_stats:
            continue
        if not name:
            return _TwoStageInstanceNorm(module)  # type: ignore[arg-type]
        network.set_submodule(name, _TwoStageInstanceNorm(module))  # type: ignore[arg-type]
    return network


class _TwoStageInstanceNorm(nn.Module):
    def __init__(self, norm: nn.InstanceNorm2d | nn.InstanceNorm3d) -> None:
        super().__init__()
        self.eps, self.weight, self.bias = norm.eps, norm.weight, norm.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - _two_stage_mean(x)
        scale = torch.rsqrt(_two_stage_mean(centred * centred) + self.eps)
        if self.weight is None:
            return centred * scale
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return centred * (scale * self.weight.view(shape)) + self.bias.view(shape)


def _two_stage_mean(x: torch.Tensor) -> torch.Tensor:
    """Mean over all axes but the first two, which are kept with length 1."""
    spatial = x.shape[2:]
    inner = next((i for i in range(1, len(spatial)) if math.prod(spatial[i:]) <= _LONGEST_SUM), len(spatial) - 1)
    means = x.mean(dim=tuple(range(2 + inner, x.dim()))).flatten(2)
    # Divided before and not in the matrix: ones are exact in bf16, 1/n is not.
    total = torch.matmul(means / means.shape[-1], means.new_ones(means.shape[-1], 1))
    return total.reshape(*x.shape[:2], *[1] * len(spatial))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings, log lines and dumped graphs of the converters, which no user can act on, off the terminal."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
