"""Where the trainers lie; imports nothing, so that `medseg nnunet-path` answers at once."""

from __future__ import annotations

from pathlib import Path


def trainer_folder() -> Path:
    """Give the folder to name in nnU-Net's environment variable `nnUNet_extTrainer`.

    It holds trainers and nothing else, because nnU-Net imports every module below it as a top-level one.

    Returns:
        An existing folder.

    Example:
        >>> trainer_folder().name
        'trainers'
    """
    return Path(__file__).parent / "trainers"
