"""The programs that `inference.py` starts, each in a process of its own: `NAME JOB.json`.

`prepare` makes the volume and the weights; `monai` and `nnunet` are the peers, and `monai:nnunet-weights` blends
MONAI's windows with nnU-Net's weights, to tell apart what makes the peers' masks differ. Each peer reads the volume,
prepares it, slides the windows, maps back to the file's grid, takes the best class and writes the mask, by its own
stock code, and says how long that took from reading to writing (imports and loading of weights excluded). medseg itself
has no program here: its command line is what is measured.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

STARTED = time.perf_counter()
# Planes in one step of the margin, which is computed after the measurement.
_PLANES = 16


class Stopwatch:
    """Seconds before, within and after the network's windows."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self._entered = self._left = self.start

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with the times of its call kept."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._entered = time.perf_counter()
            result = function(*args, **kwargs)
            self._left = time.perf_counter()
            return result

        return timed

    def stop(self) -> dict[str, Any]:
        """Seconds in all, in parts, and before the watch was started."""
        end = time.perf_counter()
        parts = {"prepare": self._entered - self.start, "windows": self._left - self._entered, "back": end - self._left}
        return {"seconds": end - self.start, "parts": parts, "startup": self.start - STARTED}


def prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Write the volume and the weights that all others read."""
    from inference_material import Case, make_weights, write_volume

    case, volume = Case(**job["case"]), Path(job["volume"])
    write_volume(volume, case, job["seed"])
    return {"parameters": make_weights(Path(job["bundle"]), volume, case, job["seed"])}


def monai(job: dict[str, Any]) -> dict[str, Any]:
    """A bundle run as `python -m monai.bundle run` does it: SlidingWindowInferer, softmax, Invertd, argmax."""
    from monai.bundle import ConfigParser
    from monai.transforms import AsDiscreted

    parser = ConfigParser()
    parser.read_config(str(Path(job["bundle"]) / "configs" / "inference.json"))
    parser["bundle_root"] = job["bundle"]
    parser["output_dir"] = str(Path(job["output"]).parent)
    parser["datalist"] = [{"image": job["volume"]}]
    evaluator = parser.get_parsed_content("evaluator")
    parser.get_parsed_content("initialize")
    kept: list[Any] = []
    if job["margin"]:
        chain = parser.get_parsed_content("postprocessing")
        at = next(i for i, t in enumerate(chain.transforms) if isinstance(t, AsDiscreted))
        chain.transforms = (*chain.transforms[:at], _keep_prediction(kept), *chain.transforms[at:])
    if job["contender"] == "monai:nnunet-weights":
        evaluator.inferer.roi_weight_map = _nnunet_weights(job["case"]["patch"])
    watch = Stopwatch()
    evaluator.inferer = watch.around(evaluator.inferer)
    evaluator.run()
    result = watch.stop()
    Path(job["output"]).with_name("volume_seg.nii.gz").replace(job["output"])
    if job["margin"]:
        _save_margin(kept[0], Path(job["margin"]))
    return result


def nnunet(job: dict[str, Any]) -> dict[str, Any]:
    """`nnUNetPredictor` in one process, with its own reading, preparation, resampling of logits and writing."""
    import torch
    from monai.bundle import ConfigParser
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    bundle = Path(job["bundle"])
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs" / "inference.json"))
    network = parser.get_parsed_content("network_def")
    weights = torch.load(bundle / "models" / "model.pt", map_location="cpu", weights_only=True)
    plans = PlansManager(_plans(job["case"]["patch"]))
    labels = {"background": 0} | {f"class {k}": k for k in range(1, job["case"]["classes"])}
    dataset = {"file_ending": ".nii.gz", "channel_names": {"0": "MR"}, "labels": labels}
    device = torch.device(job["device"])
    predictor = nnUNetPredictor(
        tile_step_size=0.5,
        use_gaussian=True,
        use_mirroring=False,
        perform_everything_on_device=device.type == "cuda",
        device=device,
        allow_tqdm=False,
    )
    predictor.manual_initialization(
        network, plans, plans.get_configuration("3d_fullres"), [weights], dataset, "nnUNetTrainer", None
    )
    watch = Stopwatch()
    predictor.predict_logits_from_preprocessed_data = watch.around(predictor.predict_logits_from_preprocessed_data)
    predictor.predict_from_files_sequential([[job["volume"]]], [job["output"].removesuffix(".nii.gz")])
    return watch.stop()


def _plans(patch: int) -> dict[str, Any]:
    """What nnU-Net's planner writes for isotropic voxels of 1 mm, as far as inference reads it.

    The axes are turned, so that the network sees x, y, z as in MONAI rather than SimpleITK's z, y, x.
    """
    resampling = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    name = "resample_data_or_seg_to_shape"
    configuration = {
        "data_identifier": "benchmark_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [patch] * 3,
        "spacing": [1.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": name,
        "resampling_fn_data_kwargs": {**resampling, "order": 3},
        "resampling_fn_seg": name,
        "resampling_fn_seg_kwargs": {**resampling, "is_seg": True, "order": 1},
        "resampling_fn_probabilities": name,
        "resampling_fn_probabilities_kwargs": {**resampling, "order": 1},
        # The network is handed over as an object; nnU-Net only wants the key.
        "architecture": {},
    }
    return {
        "dataset_name": "benchmark",
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [2, 1, 0],
        "transpose_backward": [2, 1, 0],
        "label_manager": "LabelManager",
        # Read for every channel, used by CT normalisation alone.
        "foreground_intensity_properties_per_channel": {"0": {}},
        "configurations": {"3d_fullres": configuration},
    }


def _nnunet_weights(patch: int) -> Any:
    """nnU-Net's Gaussian, whose corners are not raised to 0.001 as MONAI's are and whose top is half a voxel off."""
    import torch
    from nnunetv2.inference.sliding_window_prediction import compute_gaussian

    size = (patch,) * 3
    return compute_gaussian(size, sigma_scale=1 / 8, value_scaling_factor=10, device=torch.device("cpu")).float()


def _keep_prediction(kept: list[Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def keep(data: dict[str, Any]) -> dict[str, Any]:
        kept.append(data["pred"].as_tensor())
        return data

    return keep


def _save_margin(probabilities: Any, path: Path) -> None:
    """Save how far the best class is ahead of the second, at every voxel of the file's grid."""
    import numpy as np

    margin = np.empty(tuple(probabilities.shape[1:]), np.float16)
    for start in range(0, len(margin), _PLANES):
        best = probabilities[:, start : start + _PLANES].topk(2, dim=0).values
        margin[start : start + _PLANES] = (best[0] - best[1]).cpu().numpy()
    np.save(path, margin)


def main() -> None:
    name, path = sys.argv[1:]
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    result = {"prepare": prepare, "monai": monai, "nnunet": nnunet}[name.split(":")[0]](job | {"contender": name})
    Path(job["result"]).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
