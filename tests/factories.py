"""Small things that several tests need: a complete bundle that segments by brightness in no time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Brightness of the classes after normalisation, one step a label, as `medseg.data.make_phantom` draws them.
_STEP = 1.7
_OFFSET = -0.4


def make_tiny_bundle(
    directory: Path, *, channels_in: int = 1, labels: Sequence[str] = ("background", "ball", "shell")
) -> Path:
    """Write a bundle whose network is one 1 x 1 x 1 convolution that picks the label nearest in brightness.

    Args:
        directory: the bundle's folder, made when missing; its name is the bundle's name.
        channels_in: input channels; the mean over them is what counts.
        labels: names of the network's output channels, background first.

    Returns:
        The folder.
    """
    for folder in ("configs", "models", "docs"):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    write_json(directory / "configs" / "metadata.json", tiny_metadata(channels_in, labels))
    write_json(directory / "configs" / "inference.json", tiny_inference_config(channels_in, len(labels)))
    (directory / "LICENSE").write_text("Made for tests; no rights reserved.\n")
    (directory / "docs" / "README.md").write_text("A bundle for tests.\n")
    _save_weights(directory / "models" / "model.pt", channels_in, len(labels))
    return directory


def turn_2d(bundle: Path) -> Path:
    """Let a tiny bundle run a 2D network on axial slices, with the same answer."""
    import torch

    config = json.loads((bundle / "configs" / "inference.json").read_text(encoding="utf-8"))
    config["network_def"]["_target_"] = "torch.nn.Conv2d"
    config["inferer"] |= {"_target_": "SliceInferer", "roi_size": [16, 16], "spatial_dim": 2}
    write_json(bundle / "configs" / "inference.json", config)
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    for tensors in metadata["network_data_format"].values():
        for tensor in tensors.values():
            tensor["spatial_shape"] = ["*", "8*n"]
    write_json(bundle / "configs" / "metadata.json", metadata)
    weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
    torch.save(weights | {"weight": weights["weight"].squeeze(-1)}, bundle / "models" / "model.pt")
    return bundle


def write_json(path: Path, content: Any) -> None:
    """Write JSON with a line a key."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def tiny_metadata(channels_in: int, labels: Sequence[str]) -> dict[str, Any]:
    """Metadata with everything that `medseg.bundles.check_bundle` asks for."""

    def tensor(kind: str, names: Sequence[str]) -> dict[str, Any]:
        return {
            "type": "image",
            "format": kind,
            "modality": "MR",
            "num_channels": len(names),
            "spatial_shape": ["*", "8*n", "2**p*n"],
            "dtype": "float32",
            "value_range": [],
            "is_patch_data": True,
            "channel_def": {str(i): name for i, name in enumerate(names)},
        }

    channels = [f"channel{i}" for i in range(channels_in)] if channels_in > 1 else ["T1w"]
    return {
        "schema": "https://example.org/meta_schema_20240725.json",
        "version": "0.1.0",
        "changelog": {"0.1.0": "first version"},
        "monai_version": "1.6.1",
        "pytorch_version": "2.13.0",
        "numpy_version": "2.4.0",
        "required_packages_version": {"nibabel": "5.3.0"},
        "name": "Tiny",
        "task": "Labels by brightness",
        "description": "A single convolution for tests",
        "authors": "medseg developers",
        "copyright": "none",
        "intended_use": "tests",
        "network_data_format": {
            "inputs": {"image": tensor("magnitude", channels)},
            "outputs": {"pred": tensor("segmentation", labels)},
        },
    }


def tiny_inference_config(channels_in: int, channels_out: int) -> dict[str, Any]:
    """An inference config with all ids that MONAI's applications look for."""
    return {
        "imports": ["$from medseg.data import list_images"],
        "bundle_root": ".",
        "dataset_dir": "data",
        "output_dir": "$@bundle_root + '/eval'",
        "datalist": "$list_images(@dataset_dir)",
        "device": "cpu",
        "network_def": {
            "_target_": "torch.nn.Conv3d",
            "in_channels": channels_in,
            "out_channels": channels_out,
            "kernel_size": 1,
        },
        "network": "$@network_def.to(@device)",
        "preprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "LoadImaged", "keys": "image"},
                {"_target_": "EnsureChannelFirstd", "keys": "image"},
                {"_target_": "Orientationd", "keys": "image", "axcodes": "RAS", "labels": None},
                {"_target_": "Spacingd", "keys": "image", "pixdim": [1.0, 1.0, 1.0], "mode": "bilinear"},
                {"_target_": "NormalizeIntensityd", "keys": "image", "channel_wise": True},
                {"_target_": "EnsureTyped", "keys": "image"},
            ],
        },
        "dataset": {"_target_": "Dataset", "data": "@datalist", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": {
            "_target_": "SlidingWindowInferer",
            "roi_size": [16, 16, 16],
            "sw_batch_size": 4,
            "overlap": 0.25,
            "mode": "gaussian",
        },
        "postprocessing": {
            "_target_": "Compose",
            "transforms": [
                {"_target_": "Activationsd", "keys": "pred", "softmax": True},
                {
                    "_target_": "Invertd",
                    "keys": "pred",
                    "transform": "@preprocessing",
                    "orig_keys": "image",
                    "nearest_interp": False,
                },
                {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
                {
                    "_target_": "SaveImaged",
                    "keys": "pred",
                    "output_dir": "@output_dir",
                    "output_postfix": "seg",
                    "output_dtype": "uint8",
                    "separate_folder": False,
                    "resample": False,
                    "print_log": False,
                },
            ],
        },
        "handlers": [],
        "checkpointloader": {
            "_target_": "CheckpointLoader",
            "load_path": "$@bundle_root + '/models/model.pt'",
            "load_dict": {"model": "@network"},
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "val_handlers": "@handlers",
        },
        "initialize": ["$@checkpointloader(@evaluator)"],
        "run": ["$@evaluator.run()"],
        "finalize": [],
    }


def _save_weights(path: Path, channels_in: int, channels_out: int) -> None:
    import torch

    # The largest of t * x - t^2 / 2 belongs to the prototype t that is nearest to x.
    prototypes = _OFFSET + _STEP * torch.arange(channels_out, dtype=torch.float32)
    weight = (prototypes[:, None] / channels_in).repeat(1, channels_in)[..., None, None, None]
    # Scaled up so that the softmax is decided rather than lukewarm.
    torch.save({"weight": 8 * weight, "bias": -8 * prototypes**2 / 2}, path)
