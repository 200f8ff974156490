"""Run a bundle's network on volumes in memory and bring the answer back to the voxels of the input.

The bundle says how: its preprocessing, inferer and postprocessing run as configured, except that this class reads and
writes in place of `LoadImaged` and `SaveImaged`, because the stock ones lose parts of the header.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import psutil
import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from monai.transforms import (
    Activationsd,
    AsDiscreted,
    Compose,
    Invertd,
    LoadImaged,
    SaveImaged,
    Spacingd,
)

from medseg.bundles import Bundle
from medseg.data import Volume, check_same_grid
from medseg.engines.config_errors import plain_config_errors
from medseg.engines.devices import Precision, autocast, select_device, select_precision
from medseg.inferers import MirrorInferer

Memory = Literal["auto", "normal", "low"]
# Part of the free memory a plan may take; the rest is for the operating system and fragmentation.
_HEADROOM = 0.8


class InsufficientMemoryError(MemoryError):
    """A volume needs more memory than there is; raised before the network runs."""


@dataclass
class Prediction:
    """What a network says about one case.

    Attributes:
        labels: label of every voxel of the input, shape (X, Y, Z), unsigned integers.
        probabilities: shape (C, X, Y, Z), float32, when asked for.
        notes: what a user should know, one sentence each.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)


