"""Read a trained nnU-Net model folder and write it as a MONAI bundle that `medseg predict` runs.

The folder is what `nnUNetv2_train` leaves: `plans.json`, `dataset.json` and `fold_*/checkpoint_final.pth`. Its name
says the configuration: `<trainer>__<plans>__<configuration>`.

Checkpoints are read with torch's safe loader. The plans name the network's class, and importing it runs its code: take
model folders from people you trust, as with nnU-Net itself.

Source: Isensee et al., "nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation"
(2021), files of version 2.4 to 2.8.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch

from medseg.data.atomic import atomic_path
from medseg.nnunet.fold_ensemble import FoldEnsemble
from medseg.nnunet.plans_check import READERS, check_plans
from medseg.nnunet.trainer_norms import TRAINER_NORMS


@dataclass(frozen=True)
class NNUNetModel:
    """A model folder, read but for its weights.

    Attributes:
        path: the folder.
        configuration: name of the configuration, such as `3d_fullres`.
        plans: what the plans say of this configuration.
        shared: what they say of all.
        dataset: content of dataset.json.
        folds: the folds to average, as their folders are named.
        checkpoint: name of the weights' file in each.
    """

    path: Path
    configuration: str
    plans: Mapping[str, Any]
    shared: Mapping[str, Any]
    dataset: Mapping[str, Any]
    folds: tuple[str, ...]
    checkpoint: str

    @classmethod
    def read(
        cls,
        path: str | Path,
        folds: Sequence[int | str] | None = None,
        checkpoint: str = "checkpoint_final.pth",
    ) -> NNUNetModel:
        """Read a folder.

        Args:
            path: the folder `<trainer>__<plans>__<configuration>`.
            folds: numbers of folds, or "all"; by default every fold that has the checkpoint.
            checkpoint: name of the weights' file.

        Raises:
            FileNotFoundError: the folder, a file in it or a fold is missing.
            ValueError: the model is one that cannot be run here; the text says why.
        """
        path = Path(path)
        plans, dataset = _read_json(path / "plans.json"), _read_json(path / "dataset.json")
        configuration = path.resolve().name.split("__")[-1]
        known = plans.get("configurations", {})
        if configuration not in known:
            raise ValueError(
                f"{path}: its name must end in __ and a configuration of its plans ({', '.join(known) or 'none'}), as "
                "nnU-Net names the folder"
            )
        chosen = _inherit(known, configuration)
        check_plans(path, chosen, plans, dataset)
        names = _find_folds(path, folds, checkpoint)
        return cls(path, configuration, chosen, plans, dataset, names, checkpoint)

    @property
    def regions(self) -> list[int] | None:
        """Label of each region in the order of the outputs, or None where outputs are classes."""
        if not any(isinstance(value, list) and len(value) > 1 for value in self.dataset["labels"].values()):
            return None
        return [int(label) for label in self.dataset["regions_class_order"]]

    @property
    def label_names(self) -> dict[str, str]:
        """Names of the label values in the masks."""
        names = {name: value for name, value in self.dataset["labels"].items() if name not in ("background", "ignore")}
        if self.regions is not None:
            return {"0": "background"} | {str(v): n for v, n in zip(self.regions, names, strict=True)}
        return {"0": "background"} | {str(value): name for name, value in sorted(names.items(), key=lambda x: x[1])}

    @property
    def num_outputs(self) -> int:
        """Channels of the network's answer."""
        return len(self.regions) if self.regions is not None else len(self.label_names)

    def load_weights(self) -> tuple[dict[str, torch.Tensor], tuple[int, ...]]:
        """Read the weights of all folds.

        Returns:
            A state for `FoldEnsemble`, and the axes along which the network may be mirrored.

        Raises:
            ValueError: a checkpoint cannot be read.
        """
        state: dict[str, torch.Tensor] = {}
        axes: tuple[int, ...] = ()
        for index, fold in enumerate(self.folds):
            content = _load_safely(self.path / fold / self.checkpoint)
            for name, value in content["network_weights"].items():
                plain = name.removeprefix("module.").removeprefix("_orig_mod.")
                state[f"networks.{index}.{plain}"] = value.contiguous()
            axes = tuple(content.get("inference_allowed_mirroring_axes") or ())
        return state, axes


