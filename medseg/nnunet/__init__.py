"""Adapters for nnU-Net v2: losses in its conventions, and trainers that `nnUNetv2_train -tr` finds.

    export nnUNet_extTrainer="$(medseg nnunet-path)"
    nnUNetv2_train 901 3d_fullres 0 -tr nnUNetTrainerMIPLoss

nnU-Net looks trainers up by class name in the folders of that variable, for prediction as for training.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
