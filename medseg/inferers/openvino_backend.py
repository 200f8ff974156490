"""The network run by OpenVINO on a CPU, converted once and kept in a cache."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from medseg.inferers.backends import TorchBackend, UsedPrecision
from medseg.inferers.conversion_cache import ConversionCache, network_key
from medseg.inferers.openvino_conversion import CONVERSION_VERSION, convert, example_window

_LOG = logging.getLogger(__name__)
# In the entry of a network that could not be converted, so that the attempt is not made again.
_REFUSAL = "reason.txt"
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
            # A mapped file that is cut or, on a network drive, removed would end the process with a bus error.
            "ENABLE_MMAP": False,
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
        fallback: holds the network, on the CPU; runs it where the conversion fails, and windows of any other shape.
        precision: `fp32` or `bf16`.
        window_shape: (C, spatial...), or None to take the shape of the first call.
        cache: where converted networks are kept.

    Example:
        >>> backend = OpenVINOBackend(TorchBackend(torch.nn.Conv2d(1, 3, 1)), "fp32", (1, 8, 8))  # doctest: +SKIP
        >>> backend(torch.zeros(2, 1, 8, 8)).shape  # doctest: +SKIP
        torch.Size([2, 3, 8, 8])
    """

    def __init__(
        self,
        fallback: TorchBackend,
        precision: UsedPrecision = "fp32",
        window_shape: Sequence[int] | None = None,
        cache: ConversionCache | None = None,
    ) -> None:
        self.name = "openvino"
        self.precision: UsedPrecision = precision
        self.notes: tuple[str, ...] = ()
        self._network = fallback.network
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
        def write(folder: Path) -> None:
            _LOG.info("converting the network for OpenVINO, once for windows of %s", "x".join(map(str, shape[1:])))
            try:
                self._convert(shape, folder)
                self._check(shape, OpenVINOModel(folder, precision), precision)
            except ConversionError as error:
                (folder / _REFUSAL).write_text(str(error), encoding="utf-8")

        key = self._key(shape, precision)
        try:
            return _open(self._cache.get(key) or self._cache.put(key, write), precision)
        except OSError as error:
            self.notes += (
                f"the converted network is not kept, so every run converts it again: {self._cache.root} cannot be "
                f"written ({error.strerror or error}); set MEDSEG_CACHE to a folder that can",
            )
        with tempfile.TemporaryDirectory(prefix="medseg-", ignore_cleanup_errors=True) as folder:
            write(Path(folder))
            return _open(Path(folder), precision)

    def _key(self, shape: tuple[int, ...], precision: UsedPrecision) -> str:
        import openvino

        versions = {"torch": torch.__version__, "openvino": openvino.__version__, "conversion": CONVERSION_VERSION}
        return network_key(self._network, shape, precision=precision, **versions)

    def _convert(self, shape: tuple[int, ...], folder: Path) -> None:
        try:
            convert(self._network, shape, folder)
        except (OSError, MemoryError):
            raise  # says something of the machine, not of the network
        # PyTorch and OpenVINO raise many unrelated classes here, and any of them means the same: use PyTorch.
        except Exception as error:
            raise ConversionError(f"the conversion failed ({_reason(error)})") from error

    def _check(self, shape: tuple[int, ...], model: OpenVINOModel, precision: UsedPrecision) -> None:
        example = example_window(shape)
        with torch.no_grad():
            wanted = self._network(example)
        if not isinstance(wanted, torch.Tensor):
            raise ConversionError(f"it returns a {type(wanted).__name__}, not one tensor")
        difference = (_probabilities(model(example)) - _probabilities(wanted)).abs()
        if precision == "fp32" and not difference.max() <= _MAX_DIFFERENCE_FP32:
            raise ConversionError(f"the converted network's probabilities differ by up to {difference.max():.1e}")
        worst = difference.amax(dim=1).mean()
        if precision == "bf16" and not worst <= _MAX_MEAN_DIFFERENCE_BF16:
            raise ConversionError(f"the converted network's probabilities differ by {worst:.1e} on average")


def _open(entry: Path, precision: UsedPrecision) -> OpenVINOModel:
    refusal = entry / _REFUSAL
    if refusal.is_file():
        raise ConversionError(refusal.read_text(encoding="utf-8"))
    return OpenVINOModel(entry, precision)


def _probabilities(logits: torch.Tensor) -> torch.Tensor:
    return logits.softmax(1) if logits.shape[1] > 1 else logits.sigmoid()


def _reason(error: Exception) -> str:
    """Line of an error that says most: OpenVINO's messages begin with places in its sources."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    telling = [line for line in lines if line and not line.startswith(("Check ", "Exception ", "FrontEnd API"))]
    line = next((line for line in telling if "No conversion rule" in line), telling[0] if telling else "no message")
    return f"{type(error).__name__}: {line[:160]}"
