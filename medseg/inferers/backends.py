"""Back ends: one small object that is called like the network and runs it on some engine.

`select_backend` picks the engine and the precision. On a CPU it takes OpenVINO where that is installed and can convert
the network, because it is faster there at the same answer; elsewhere, and where the conversion fails, PyTorch itself.
What was chosen stands in `name` and `precision`; what the user should know in `notes`. Nothing falls back in silence.

A float32 back end gives the probabilities of eager PyTorch to within 1e-4. A bf16 or fp16 back end does not; it is
chosen by itself only on processors with units for the type. An int8 model is never chosen by itself; `Int8Backend` runs
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal, Protocol

import torch
from torch import nn

Engine = Literal["auto", "torch", "openvino"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "int8"]
UsedPrecision = Literal["fp32", "fp16", "bf16", "int8"]

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


class Backend(Protocol):
    """A network on an engine. Call it from one thread at a time.

    Attributes:
        name: the engine, `torch` or `openvino`.
        precision: the arithmetic that is really used, `fp32`, `bf16`, `fp16` or `int8`.
        notes: what the user should know about the choice, one sentence each.
    """

    @property
    def name(self) -> str:
        """Engine."""
        ...

    @property
    def precision(self) -> UsedPrecision:
        """Arithmetic that is really used."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know."""
        ...

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Run the network.

        Args:
            x: windows, shape (B, C, window...), float32.

        Returns:
            Logits, shape (B, K, window...), float32, on the device of `x`.
        """
        ...


def autocast(device: torch.device, precision: UsedPrecision) -> AbstractContextManager:
    """Context in which a network runs in the precision."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, _DTYPES[precision])


def select_precision(precision: Precision, device: torch.device) -> UsedPrecision:
    """Resolve what PyTorch computes in: `auto` is fp16 on CUDA and fp32 elsewhere.

    Args:
        precision: `auto`, `fp32`, `fp16` or `bf16`.
        device: where the network runs.

    Returns:
        The precision.

    Raises:
        ValueError: the name is no precision, or fp16 was asked for on a CPU.

    Example:
        >>> select_precision("auto", torch.device("cpu"))
        'fp32'
    """
    if precision == "int8":
        raise ValueError("precision int8 needs a quantised model, which Int8Backend runs; use auto, fp32, fp16 or bf16")
    if precision not in ("auto", "fp32", "fp16", "bf16"):
        raise ValueError(f"precision must be auto, fp32, fp16 or bf16, got {precision!r}")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError("precision fp16 is for GPUs; on a CPU use auto, fp32 or bf16")
    if precision == "auto":
        return "fp16" if device.type == "cuda" else "fp32"
    return precision


class TorchBackend:
    """The network as it is, run by PyTorch.

    The network is moved to the device and set to evaluation. On CUDA its weights are laid out channels last, which the
    tensor cores want; on a CPU that gains nothing.

    Args:
        network: the network.
        device: where it runs.
        precision: `fp32`, or `bf16` or `fp16` by autocast.
        notes: what the user should know.

    Example:
        >>> backend = TorchBackend(nn.Conv2d(1, 3, 1))
        >>> backend(torch.zeros(2, 1, 4, 4)).shape
        torch.Size([2, 3, 4, 4])
    """

    name = "torch"

    def __init__(
        self,
        network: nn.Module,
        device: torch.device | str = "cpu",
        precision: UsedPrecision = "fp32",
        notes: tuple[str, ...] = (),
    ) -> None:
        self.device = torch.device(device)
        self.precision: UsedPrecision = precision
        self.notes = notes
        self.network = network.to(self.device).eval()
        if self.device.type == "cuda":
            in_3d = any(p.dim() == 5 for p in network.parameters())
            network.to(memory_format=torch.channels_last_3d if in_3d else torch.channels_last)  # type: ignore[call-overload]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Run the network; see `Backend`."""
        with torch.no_grad(), autocast(self.device, self.precision):
            logits = self.network(x)
        return logits_of(logits).float()


def logits_of(answer: object) -> torch.Tensor:
    """Take a network's answer for logits.

    Raises:
        TypeError: it is no tensor.
    """
    if not isinstance(answer, torch.Tensor):
        raise TypeError(
            f"the network returned a {type(answer).__name__}, expected one tensor of logits; let its forward return "
            "the finest output alone in evaluation"
        )
    return answer


def select_backend(
    network: nn.Module,
    window_shape: Sequence[int] | None,
    *,
    device: torch.device | str,
    engine: Engine = "auto",
    precision: Precision = "auto",
) -> Backend:
    """Choose the engine and the precision for a network.

    Args:
        network: the network with its weights; it is set to evaluation and moved to the device.
        window_shape: shape of a window with its channels, (C, spatial...); None where it is unknown, and then the first
            call counts.
        device: where to run.
        engine: `openvino` (CPU only), `torch`, or `auto`: OpenVINO on a CPU where it is installed, else PyTorch.
        precision: `fp32`, `bf16`, `fp16` (GPU only), or `auto`: fp16 on CUDA, bf16 with OpenVINO on a processor
            that has units for it, else fp32.

    Returns:
        A back end. Where the network cannot be converted it is PyTorch's, and its `notes` say why.

    Raises:
        ModuleNotFoundError: OpenVINO was asked for and is not installed.
        ValueError: an unknown name, OpenVINO on a GPU, or a precision that the engine has no units for.

    Example:
        >>> backend = select_backend(nn.Conv2d(1, 3, 1), (1, 8, 8), device="cpu", engine="torch")
        >>> backend.name, backend.precision, backend.notes
        ('torch', 'fp32', ())
    """
    device = torch.device(device)
    if engine not in ("auto", "torch", "openvino"):
        raise ValueError(f"engine must be auto, torch or openvino, got {engine!r}")
    torch_precision = select_precision(precision, device)
    if engine == "openvino" and device.type != "cpu":
        raise ValueError(f"engine openvino runs on the CPU, but the device is {device}; use engine auto or torch there")
    if engine == "torch" or device.type != "cpu":
        return TorchBackend(network, device, torch_precision)
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        if engine == "openvino":
            raise ModuleNotFoundError(
                f"engine openvino cannot be imported ({error}); pip install openvino, or use engine torch"
            ) from error
        note = "OpenVINO cannot be imported, so PyTorch runs the network, more slowly; pip install openvino"
        return TorchBackend(network, device, torch_precision, (note,))
    from medseg.inferers.openvino_backend import OpenVINOBackend, has_bf16_units

    if precision == "bf16" and not has_bf16_units():
        if engine == "openvino":
            raise ValueError(
                "precision bf16 on engine openvino needs a processor with bf16 units (AVX512-BF16 or AMX); this one "
                "has none: use precision fp32, or engine torch, which emulates bf16 slowly"
            )
        note = "precision bf16 was asked for, but this processor has no bf16 units: it is emulated, slower than fp32"
        return TorchBackend(network, device, "bf16", (note,))
    wanted: UsedPrecision = "bf16" if precision == "auto" and has_bf16_units() else torch_precision
    return OpenVINOBackend(TorchBackend(network, device, torch_precision), wanted, window_shape)
