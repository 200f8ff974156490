from .fold_ensemble import FoldEnsemble
from .folder import trainer_folder
from .loss import NNUNetLoss, find_level_weights
from .model_folder import NNUNetModel, write_nnunet_bundle
from .preprocessing import NNUNetPreprocessd, RegionsToLabelsd

__all__ = [
    "FoldEnsemble",
    "NNUNetLoss",
    "NNUNetModel",
    "NNUNetPreprocessd",
    "RegionsToLabelsd",
    "find_level_weights",
    "trainer_folder",
    "write_nnunet_bundle",
]
