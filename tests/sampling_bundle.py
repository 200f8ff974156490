"""A complete bundle whose network draws samples, small and untrained, for tests of prediction."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from medseg.networks import ProbabilisticUNet
from tests.factories import make_tiny_bundle, write_json


def make_sampling_bundle(directory: Path, dims: int = 3) -> Path:
    """Write a bundle with a Probabilistic U-Net of three classes; in 2D its windows are slices along the last axis."""
    make_tiny_bundle(directory)
    config = json.loads((directory / "configs/inference.json").read_text())
    options = {"spatial_dims": dims, "in_channels": 1, "out_channels": 3, "features": 2, "depth": 2, "latent_dim": 2}
    config["network_def"] = {"_target_": "medseg.networks.ProbabilisticUNet", **options}
    if dims == 2:
        slices = {"_target_": "SliceInferer", "roi_size": [16, 16], "spatial_dim": 2, "sw_batch_size": 8}
        config["inferer"] = {**slices, "overlap": 0.5}
    write_json(directory / "configs/inference.json", config)
    torch.manual_seed(0)
    network = ProbabilisticUNet(**options)
    with torch.no_grad():
        # Untrained biases are 0 and samples hardly differ; these make every class win somewhere in some sample.
        for layer in (network.head.first, *network.head.rest):
            torch.nn.init.normal_(layer.weight, std=1.2)
            torch.nn.init.normal_(layer.bias)
    torch.save(network.state_dict(), directory / "models/model.pt")
    return directory
