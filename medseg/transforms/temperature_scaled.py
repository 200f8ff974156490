"""Calibrate the class probabilities of a network in a bundle's postprocessing; the mask stays the same.

    q_c = sum over k of v_k p_c^(1/T_k) / sum over classes j of p_j^(1/T_k)

which for p = softmax(z) is sum of v_k softmax(z / T_k), the mixture that `medseg.core.calibration` fits. It keeps the
best class of every voxel, so it belongs behind `Invertd` and before the `AsDiscreted` that takes the best class:

    {"_target_": "Activationsd", "keys": "pred", "softmax": true},
    {"_target_": "Invertd", "keys": "pred", ...},
    {"_target_": "medseg.transforms.TemperatureScaledd", "keys": "pred", "temperatures": [1.4]},
    {"_target_": "AsDiscreted", "keys": "pred", "argmax": true}

There `medseg.engines.Predictor` leaves it out where only the mask is wanted. In front of `Invertd` it works as well,
but interpolation of other probabilities can choose another class between voxels.

Source: Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks" (ICML 2017).
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.config.type_definitions import KeysCollection, NdarrayOrTensor
from monai.transforms.transform import MapTransform, Transform
from monai.utils.enums import TransformBackends
from monai.utils.type_conversion import convert_data_type, convert_to_dst_type

from medseg.core.calibration.temperature import check_temperatures, keep_best_class, mix_temperatures

# Interpolation may leave sums of weights a little off.
_ROUNDING = 1e-3


class TemperatureScaled(Transform):
    """Calibrate class probabilities (C, spatial...); a single channel is the probability of the foreground.

    Args:
        temperatures: T_k, positive: what `settings()` of a fitted calibrator gives. 1 only divides by the sum.
        weights: v_k, divided by their sum; equal by default.
        file: JSON file with `temperatures` and `weights`, in place of these arguments; read at the first call.
        logits: the input is logits, not probabilities; the output is probabilities either way.

    Raises:
        ValueError: a number is out of range, or both numbers and a file are given.

    Example:
        >>> TemperatureScaled(temperatures=[2.0])(torch.tensor([[0.9], [0.1]]))        # odds of 9 become odds of 3
        tensor([[0.7500],
                [0.2500]])
    """

    backend = [TransformBackends.TORCH]  # noqa: RUF012  (MONAI's protocol: a list on the class)

    def __init__(
        self,
        temperatures: Sequence[float] = (1.0,),
        weights: Sequence[float] | None = None,
        file: str | None = None,
        logits: bool = False,
    ) -> None:
        if file is not None and (list(temperatures) != [1.0] or weights is not None):
            raise ValueError(f"file {file!r} holds temperatures and weights; give either the file or these arguments")
        self.temperatures, self.weights = _checked(temperatures, weights)
        self.file, self.logits = file, logits

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        """Calibrate.

        Args:
            img: probabilities, or logits if so set, (C, spatial...).

        Returns:
            Probabilities of the same shape and kind, float32 or float64.

        Raises:
            ValueError: probabilities lie outside [0, 1], or a value is NaN.
            FileNotFoundError: the file does not exist.
        """
        if self.file is not None:
            self.temperatures, self.weights = _read(Path(self.file))
            self.file = None
        values = convert_data_type(img, torch.Tensor)[0].as_subclass(torch.Tensor).detach()
        values = (values if values.dtype == torch.float64 else values.float())[None]
        low, high = values.aminmax()
        if self.logits and not bool((high - low).isfinite()):
            raise ValueError("img holds NaN or infinity, expected logits; check the network's weights and its input")
        if not self.logits and not (low >= -_ROUNDING and float(values.sum(1).max()) <= 1 + _ROUNDING):
            raise ValueError(
                "img must hold probabilities in [0, 1] that sum to one over channels, got "
                f"{float(low):g} to {float(high):g}; put this transform behind the softmax, or set logits to true"
            )
        return convert_to_dst_type(self._calibrate(values)[0], img, dtype=values.dtype)[0]

    def _calibrate(self, values: torch.Tensor) -> torch.Tensor:
        """Of (1, C, spatial...)."""
        single = values.shape[1] == 1
        if single:
            values = torch.cat([torch.zeros_like(values), values] if self.logits else [1 - values, values], 1)
        scores = values if self.logits else values.clamp_min(torch.finfo(values.dtype).tiny).log()
        mixed = keep_best_class(mix_temperatures(scores, self.temperatures, self.weights), values)
        if not self.logits:
            mixed *= values.sum(1, keepdim=True) > 0  # outside a crop no class has a probability
        return mixed[:, 1:] if single else mixed


class TemperatureScaledd(MapTransform):
    """Dictionary form of `TemperatureScaled`.

    Args:
        keys: entries to calibrate.
        temperatures: see `TemperatureScaled`.
        weights: see `TemperatureScaled`.
        file: see `TemperatureScaled`.
        logits: see `TemperatureScaled`.
        network_sha256: SHA-256 of the file of weights that the temperatures were fitted to; `Predictor` tells where a
            bundle has others by now.
        allow_missing_keys: pass over entries that are absent.

    Example:
        >>> calibrate = TemperatureScaledd(keys="pred", temperatures=[2.0])
        >>> calibrate({"pred": torch.tensor([[0.9], [0.1]])})["pred"][:, 0]
        tensor([0.7500, 0.2500])
    """

    backend = TemperatureScaled.backend

    def __init__(
        self,
        keys: KeysCollection,
        temperatures: Sequence[float] = (1.0,),
        weights: Sequence[float] | None = None,
        file: str | None = None,
        logits: bool = False,
        network_sha256: str | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.calibrate = TemperatureScaled(temperatures, weights, file, logits)
        self.network_sha256 = network_sha256

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Calibrate the entries; see `TemperatureScaled`."""
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self.calibrate(result[key])
        return result


def _checked(temperatures: Sequence[float], weights: Sequence[float] | None) -> tuple[list[float], list[float]]:
    temperatures = [float(t) for t in temperatures]
    weights = [1.0] * len(temperatures) if weights is None else [float(w) for w in weights]
    check_temperatures(temperatures, weights)
    return temperatures, weights


def _read(path: Path) -> tuple[list[float], list[float]]:
    if not path.is_file():
        raise FileNotFoundError(f"file {str(path)!r} does not exist; write what settings() of a calibrator gives to it")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return _checked(content["temperatures"], content.get("weights"))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"file {str(path)!r} must hold {{'temperatures': [...], 'weights': [...]}} as JSON, got {error!r}"
        ) from error
