"""Static int8 quantisation of a trained convolutional network for CPUs, without training (post-training quantisation).

    weights      w ~ s_c q,          q in [-127, 127],   one scale s_c for each output channel
    activations  x ~ s (q - z),      q in [0, 255],      one scale s and zero point z for each tensor

The network is converted to OpenVINO as for float32 inference; NNCF then watches the inputs of convolutions on a few
windows of real images, chooses the range [s (0 - z), s (255 - z)] that makes the squared error of their histogram
smallest (not the smallest and largest value, which outliers decide), and writes the quantisation into the model. Only
convolutions and transposed convolutions are quantised. The first ones and the heads stay in float32, where rounding
costs most and time is short, and so does normalisation, whose statistics depend on the image.

Sources: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"
(CVPR 2018); Kozlov et al., "Neural Network Compression Framework for fast model inference" (2020). PyTorch's own way
(PT2E export with its x86 quantizer) was not taken: its annotations know 2D convolutions and linear layers only.
NNCF is needed here and not to run the model.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg.inferers.openvino_backend import OpenVINOModel
from medseg.inferers.openvino_conversion import convert, quiet

_CONVOLUTIONS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
# Operations that move numbers and change none: left to NNCF, so that their inputs can be quantised in their stead.
_MOVING = ("Concat", "MaxPool", "Pad", "Reshape", "Squeeze", "StridedSlice", "Slice", "Split", "Transpose", "Unsqueeze")
_NO_OPERATION = ("Parameter", "Result", "Constant")


@dataclass(frozen=True)
class Int8Summary:
    """What a quantisation did.

    Attributes:
        int8_layers: convolutions that compute in int8.
        float_layers: convolutions left in float32.
        float_bytes: size of the float32 model's weights.
        int8_bytes: size of the int8 model's weights.
        changed_voxels: share of voxels of the calibration windows whose class changed, in [0, 1].
        mean_difference: mean absolute difference of probabilities there.
    """

    int8_layers: int
    float_layers: int
    float_bytes: int
    int8_bytes: int
    changed_voxels: float
    mean_difference: float


def quantize_int8(network: nn.Module, windows: Sequence[torch.Tensor], folder: Path) -> Int8Summary:
    """Write an int8 OpenVINO model of a network, `model.xml` and `model.bin`.

    Args:
        network: a trained network on the CPU; it stays as it is.
        windows: what the network sees in use, each of shape (C, spatial...), all of one shape; 8 to 32 from several
            images, since these decide the ranges.
        folder: where the two files go; it must exist.

    Returns:
        What was done, and how far the answers moved.

    Raises:
        ValueError: there are no windows, their shapes differ, or the network has no convolution between the first and
            the heads.
        ModuleNotFoundError: NNCF is not installed; the text names the extra.
        Exception: whatever PyTorch or OpenVINO raise when they cannot convert the network.

    Example:
        >>> summary = quantize_int8(network, windows, Path("int8"))  # doctest: +SKIP
        >>> summary.int8_layers, summary.changed_voxels  # doctest: +SKIP
        (16, 0.0003)
    """
    shapes = {tuple(window.shape) for window in windows}
    if len(shapes) != 1:
        raise ValueError(f"windows must be one or more tensors of one shape (C, spatial...), got the shapes {shapes}")
    nncf = _import_nncf()
    import openvino

    with tempfile.TemporaryDirectory(prefix="medseg-", ignore_cleanup_errors=True) as name:
        plain = Path(name)
        convert(network, windows[0].shape, plain)
        model = openvino.Core().read_model(str(plain / "model.xml"))
        chosen, kept = _split_convolutions(model)
        with quiet():
            quantized = _quantize(nncf, model, chosen, windows)
            openvino.save_model(quantized, str(folder / "model.xml"), compress_to_fp16=False)
        changed, difference = _compare(OpenVINOModel(plain, "fp32"), OpenVINOModel(folder, "int8"), windows)
        sizes = [(f / "model.bin").stat().st_size for f in (plain, folder)]
    return Int8Summary(len(chosen), len(kept), sizes[0], sizes[1], changed, difference)


def _quantize(nncf: Any, model: Any, chosen: Sequence[str], windows: Sequence[torch.Tensor]) -> Any:
    from nncf.quantization.advanced_parameters import (  # pyright: ignore[reportMissingImports]
        AdvancedQuantizationParameters,
        OverflowFix,
    )
    from nncf.quantization.range_estimator import (  # pyright: ignore[reportMissingImports]
        RangeEstimatorParametersSet,
    )

    kept = [
        op.get_friendly_name()
        for op in model.get_ordered_ops()
        if op.get_friendly_name() not in chosen and op.get_type_name() not in (*_MOVING, *_NO_OPERATION)
    ]
    return nncf.quantize(
        model,
        nncf.Dataset([window[None].numpy() for window in windows]),
        preset=nncf.QuantizationPreset.MIXED,  # symmetric weights, activations with a zero point
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(windows),
        ignored_scope=nncf.IgnoredScope(names=kept, validate=False),
        advanced_parameters=AdvancedQuantizationParameters(
            # Weights of half the range cannot overflow the 16 bits in which processors without VNNI add products, but
            # were further from float32 even there.
            overflow_fix=OverflowFix.DISABLE,
            activations_range_estimator_params=RangeEstimatorParametersSet.HISTOGRAM,
        ),
    )


def _split_convolutions(model: Any) -> tuple[list[str], list[str]]:
    """Names of convolutions with others both before and behind them, and of the remaining ones."""
    operations = list(model.get_ordered_ops())
    convolutions = [op.get_friendly_name() for op in operations if op.get_type_name() in _CONVOLUTIONS]
    sources = {op.get_friendly_name(): [_source(op, i) for i in range(op.get_input_size())] for op in operations}
    behind: set[str] = set()  # operations that a convolution feeds
    for name, feeding in sources.items():
        if any(source in behind or source in convolutions for source in feeding):
            behind.add(name)
    ahead: set[str] = set()  # operations that feed a convolution
    for name, feeding in reversed(sources.items()):
        if name in ahead or name in convolutions:
            ahead.update(feeding)
    chosen = [name for name in convolutions if name in behind and name in ahead]
    if not chosen:
        raise ValueError(
            f"network has {len(convolutions)} convolutions, none of them between a first one and a head; these stay in "
            "float32, so that nothing is left for int8: use precision fp32"
        )
    return chosen, [name for name in convolutions if name not in chosen]


def _source(operation: Any, index: int) -> str:
    return operation.input(index).get_source_output().get_node().get_friendly_name()


def _compare(plain: OpenVINOModel, quantized: OpenVINOModel, windows: Sequence[torch.Tensor]) -> tuple[float, float]:
    changed, difference = [], []
    for window in windows:
        before, after = plain(window[None]), quantized(window[None])
        if before.shape[1] == 1:  # a single channel is the logit of foreground
            before, after = (torch.cat([torch.zeros_like(x), x], 1) for x in (before, after))
        changed.append(float((before.argmax(1) != after.argmax(1)).float().mean()))
        difference.append(float((before.softmax(1) - after.softmax(1)).abs().mean()))
    return sum(changed) / len(windows), sum(difference) / len(windows)


def _import_nncf() -> Any:
    try:
        with _telemetry_off(), quiet():
            import nncf  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ModuleNotFoundError(
            f"quantisation needs NNCF, which cannot be imported ({error}); pip install 'medseg[int8]'"
        ) from error
    return nncf


@contextmanager
def _telemetry_off() -> Iterator[None]:
    """Let NNCF report nothing to its maker: this variable is its own switch, read when it is imported."""
    before = os.environ.get("NNCF_CI")
    if "nncf" not in sys.modules:
        os.environ["NNCF_CI"] = "1"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("NNCF_CI", None)
        else:
            os.environ["NNCF_CI"] = before