class Predictor:
    """A bundle's network, ready to segment volumes.

    Args:
        bundle: a bundle, its name or its folder.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        precision: `auto` (fp16 on CUDA, fp32 elsewhere), `fp32`, `fp16` or `bf16`.
        overlap: overlap of neighbouring windows in [0, 1), by default the bundle's.
        roi_size: window size in voxels of the network's grid, by default the bundle's.
        sw_batch_size: windows in one pass, by default the bundle's.
        tta: `auto` (as the bundle says), `none`, or `mirror` along the bundle's `mirror_axes`.
        memory: `normal` maps probabilities back to the input grid and takes the best class there; `low` takes the
            best class on the network's grid and maps labels back by nearest neighbour, so that the probabilities
            are neither activated nor mapped back; `auto` takes `low` where `normal` does not fit.
        max_memory: bytes that may be used, by default 80 % of what is free.

    Raises:
        ValueError: an argument or the bundle is not usable.
        DeviceNotFoundError: the device is absent.

    Example:
        >>> predictor = Predictor("hippocampus_segmentation", device="cpu")  # doctest: +SKIP
        >>> predictor.predict([read_image("scan.nii.gz")]).labels  # doctest: +SKIP
    """

    def __init__(
        self,
        bundle: Bundle | str,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        overlap: float | None = None,
        roi_size: Sequence[int] | None = None,
        sw_batch_size: int | None = None,
        tta: Literal["auto", "none", "mirror"] = "auto",
        memory: Memory = "auto",
        max_memory: int | None = None,
    ) -> None:
        if memory not in ("auto", "normal", "low"):
            raise ValueError(f"memory must be auto, normal or low, got {memory!r}")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self.device, self.device_reason = select_device(device)
        self.precision: Literal["fp32", "fp16", "bf16"] = select_precision(precision, self.device)
        self.memory: Memory = memory
        self.max_memory = max_memory
        parser = _read_config(self.bundle)
        with plain_config_errors():
            self.network = _load_network(self.bundle, parser, self.device)
            self.preprocessing = _without(parser.get_parsed_content("preprocessing"), LoadImaged)
            self.postprocessing = _without(parser.get_parsed_content("postprocessing"), SaveImaged)
            inferer = parser.get_parsed_content("inferer")
        self.inferer = _configure_inferer(inferer, parser.get("mirror_axes"), overlap, roi_size, sw_batch_size, tta)
        self.weights_sha256 = self.bundle.weights_sha256()
        self.settings = {
            "device": self.device.type,
            "precision": self.precision,
            "overlap": overlap,
            "roi_size": list(roi_size) if roi_size else None,
            "tta": tta,
            "memory": memory,
        }
        self.num_classes = int(self.bundle.metadata["network_data_format"]["outputs"]["pred"]["num_channels"])

    def predict(
        self, channels: Sequence[Volume], *, probabilities: bool = False, threshold: float | None = None
    ) -> Prediction:
        """Segment one case.

        Args:
            channels: one volume for each input channel of the network, all on one grid.
            probabilities: also return class probabilities on the input grid.
            threshold: in (0, 1]; voxels whose best class is less probable than this become background.

        Returns:
            Labels on the grid of the input, and what was noticed.

        Raises:
            ValueError: wrong number of channels, or channels on different grids.
            InsufficientMemoryError: the case does not fit; raised before the network runs.
        """
        expected = len(self.bundle.input_channels)
        if len(channels) != expected:
            names = ", ".join(self.bundle.input_channels.values())
            raise ValueError(
                f"{channels[0].path}: got {len(channels)} channels, the network takes {expected} ({names})"
            )
        for other in channels[1:]:
            check_same_grid(channels[0], other)
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {threshold}")
        first = channels[0]
        if all(c.array.min() == c.array.max() for c in channels):
            empty = np.zeros(first.array.shape, dtype=np.uint8)
            zeros = np.zeros((self.num_classes, *empty.shape), dtype=np.float32) if probabilities else None
            if zeros is not None:
                zeros[0] = 1
            return Prediction(empty, zeros, ["all voxels have the same value; nothing to find, the mask is empty"])
        self._check_memory(first, lowest="low" if self.memory != "normal" and not probabilities else "normal")
        with torch.inference_mode(), torch.backends.cudnn.flags(benchmark=False, deterministic=True):
            return self._run(channels, probabilities or threshold is not None, threshold)

    def _run(self, channels: Sequence[Volume], keep: bool, threshold: float | None) -> Prediction:
        first, notes = channels[0], []
        data: Any = self.preprocessing({"image": _as_metatensor(channels)})
        plan = self._plan(first.array.size, int(np.prod(data["image"].shape[1:])), keep)
        if plan == "low" and self.memory == "auto":
            notes.append("memory plan low: labels were mapped back by nearest neighbour (see --memory)")
        image = data["image"].as_tensor()[None].to(self.device)
        with autocast(self.device, self.precision):
            logits = self.inferer(image, self.network)
        data["pred"] = MetaTensor(logits[0].float().cpu())
        probabilities = None
        for transform in _low_memory(self.postprocessing) if plan == "low" else self.postprocessing.transforms:
            data = transform(data)
            if keep and isinstance(transform, Invertd):
                probabilities = data["pred"].as_tensor().numpy().copy()
        labels = self._checked_labels(data["pred"], first)
        if keep and probabilities is None:
            raise ValueError(f"bundle {self.bundle.name}: probabilities need an Invertd in its postprocessing")
        if threshold is not None and probabilities is not None:
            labels[probabilities.max(axis=0) < threshold] = 0
        if not labels.any():
            notes.append("no label was found; the mask is empty")
        return Prediction(labels, probabilities, notes)

    def _checked_labels(self, pred: torch.Tensor, like: Volume) -> np.ndarray:
        if tuple(pred.shape) != (1, *like.array.shape):
            raise ValueError(
                f"bundle {self.bundle.name}: its postprocessing gives the shape {tuple(pred.shape)}, expected a label "
                f"map on the input grid, {(1, *like.array.shape)}; add Invertd and AsDiscreted with argmax"
            )
        values = pred[0].cpu().numpy()
        return values.astype(np.min_scalar_type(max(self.num_classes - 1, 1)))

    def _plan(self, input_voxels: int, network_voxels: int, keep: bool) -> Literal["normal", "low"]:
        """Choose how to map back, now that the size on the network's grid is known; refuse what does not fit."""
        available = self._available()
        normal = 4 * (self.num_classes * (2 * network_voxels + input_voxels) + 4 * network_voxels)
        low = 4 * ((self.num_classes + 4) * network_voxels + 2 * input_voxels)
        if self.memory == "normal" or keep:
            plan: Literal["normal", "low"] = "normal"
        elif self.memory == "low":
            plan = "low"
        else:
            plan = "normal" if normal <= available else "low"
        needed = normal if plan == "normal" else low
        if needed > available:
            raise InsufficientMemoryError(_memory_text(needed, available, plan))
        return plan

    def _check_memory(self, volume: Volume, lowest: Literal["normal", "low"]) -> None:
        """Refuse a hopeless volume before it is even resampled."""
        spacing = next((t for t in self.preprocessing.transforms if isinstance(t, Spacingd)), None)
        voxels = float(volume.array.size)
        if spacing is not None:
            wanted = np.asarray(spacing.spacing_transform.pixdim, dtype=float)
            voxels *= float(np.prod(np.asarray(volume.spacing) / np.resize(wanted, 3)))
        classes = self.num_classes if lowest == "low" else 3 * self.num_classes
        needed, available = int(4 * voxels * (classes + 2)), self._available()
        if needed > available:
            raise InsufficientMemoryError(_memory_text(needed, available, lowest))

    def _available(self) -> int:
        return self.max_memory or int(psutil.virtual_memory().available * _HEADROOM)


