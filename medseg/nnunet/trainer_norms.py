"""Which norms the trainers of `trainers/medseg_trainers.py` put into the network; needed wherever it is built again."""

from __future__ import annotations

from typing import Any

TRAINER_NORMS: dict[str, str | list[Any]] = {
    "nnUNetTrainerGroupNorm": ["group", {"num_groups": 8}],
    "nnUNetTrainerPowerNorm": "power",
    "nnUNetTrainerUnifiedNorm": "unified",
    "nnUNetTrainerEvoNorm": "evo_s0",
}