def write_nnunet_bundle(model: NNUNetModel, output: str | Path) -> Path:
    """Write a model as a bundle.

    The mask of the bundle is that of `nnUNetv2_predict`, but for what half precision rounds there and for the exact
    weights of overlapping windows.

    Args:
        model: the model, see `NNUNetModel.read`.
        output: folder to write; its name becomes the bundle's.

    Returns:
        The folder.

    Raises:
        FileExistsError: the folder holds something.
        ModuleNotFoundError: the architecture's package is not installed.
        ValueError: a checkpoint cannot be read, or does not fit the network of plans.json.
    """
    output = Path(output)
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty; give a new folder")
    state, axes = model.load_weights()
    _check_weights(model, state)
    for folder in ("configs", "models"):
        (output / folder).mkdir(parents=True, exist_ok=True)
    with atomic_path(output / "models" / "model.pt") as part:
        torch.save(state, part)
    for name, content in {"inference": _describe_inference(model, axes), "metadata": _describe_model(model)}.items():
        with atomic_path(output / "configs" / f"{name}.json") as part:
            part.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return output


def _check_weights(model: NNUNetModel, state: Mapping[str, torch.Tensor]) -> None:
    """Compare names and shapes with those of the network, built without memory for its weights."""
    arguments = {name: value for name, value in _describe_network(model).items() if name != "_target_"}
    with torch.device("meta"):
        network = FoldEnsemble(**arguments)
    wanted, found = ({name: value.shape for name, value in part.items()} for part in (network.state_dict(), state))
    if differ := sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)):
        raise ValueError(
            f"{model.path}: {len(differ)} weights of {model.checkpoint} do not fit the network of plans.json, "
            f"{differ[0]} among them; the trainer may build another network in code: predict with nnUNetv2_predict"
        )


def _describe_model(model: NNUNetModel) -> dict[str, Any]:
    channels = model.dataset.get("channel_names") or model.dataset.get("modality", {})
    image = {"type": "image", "num_channels": len(channels), "spatial_shape": ["*", "*", "*"], "dtype": "float32"}
    return {
        "version": "1.0.0",
        "monai_version": monai.__version__,
        "pytorch_version": torch.__version__,
        "numpy_version": np.__version__,
        "required_packages_version": {},
        "name": f"{model.shared.get('dataset_name', 'nnU-Net')} {model.configuration}",
        "task": "segmentation with an nnU-Net model",
        "description": f"{model.path.name}, {', '.join(model.folds)}, {model.checkpoint}",
        "authors": "see the model",
        "copyright": "see the model",
        "network_data_format": {
            "inputs": {"image": {**image, "channel_def": {str(k): str(v) for k, v in channels.items()}}},
            "outputs": {"pred": {**image, "num_channels": model.num_outputs, "channel_def": model.label_names}},
        },
    }


