"""What every contender of `inference.py` gets: the cases, the volume, the network with its weights, the bundle.

Nothing here imports torch at module level, so that the process that starts and measures the contenders stays small.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

ROOT = Path(__file__).resolve().parents[1]
# The shipped bundle lends its configs, so that what is measured is how a bundle of this project is really run.
TEMPLATE = ROOT / "configs" / "hippocampus_segmentation" / "configs"
OVERLAP = 0.5
# Distance of the knots of the random field; structures of a few of them across are what organs look like to a network.
_KNOTS_MM = 8.0
# Standard deviation of a class's logit over the voxels: decided probabilities away from the borders.
_LOGIT_SCALE = 4.0


@dataclass(frozen=True)
class Case:
    """Sizes of one comparison.

    Attributes:
        network_grid: voxels of 1 mm on which the windows slide.
        stored_grid: voxels of the file.
        spacing: voxel size of the file in mm.
        classes: output channels, background included.
        patch: window edge in voxels.
        features: channels of the network's levels.
    """

    network_grid: tuple[int, int, int]
    stored_grid: tuple[int, int, int]
    spacing: tuple[float, float, float]
    classes: int
    patch: int = 96
    features: tuple[int, ...] = (32, 64, 128, 256, 320)

    def on_equal_grid(self) -> Case:
        """The same case with a file that already lies on the network's grid: nothing is resampled."""
        return replace(self, stored_grid=self.network_grid, spacing=(1.0, 1.0, 1.0))


CASES = {
    "small": Case((192, 192, 160), (160, 160, 128), (1.2, 1.2, 1.25), classes=14),
    "large": Case((320, 320, 240), (256, 256, 200), (1.25, 1.25, 1.2), classes=25),
    "tiny": Case((48, 48, 48), (40, 40, 40), (1.2, 1.2, 1.2), classes=5, patch=32, features=(4, 8, 8, 16, 16)),
}


def dynunet(case: Case) -> dict[str, Any]:
    """MONAI's DynUNet, two convolutions a level, as a bundle names it."""
    levels = len(case.features)
    return {
        "_target_": "DynUNet",
        "spatial_dims": 3,
        "in_channels": 1,
        "out_channels": case.classes,
        "kernel_size": [3] * levels,
        "strides": [1] + [2] * (levels - 1),
        "upsample_kernel_size": [2] * (levels - 1),
        "filters": list(case.features),
        "norm_name": ["INSTANCE", {"affine": True}],
    }


def plainconvunet(case: Case) -> dict[str, Any]:
    """nnU-Net's PlainConvUNet with the settings of its default plans, as a bundle names it."""
    levels = len(case.features)
    return {
        "_target_": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "input_channels": 1,
        "n_stages": levels,
        "features_per_stage": list(case.features),
        "conv_op": "$torch.nn.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * levels,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (levels - 1),
        "n_conv_per_stage": [2] * levels,
        "num_classes": case.classes,
        "n_conv_per_stage_decoder": [2] * (levels - 1),
        "conv_bias": True,
        "norm_op": "$torch.nn.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "$torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


NETWORKS = {"dynunet": dynunet, "plainconvunet": plainconvunet}


def write_volume(path: Path, case: Case, seed: int) -> None:
    """Write a smooth random field as a positive int16 NIfTI volume, axes to the right, front and top."""
    import nibabel as nib
    import numpy as np
    from scipy.ndimage import zoom

    extent = np.multiply(case.stored_grid, case.spacing)
    knots = np.ceil(extent / _KNOTS_MM).astype(int) + 1
    coarse = np.random.default_rng(seed).standard_normal(knots).astype(np.float32)
    field = np.asarray(zoom(coarse, np.divide(case.stored_grid, knots), order=3))
    # No voxel is zero: nnU-Net crops to what is not zero, and all contenders shall see the same volume.
    values = np.clip(np.rint(1000 + 250 * field), 1, 4000).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([*case.spacing, 1.0])), path)


def write_bundle(directory: Path, case: Case, network: str, device: str) -> None:
    """Write the configs of a bundle; `make_weights` adds the weights."""
    (directory / "configs").mkdir(parents=True)
    (directory / "models").mkdir()
    config = json.loads((TEMPLATE / "inference.json").read_text(encoding="utf-8"))
    config["device"] = f"$torch.device({device!r})"
    config["amp"] = False
    config["network_def"] = NETWORKS[network](case)
    config["inferer"] = {
        "_target_": "SlidingWindowInferer",
        "roi_size": [case.patch] * 3,
        "sw_batch_size": 1,
        "overlap": OVERLAP,
        "mode": "gaussian",
    }
    metadata = json.loads((TEMPLATE / "metadata.json").read_text(encoding="utf-8"))
    prediction = metadata["network_data_format"]["outputs"]["pred"]
    prediction["num_channels"] = case.classes
    prediction["channel_def"] = {"0": "background"} | {str(k): f"class {k}" for k in range(1, case.classes)}
    for name, content in (("inference", config), ("metadata", metadata)):
        (directory / "configs" / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def make_weights(directory: Path, volume: Path, case: Case, seed: int) -> int:
    """Draw smooth kernels, centre and scale the last layer on the middle window so that all classes occur, and save.

    Returns:
        The number of parameters.
    """
    import torch
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(str(directory / "configs" / "inference.json"))
    torch.manual_seed(seed)
    network = parser.get_parsed_content("network_def").eval()
    image = parser.get_parsed_content("preprocessing")({"image": str(volume)})["image"].as_tensor()
    middle = [slice((n - case.patch) // 2, (n + case.patch) // 2) for n in image.shape[1:]]
    with torch.no_grad():
        _smooth_kernels(network)
        _spread_classes(network, image[(slice(None), *middle)][None], case.classes)
    torch.save(network.state_dict(), directory / "models" / "model.pt")
    return sum(p.numel() for p in network.parameters())


def _smooth_kernels(network: torch.nn.Module) -> None:
    """Keep the random mixture of channels, but let every kernel average over its voxels.

    Plain random kernels raise the finest detail at every layer, and the classes come out as noise.
    """
    import torch

    for layer in network.modules():
        if not isinstance(layer, torch.nn.Conv3d | torch.nn.ConvTranspose3d):
            continue
        line = torch.tensor({1: [1.0], 2: [0.5, 0.5], 3: [0.25, 0.5, 0.25]}[layer.kernel_size[0]])
        profile = line[:, None, None] * line[:, None] * line
        layer.weight.copy_(layer.weight.sum(dim=(2, 3, 4), keepdim=True) * profile)


def _spread_classes(network: torch.nn.Module, window: torch.Tensor, classes: int) -> None:
    """Give every class's logit mean 0 and the same spread over the window.

    Untouched, the random biases of the last layer decide, and one class wins nearly everywhere.
    """
    import torch

    heads = [m for m in network.modules() if isinstance(m, torch.nn.Conv3d) and m.out_channels == classes]
    head, bias = next((m, m.bias) for m in reversed(heads) if m.kernel_size == (1, 1, 1) and m.bias is not None)
    logits = network(window)[0].flatten(1)
    gain = _LOGIT_SCALE / logits.std(dim=1)
    head.weight.mul_(gain[:, None, None, None, None])
    bias.copy_((bias - logits.mean(dim=1)) * gain)
