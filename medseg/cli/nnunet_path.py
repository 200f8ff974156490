"""`medseg nnunet-path`: where nnU-Net finds our trainers."""

from __future__ import annotations

import typer


def nnunet_path() -> None:
    """Print the folder of the trainers for nnU-Net v2.

    Give it to nnU-Net in its variable, for training and for prediction:

    export nnUNet_extTrainer="$(medseg nnunet-path)"
    """
    from medseg.nnunet import trainer_folder

    typer.echo(str(trainer_folder()))
