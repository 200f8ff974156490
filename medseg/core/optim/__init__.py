"""Optimizers, and what goes around them: weights' scale, running averages, layer-wise rates, robust mixing weights.

All of them can be named in a bundle's JSON, resume from their `state_dict`, and keep float32 moments for weights in
half precision.
"""

from medseg.core.optim.adamp import AdamP
from medseg.core.optim.decay_groups import decay_groups
from medseg.core.optim.ema_teacher import EMATeacher
from medseg.core.optim.empirical_fisher import EmpiricalFisherInverse, FisherPreconditioner
from medseg.core.optim.frugal import FrugalAdamW
from medseg.core.optim.layerwise import find_layers, layerwise_param_groups
from medseg.core.optim.lion import Lion
from medseg.core.optim.normalized_logistic_regression import LogisticFit, normalized_logistic_regression
from medseg.core.optim.optimistic_simplex import OptimisticSimplexWeights, project_to_simplex
from medseg.core.optim.progressive_freezing import ProgressiveFreezing, freezing_milestones
from medseg.core.optim.projected import ProjectedOptimizer, effective_learning_rates
from medseg.core.optim.scale_invariance import Invariance, find_scale_invariant, scale_invariant_param_groups
from medseg.core.optim.sgdp import SGDP
from medseg.core.optim.target_surrogate import TargetSurrogateOptimizer
from medseg.core.optim.trajectory_loss import TrajectoryLoss

# Sorted as the test of public names has it, capitals by their letters.
__all__ = [  # noqa: RUF022
    "AdamP",
    "EMATeacher",
    "EmpiricalFisherInverse",
    "FisherPreconditioner",
    "FrugalAdamW",
    "Invariance",
    "Lion",
    "LogisticFit",
    "OptimisticSimplexWeights",
    "ProgressiveFreezing",
    "ProjectedOptimizer",
    "SGDP",
    "TargetSurrogateOptimizer",
    "TrajectoryLoss",
    "decay_groups",
    "effective_learning_rates",
    "find_layers",
    "find_scale_invariant",
    "freezing_milestones",
    "layerwise_param_groups",
    "normalized_logistic_regression",
    "project_to_simplex",
    "scale_invariant_param_groups",
]
