"""Run a bundle's network on volumes in memory and bring the answer back to the voxels of the input.

The bundle says how: its preprocessing, inferer and postprocessing run as configured, except that this class reads and
writes in place of `LoadImaged` and `SaveImaged`, because the stock ones lose parts of the header, and that windows and
the way back are streamed where that gives the same answer (see `medseg.engines.ways_back`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, LoadImaged, SaveImaged, Spacingd

from medseg.bundles import Bundle
from medseg.data import Volume, check_same_grid
from medseg.engines.bundle_network import load_network, open_backend, read_inference_config
from medseg.engines.config_errors import plain_config_errors
from medseg.engines.devices import select_device
from medseg.engines.memory_plan import (
    CaseSize,
    MemoryPlan,
    activation_bytes,
    available_memory,
    choose_plan,
    resampling_bytes,
)
from medseg.engines.sampling import CaseSamples, Sampler, empty_samples
from medseg.engines.ways_back import Ending, Task, Way, grid_of, map_back
from medseg.engines.windows import Windows
from medseg.inferers import Backend, Engine, Int8Backend, Precision, Slab, TorchBackend

Memory = Literal["auto", "normal", "low"]


@dataclass
class Prediction:
    """What a network says about one case.

    Attributes:
        labels: label of every voxel of the input, shape (X, Y, Z), unsigned integers.
        probabilities: shape (C, X, Y, Z), float32, when asked for.
        notes: what a user should know, one sentence each.
        plan: how it was mapped back and the memory that was planned for; None where the network did not run.
        samples: what single samples say, where they were asked for; labels and probabilities are then of their mean.
    """

    labels: np.ndarray
    probabilities: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)
    plan: MemoryPlan | None = None
    samples: CaseSamples | None = None


@dataclass
class PreparedCase:
    """A case after the bundle's preprocessing, ready for the network.

    Attributes:
        channels: the volumes as read.
        data: the preprocessed dictionary; None for a case without any contrast, which needs no network.
    """

    channels: Sequence[Volume]
    data: dict[str, Any] | None


class Predictor:
    """A bundle's network, ready to segment volumes.

    Args:
        bundle: a bundle, its name or its folder.
        device: `auto`, `cpu`, `cuda`, `cuda:N` or `mps`.
        engine: `auto` (OpenVINO on a CPU if it is installed and can convert the network, else PyTorch), `torch` or
            `openvino`.
        precision: `auto` (fp16 on CUDA, bf16 on a CPU that computes in it, else fp32), `fp32`, `fp16`, `bf16`, or
            `int8` on a CPU, of a bundle that `quantize_bundle` made.
        overlap: overlap of neighbouring windows in [0, 1), by default the bundle's.
        roi_size: window size in voxels of the network's grid, by default the bundle's.
        sw_batch_size: windows in one pass, by default the bundle's.
        tta: `auto` (as the bundle says), `none`, or `mirror` along the bundle's `mirror_axes`.
        memory: `normal` maps probabilities back to the input grid and takes the best class there; `low` takes the
            best class on the network's grid and maps labels back by nearest neighbour; `auto` takes `low` where
            `normal` does not fit.
        max_memory: bytes that the whole process may take, by default its own and 80 % of what is free.
        skip_empty: do not run windows without content (see `StreamingSlidingWindowInferer`), by default as the bundle
            says.
        samples: draw so many segmentations of each case from a probabilistic network, with PyTorch.
        seed: seed of the samples.

    Raises:
        ValueError: an argument or the bundle is not usable.
        FileNotFoundError: there is no such bundle, or it has no weights.
        DeviceNotFoundError: the device is absent.
        ModuleNotFoundError: the engine asked for is not installed.

    Example:
        >>> predictor = Predictor("hippocampus_segmentation", device="cpu")  # doctest: +SKIP
        >>> predictor.predict([read_image("scan.nii.gz")]).labels  # doctest: +SKIP
    """

    def __init__(
        self,
        bundle: Bundle | str,
        *,
        device: str = "auto",
        engine: Engine = "auto",
        precision: Precision = "auto",
        overlap: float | None = None,
        roi_size: Sequence[int] | None = None,
        sw_batch_size: int | None = None,
        tta: Literal["auto", "none", "mirror"] = "auto",
        memory: Memory = "auto",
        max_memory: int | None = None,
        skip_empty: bool | None = None,
        samples: int | None = None,
        seed: int = 0,
    ) -> None:
        if memory not in ("auto", "normal", "low"):
            raise ValueError(f"memory must be auto, normal or low, got {memory!r}")
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
        self.device, self.device_reason = select_device(device)
        self.memory, self.max_memory = memory, max_memory
        self.weights_sha256 = self.bundle.weights_sha256()  # before anything is built: there may be none
        parser = read_inference_config(self.bundle)
        with plain_config_errors():
            network = load_network(self.bundle, parser, self.device)
            self.preprocessing = _without(parser.get_parsed_content("preprocessing"), LoadImaged)
            self.ending = Ending.of(_without(parser.get_parsed_content("postprocessing"), SaveImaged))
            inferer = parser.get_parsed_content("inferer")
        self.windows = Windows(
            inferer,
            parser.get("mirror_axes"),
            tta,
            overlap=overlap,
            roi_size=roi_size,
            sw_batch_size=sw_batch_size,
            skip_empty=skip_empty,
        )
        if self.device.type == "cpu" and sw_batch_size is None:
            self.windows.limit_batch()
        shape = self.windows.fixed_shape
        window = (len(self.bundle.input_channels), *shape) if shape else None
        self.sampler = self._build_sampler(network, samples, seed, engine)
        engine = engine if self.sampler is None else "torch"
        self.backend: Backend = open_backend(self.bundle, network, window, self.device, engine, precision)
        self.precision = self.backend.precision
        self._activations = activation_bytes(network, window) if window else 0
        self.settings = {
            "device": self.device.type,
            "engine": self.backend.name,
            "precision": self.precision,
            "overlap": overlap,
            "roi_size": list(roi_size) if roi_size else None,
            "skip_empty": skip_empty,
            "tta": tta,
            "memory": memory,
            **({"samples": samples, "seed": seed} if self.sampler else {}),
            **({"int8_model": self.backend.manifest["files"]} if isinstance(self.backend, Int8Backend) else {}),
        }
        self.num_classes = int(self.bundle.metadata["network_data_format"]["outputs"]["pred"]["num_channels"])

    def _build_sampler(
        self, network: torch.nn.Module, samples: int | None, seed: int, engine: Engine
    ) -> Sampler | None:
        sampler = Sampler.build(network, samples, seed, engine, self.windows)
        if sampler is not None and self.ending.calibrates:
            raise ValueError(
                f"bundle {self.bundle.name}: its TemperatureScaledd was fitted to single answers, not to the mean of "
                "samples; leave out samples, or take it out of the postprocessing"
            )
        return sampler

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
        return self.run(self.prepare(channels), probabilities=probabilities, threshold=threshold)

    def prepare(self, channels: Sequence[Volume]) -> PreparedCase:
        """Check a case and run the bundle's preprocessing on it.

        Safe to call from another thread while `run` is at work on an earlier case.

        Args:
            channels: one volume for each input channel of the network, all on one grid.

        Raises:
            ValueError: wrong number of channels, or channels on different grids.
            InsufficientMemoryError: the case cannot fit in any way.
        """
        expected = len(self.bundle.input_channels)
        if len(channels) != expected:
            names = ", ".join(self.bundle.input_channels.values())
            raise ValueError(
                f"{channels[0].path}: got {len(channels)} channels, the network takes {expected} ({names})"
            )
        for other in channels[1:]:
            check_same_grid(channels[0], other)
        if all(c.array.min() == c.array.max() for c in channels):
            return PreparedCase(channels, None)
        # Refused before it is even resampled.
        self._choose_plan(channels[0], self._resampled_shape(channels[0]), ("low",), keep=False, prepared=False)
        with torch.inference_mode():
            data: Any = self.preprocessing({"image": _as_metatensor(channels)})
        return PreparedCase(channels, data)

    def run(
        self,
        case: PreparedCase,
        *,
        probabilities: bool = False,
        threshold: float | None = None,
        on_windows: Callable[[int, int], None] | None = None,
    ) -> Prediction:
        """Run the network on a prepared case.

        Args:
            case: what `prepare` returned.
            probabilities: also return class probabilities on the input grid.
            threshold: in (0, 1]; voxels whose best class is less probable than this become background.
            on_windows: told how many windows are done and how many there are.

        Returns:
            Labels on the grid of the input, and what was noticed.

        Raises:
            InsufficientMemoryError: the case does not fit; raised before the network runs.
        """
        if threshold is not None and not 0 < threshold <= 1:
            raise ValueError(f"threshold must be in (0, 1], got {threshold}")
        if case.data is None:
            return self._nothing(case.channels[0], probabilities)
        with torch.inference_mode(), torch.backends.cudnn.flags(benchmark=False, deterministic=True):
            return self._infer(case.channels[0], case.data, probabilities, threshold, on_windows)

    def _nothing(self, first: Volume, probabilities: bool) -> Prediction:
        empty = np.zeros(first.array.shape, dtype=np.uint8)
        zeros = np.zeros((self.num_classes, *empty.shape), dtype=np.float32) if probabilities else None
        if zeros is not None:
            zeros[0] = 1
        samples = empty_samples(self.sampler.samples, empty.shape) if self.sampler is not None else None
        notes = ["all voxels have the same value; nothing to find, the mask is empty"]
        return Prediction(empty, zeros, notes, samples=samples)

    def _infer(
        self,
        first: Volume,
        data: dict[str, Any],
        keep: bool,
        threshold: float | None,
        on_windows: Callable[[int, int], None] | None,
    ) -> Prediction:
        image: MetaTensor = data["image"]
        shape = tuple(image.shape[1:])
        grid = grid_of(image, first.affine, first.array.shape, self.ending)
        if self.sampler is not None:
            task = Task(data, self.ending, self.windows.axis(shape), self.num_classes, grid, True, threshold)
            return self._draw(first, task, keep, on_windows)
        plan = self._choose_plan(first, shape, self._ways(grid is not None, keep, threshold), keep=keep)
        notes = []
        if plan.way == "low" and self.memory == "auto":
            notes.append("memory plan low: labels were mapped back by nearest neighbour (see --memory)")
        task = Task(data, self.ending, self.windows.axis(shape), self.num_classes, grid, keep, threshold)
        slabs = self._slabs(image, task.axis, on_windows, self.backend)
        mapped, kept = map_back(plan.way, slabs, task)
        if keep and kept is None:
            raise ValueError(f"bundle {self.bundle.name}: probabilities need an Invertd in its postprocessing")
        labels = self._checked_labels(mapped, first)
        if not labels.any():
            notes.append("no label was found; the mask is empty")
        if (keep or threshold is not None) and self.ending.is_calibrated_for_others(self.weights_sha256):
            notes.append("probabilities were calibrated for other weights; fit the temperatures of the bundle anew")
        return Prediction(labels, kept.numpy() if kept is not None else None, notes, plan)

    def _draw(self, first: Volume, task: Task, keep: bool, on_windows: Callable[[int, int], None] | None) -> Prediction:
        assert self.sampler is not None
        image: MetaTensor = task.data["image"]
        ways = self._ways(task.grid is not None, True, task.threshold)
        plan = self._choose_plan(first, tuple(image.shape[1:]), ways, keep=False)
        group, plan = self.sampler.fit(plan, task, first)
        run = partial(self._slabs, image, task.axis)
        backend = partial(TorchBackend, device=self.device, precision=self.backend.precision)
        mapped, mean, samples = self.sampler.draw(task, plan.way, group, run, on_windows, backend)
        labels = self._checked_labels(mapped, first)
        notes = [] if labels.any() else ["no label was found; the mask is empty"]
        return Prediction(labels, mean.numpy() if keep else None, notes, plan, samples)

    def _slabs(
        self, image: MetaTensor, axis: int, on_windows: Callable[[int, int], None] | None, backend: Backend
    ) -> Iterator[Slab]:
        for slab in self.windows.slabs(image.as_tensor()[None].to(self.device), backend, axis, on_windows):
            if not bool(slab.logits.sum().isfinite()):
                advice = "use --precision fp32" if self.precision != "fp32" else "check its weights and the image"
                raise ValueError(f"bundle {self.bundle.name}: its network answers with NaN or infinity; {advice}")
            yield slab

    def _ways(self, aligned: bool, keep: bool, threshold: float | None) -> tuple[Way, ...]:
        """Ways back that this case allows, the preferred one first."""
        if not self.ending.splits:
            if self.memory == "low":
                raise ValueError("memory plan low needs a postprocessing with Invertd and AsDiscreted(argmax=true)")
            return ("whole",)
        if self.ending.needs_whole(keep, threshold):
            return ("whole",)
        normal: Way = "streamed" if aligned else "classwise"
        if keep or threshold is not None or self.memory == "normal":
            return (normal,)
        return ("low",) if self.memory == "low" else (normal, "low")

    def _choose_plan(
        self, first: Volume, shape: tuple[int, ...], ways: Sequence[Way], *, keep: bool, prepared: bool = True
    ) -> MemoryPlan:
        channels = len(self.bundle.input_channels)
        resampled = not prepared and not np.allclose(self._network_spacing(first), first.spacing)
        size = CaseSize(
            input_voxels=first.array.size,
            network_shape=shape,
            window=self.windows.shape(shape),
            axis=self.windows.axis(shape),
            batch_size=self.windows.batch_size,
            channels=channels,
            num_classes=self.num_classes,
            activations=self._activations,
            preparing=resampling_bytes(channels, first.array.size, math.prod(shape)) if resampled else 0,
        )
        return choose_plan(size, ways, available_memory(self.max_memory), keep=keep)

    def _resampled_shape(self, volume: Volume) -> tuple[int, ...]:
        """About the shape on the network's grid, before the preprocessing has run."""
        # Orientation may swap axes; the product is what counts.
        scale = np.cbrt(np.prod(np.asarray(volume.spacing) / self._network_spacing(volume)))
        return tuple(max(round(n * scale), 1) for n in volume.array.shape)

    def _network_spacing(self, volume: Volume) -> np.ndarray:
        spacing = next((t for t in self.preprocessing.transforms if isinstance(t, Spacingd)), None)
        if spacing is None:
            return np.asarray(volume.spacing)
        return np.resize(np.asarray(spacing.spacing_transform.pixdim, dtype=float), 3)

    def _checked_labels(self, pred: torch.Tensor, like: Volume) -> np.ndarray:
        if tuple(pred.shape) != (1, *like.array.shape):
            raise ValueError(
                f"bundle {self.bundle.name}: its postprocessing gives the shape {tuple(pred.shape)}, expected a label "
                f"map on the input grid, {(1, *like.array.shape)}; add Invertd and AsDiscreted with argmax"
            )
        values = pred[0].cpu().numpy()
        return values.astype(np.min_scalar_type(max(self.num_classes - 1, 1)))


def _without(chain: Compose, kind: type) -> Compose:
    return Compose([t for t in chain.flatten().transforms if not isinstance(t, kind)])


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
