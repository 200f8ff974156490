"""The network run by OpenVINO on a CPU, converted once and kept in a cache."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medseg.inferers.backends import TorchBackend, UsedPrecision
from medseg.inferers.conversion_cache import ConversionCache, network_key
from medseg.inferers.openvino_conversion import CONVERSION_VERSION, convert, example_window

# Largest difference of a probability from eager PyTorch on a window of noise. float32: far above rounding, far below
# what a wrongly converted operation does. bf16: mean over voxels, since single voxels near a tie may differ much more.
_MAX_DIFFERENCE_FP32 = 1e-3
_MAX_MEAN_DIFFERENCE_BF16 = 0.02


@cache
def _core() -> Any:
    import openvino

    return openvino.Core()


@cache
def cpu_capabilities() -> tuple[str, ...]:
    """Arithmetic that OpenVINO has units for on this processor, such as `FP32`, `INT8`, `BF16`."""
    return tuple(_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def has_bf16_units() -> bool:
    """Whether this processor computes bf16 in hardware (AVX512-BF16 or AMX)."""
    return "BF16" in cpu_capabilities()


class ConversionError(RuntimeError):
    """A network has no OpenVINO model that gives its answers."""


class OpenVINOModel:
    """A compiled model for windows of one shape; call it from one thread at a time.

    Args:
        folder: holds `model.xml` and `model.bin`.
        precision: `fp32` or `bf16`.
    """

    def __init__(self, folder: Path, precision: UsedPrecision) -> None:
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        compiled = _core().compile_model(str(folder / "model.xml"), "CPU", settings)
        self._request = compiled.create_infer_request()
        self._output_shape = tuple(compiled.output(0).shape)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Run the items of the batch one after another, since a CPU gains nothing from a batch of windows."""
        import openvino

        x = x.detach().float().contiguous()
        answer = torch.empty(len(x), *self._output_shape[1:])
        for item, out in zip(x.split(1), answer.split(1), strict=True):
            # Both tensors are used where they are, without a copy.
            self._request.set_input_tensor(openvino.Tensor(item.numpy(), shared_memory=True))
            self._request.set_output_tensor(openvino.Tensor(out.numpy(), shared_memory=True))
            self._request.infer()
        return answer


class OpenVINOBackend:
    """A network run by OpenVINO, or by PyTorch where it cannot be converted.

    Call it from one thread at a time: all calls share one inference request.

    Args:
        network: a network on the CPU in evaluation.
        precision: `fp32` or `bf16`.
        window_shape: (C, spatial...), or None to take the shape of the first call.
        fallback: runs where the conversion fails, and windows of any other shape.
        cache: where converted networks are kept.
    """

    def __init__(
        self,
        network: nn.Module,
        precision: UsedPrecision,
        window_shape: Sequence[int] | None,
        fallback: TorchBackend,
        cache: ConversionCache | None = None,
    ) -> None:
        self.name = "openvino"
        self.precision: UsedPrecision = precision
        self.notes: tuple[str, ...] = ()
        self._network = network
        self._fallback = fallback
        self._cache = cache or ConversionCache()
        self._shape: tuple[int, ...] | None = None
        self._model: OpenVINOModel | None = None
        if window_shape is not None:
            self._prepare(tuple(int(n) for n in window_shape))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Run the network; see `Backend`."""
        if self._shape is None:
            self._prepare(tuple(x.shape[1:]))
        if self._model is None or tuple(x.shape[1:]) != self._shape:
            return self._fallback(x)
        return self._model(x)

    def _prepare(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        try:
            self._model = self._load(shape, self.precision)
            return
        except ConversionError as error:
            reason = str(error)
        if self.precision == "bf16":
            try:
                self._model = self._load(shape, "fp32")
                self.precision = "fp32"
                self.notes += (f"OpenVINO runs the network in fp32 instead of bf16: {reason}",)
                return
            except ConversionError as error:
                reason = str(error)
        self.name, self.precision = self._fallback.name, self._fallback.precision
        self.notes += (f"OpenVINO cannot run the network, PyTorch does, more slowly: {reason}",)

    def _load(self, shape: tuple[int, ...], precision: UsedPrecision) -> OpenVINOModel:
        import openvino

        versions = {"torch": torch.__version__, "openvino": openvino.__version__, "conversion": CONVERSION_VERSION}
        key = network_key(self._network, shape, precision=precision, **versions)
        entry = self._cache.get(key)
        if entry is not None:
            return OpenVINOModel(entry, precision)

        def write(folder: Path) -> None:
            self._convert(shape, folder)
            self._check(shape, OpenVINOModel(folder, precision), precision)

        try:
            return OpenVINOModel(self._cache.put(key, write), precision)
        except OSError as error:
            self.notes += (
                f"the converted network is not kept, so every run converts it again: {self._cache.root} cannot be "
                f"written ({error.strerror or error}); set MEDSEG_CACHE to a folder that can",
            )
        with tempfile.TemporaryDirectory(prefix="medseg-", ignore_cleanup_errors=True) as folder:
            write(Path(folder))
            return OpenVINOModel(Path(folder), precision)

    def _convert(self, shape: tuple[int, ...], folder: Path) -> None:
        try:
            convert(self._network, shape, folder)
        # PyTorch and OpenVINO raise many unrelated classes here, and any of them means the same: use PyTorch.
        except Exception as error:
            raise ConversionError(f"the conversion failed ({_first_line(error)})") from error

    def _check(self, shape: tuple[int, ...], model: OpenVINOModel, precision: UsedPrecision) -> None:
        example = example_window(shape)
        with torch.no_grad():
            wanted = self._network(example)
        difference = (_probabilities(model(example)) - _probabilities(wanted)).abs()
        if precision == "fp32" and not difference.max() <= _MAX_DIFFERENCE_FP32:
            raise ConversionError(f"the converted network's probabilities differ by up to {difference.max():.1e}")
        worst = difference.amax(dim=1).mean()
        if precision == "bf16" and not worst <= _MAX_MEAN_DIFFERENCE_BF16:
            raise ConversionError(f"the converted network's probabilities differ by {worst:.1e} on average")


def _probabilities(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160] if lines else 'no message'}"