def _memory_text(needed: int, available: int, plan: str) -> str:
    help_text = "use --memory low" if plan == "normal" else "crop or downsample the volume, or use a larger machine"
    return f"needs about {needed / 1e9:.1f} GB of memory, {available / 1e9:.1f} GB may be used; {help_text}"


def _read_config(bundle: Bundle) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(str(bundle.config_path("inference")))
    parser["bundle_root"] = str(bundle.path)
    return parser


def _load_network(bundle: Bundle, parser: ConfigParser, device: torch.device) -> torch.nn.Module:
    network = parser.get_parsed_content("network_def")
    try:
        state = torch.load(bundle.weights_path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        first_line = str(error).splitlines()[0]
        raise ValueError(
            f"bundle {bundle.name}: {bundle.weights_path} cannot be loaded into its network ({first_line}); run "
            "'medseg bundle check' on it, or train it with 'medseg train'"
        ) from error
    layout = torch.channels_last_3d if any(p.dim() == 5 for p in network.parameters()) else torch.channels_last
    return network.to(device=device, memory_format=layout).eval()


def _without(chain: Compose, kind: type) -> Compose:
    return Compose([t for t in chain.flatten().transforms if not isinstance(t, kind)])


def _configure_inferer(
    inferer: Callable[..., torch.Tensor],
    mirror_axes: Sequence[int] | None,
    overlap: float | None,
    roi_size: Sequence[int] | None,
    sw_batch_size: int | None,
    tta: str,
) -> Callable[..., torch.Tensor]:
    if tta not in ("auto", "none", "mirror"):
        raise ValueError(f"tta must be auto, none or mirror, got {tta!r}")
    if overlap is not None and not 0 <= overlap < 1:
        raise ValueError(f"overlap must be in [0, 1), got {overlap}")
    inner = inferer.inferer if isinstance(inferer, MirrorInferer) else inferer
    for name, value in (("overlap", overlap), ("roi_size", roi_size), ("sw_batch_size", sw_batch_size)):
        if value is None:
            continue
        if not hasattr(inner, name):
            raise ValueError(f"{name} was given, but the bundle's inferer {type(inner).__name__} has no such setting")
        setattr(inner, name, tuple(value) if name == "roi_size" else value)  # type: ignore[arg-type]
    if tta == "none":
        return inner
    if tta == "mirror" and inner is inferer:
        if not mirror_axes:
            raise ValueError("tta 'mirror': the bundle names no mirror_axes that its network was trained for; use none")
        return MirrorInferer(inner, mirror_axes)  # type: ignore[arg-type]
    return inferer


def _as_metatensor(channels: Sequence[Volume]) -> MetaTensor:
    first = channels[0]
    array = torch.from_numpy(np.stack([c.array for c in channels]))
    affine = torch.from_numpy(first.affine.copy())
    meta = {
        "original_channel_dim": 0,
        "original_affine": affine.clone(),
        "spatial_shape": np.asarray(first.array.shape),
        "filename_or_obj": str(first.path),
    }
    return MetaTensor(array, affine=affine, meta=meta)


def _low_memory(postprocessing: Compose) -> list[Callable[[dict], dict]]:
    """Take the best class first and map back labels: softmax does not change which class is best."""
    transforms = list(postprocessing.transforms)
    invert = next((t for t in transforms if isinstance(t, Invertd)), None)
    discrete = next((t for t in transforms if isinstance(t, AsDiscreted)), None)
    if invert is None or discrete is None or not all(discrete.argmax):
        raise ValueError("memory plan low needs a postprocessing with Invertd and AsDiscreted(argmax=true)")
    nearest = copy.copy(invert)
    nearest.nearest_interp = tuple(True for _ in invert.keys)
    rest = [t for t in transforms if t is not invert and t is not discrete and not isinstance(t, Activationsd)]
    return [discrete, nearest, *rest]