def _describe_inference(model: NNUNetModel, axes: Sequence[int]) -> dict[str, Any]:
    plans, regions = model.plans, model.regions
    orientation = READERS[model.shared.get("image_reader_writer", "SimpleITKIO")]
    window = [int(n) for n in plans["patch_size"]]
    flat = len(window) == 2
    inferer: dict[str, Any] = {
        "_target_": "medseg.inferers.StreamingSlidingWindowInferer",
        "roi_size": [1, *window] if flat else window,
        "overlap": 0.5,
        "mode": "gaussian",
        "convention": "nnunet",
    }
    if axes:
        mirrored = [int(axis) + flat for axis in axes]
        inferer = {"_target_": "medseg.inferers.MirrorInferer", "inferer": inferer, "axes": mirrored}
    preprocess: list[dict[str, Any]] = [
        {"_target_": "LoadImaged", "keys": "image"},
        {"_target_": "EnsureChannelFirstd", "keys": "image"},
        *([{"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None}] if orientation else []),
        _describe_preprocessing(model),
    ]
    discrete: list[dict[str, Any]] = [
        {"_target_": "Activationsd", "keys": "pred", **({"sigmoid": True} if regions else {"softmax": True})},
        {"_target_": "medseg.nnunet.RegionsToLabelsd", "keys": "pred", "order": regions}
        if regions
        else {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
    ]
    invert = {
        "_target_": "Invertd",
        "keys": "pred",
        "transform": "@preprocessing",
        "orig_keys": "image",
        "nearest_interp": False,
        "to_tensor": True,
    }
    return {
        "network_def": _describe_network(model),
        "preprocessing": {"_target_": "Compose", "transforms": preprocess},
        "inferer": inferer,
        "postprocessing": {"_target_": "Compose", "transforms": [invert, *discrete]},
    }


def _describe_network(model: NNUNetModel) -> dict[str, Any]:
    architecture = model.plans["architecture"]
    return {
        "_target_": "medseg.nnunet.FoldEnsemble",
        "architecture": architecture["network_class_name"],
        "arguments": architecture["arch_kwargs"],
        "to_import": list(architecture["_kw_requires_import"]),
        "in_channels": len(model.plans["normalization_schemes"]),
        "out_channels": model.num_outputs,
        "folds": len(model.folds),
        "norm": TRAINER_NORMS.get(model.path.resolve().name.split("__")[0]),
    }


def _describe_preprocessing(model: NNUNetModel) -> dict[str, Any]:
    plans = model.plans
    schemes = [str(name) for name in plans["normalization_schemes"]]
    known = model.shared.get("foreground_intensity_properties_per_channel") or {}
    return {
        "_target_": "medseg.nnunet.NNUNetPreprocessd",
        "keys": "image",
        "spacing": [float(s) for s in plans["spacing"]],
        "transpose": [int(a) for a in model.shared.get("transpose_forward", (0, 1, 2))],
        "normalization": schemes,
        "use_mask": [bool(flag) for flag in plans["use_mask_for_norm"]],
        "intensities": [known[str(c)] for c in range(len(schemes))] if len(known) >= len(schemes) else None,
        "order": int(plans["resampling_fn_data_kwargs"].get("order", 3)),
        "force_separate_z": plans["resampling_fn_data_kwargs"].get("force_separate_z"),
        "regions": model.regions is not None,
    }


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; give a trained nnU-Net model folder, <trainer>__<plans>__<configuration>, with "
            "plans.json, dataset.json and fold_0, fold_1 and so on"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}); copy it anew from where the model was trained") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object, got {type(content).__name__}")
    return content


def _inherit(known: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A configuration with what it takes over from its parents."""
    own = dict(known[name])
    parent = own.pop("inherits_from", None)
    return {**_inherit(known, parent), **own} if parent else own


def _find_folds(path: Path, folds: Sequence[int | str] | None, checkpoint: str) -> tuple[str, ...]:
    there = sorted(p.parent.name for p in path.glob(f"fold_*/{checkpoint}"))
    wanted = [f"fold_{fold}" for fold in folds] if folds is not None else [f for f in there if f != "fold_all"] or there
    if not wanted or set(wanted) - set(there):
        raise FileNotFoundError(
            f"{path} has {checkpoint} for {', '.join(there) or 'no fold'}, not for "
            f"{', '.join(f for f in wanted if f not in there) or 'any'}; choose folds or another checkpoint"
        )
    return tuple(wanted)


def _load_safely(path: Path) -> dict[str, Any]:
    """Read a checkpoint that may hold NumPy numbers beside tensors, and nothing that runs code."""
    plain = [getattr(np.dtypes, name) for name in dir(np.dtypes) if name.endswith("DType")]
    numbers = [np.dtype, np.ndarray, type(np.dtype("f8")), *plain, *_numpy_makers()]
    try:
        with torch.serialization.safe_globals(numbers):
            content = torch.load(path, map_location="cpu", weights_only=True)
        content["network_weights"]
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint of nnU-Net ({str(error).splitlines()[0]}); check that the file is "
            "whole and comes from nnUNetv2_train"
        ) from error
    return content


def _numpy_makers() -> list[Any]:
    """Functions by which pickles of NumPy 1 and 2 make scalars and arrays."""
    core: Any = getattr(np, "_core", None) or import_module("numpy.core")
    return [core.multiarray.scalar, core.multiarray._reconstruct]
