"""Load the network of a bundle and open what runs it."""

from __future__ import annotations

import pickle

import torch
from monai.bundle import ConfigParser

from medseg.bundles import Bundle
from medseg.inferers import Backend, Engine, Int8Backend, Precision, select_backend


def read_inference_config(bundle: Bundle) -> ConfigParser:
    """The bundle's `inference.json`, its root set to where the bundle lies."""
    parser = ConfigParser()
    parser.read_config(str(bundle.config_path("inference")))
    parser["bundle_root"] = str(bundle.path)
    return parser


def load_network(bundle: Bundle, parser: ConfigParser, device: torch.device) -> torch.nn.Module:
    """Build the network and load its weights, ready to predict.

    Raises:
        ValueError: the weights cannot be read, or are those of another network.
    """
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
    return network.to(device).eval()


def open_backend(
    bundle: Bundle,
    network: torch.nn.Module,
    window: tuple[int, ...] | None,
    device: torch.device,
    engine: Engine,
    precision: Precision,
) -> Backend:
    """The bundle's int8 model where that is asked for, else what `select_backend` makes of the network.

    Args:
        bundle: the bundle.
        network: its network, with weights.
        window: shape of its windows, channels first, where it is fixed.
        device: where to run.
        engine: `auto`, `torch` or `openvino`.
        precision: as `select_backend` takes it, or `int8`.

    Raises:
        ValueError: device, engine or window do not go with the int8 model, or the bundle has none.
    """
    if precision == "int8":
        return _open_int8(bundle, window, device, engine)
    return select_backend(network, window, device=device, engine=engine, precision=precision)


def _open_int8(bundle: Bundle, window: tuple[int, ...] | None, device: torch.device, engine: Engine) -> Int8Backend:
    if device.type != "cpu":
        raise ValueError(
            f"precision int8 runs on the CPU, but the device is {device}; use device cpu, or precision auto"
        )
    if engine == "torch":
        raise ValueError(
            "precision int8 runs on OpenVINO: leave engine at auto, draw no samples, or use precision fp32"
        )
    if not bundle.int8_path.is_dir():
        raise ValueError(
            f"bundle {bundle.name} has no int8 model; make one with 'medseg bundle quantize {bundle.name} --images DIR "
            "-o NEW_BUNDLE' and predict with NEW_BUNDLE, or use precision fp32"
        )
    backend = Int8Backend(bundle.int8_path, bundle.weights_sha256())
    if window != backend.window:
        raise ValueError(
            f"bundle {bundle.name}: its int8 model is for windows of {backend.window} (channels first), not {window}; "
            "leave roi_size as the bundle has it, or use precision fp32"
        )
    return backend
