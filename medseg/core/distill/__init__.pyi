from .dual_head import DistilledLoss, DualHeadDistillation, binary_distillation_loss
from .multi_teacher import MultiTeacherLoss
from .self_distillation import best_label_weight, mix_targets

__all__ = [
    "DistilledLoss",
    "DualHeadDistillation",
    "MultiTeacherLoss",
    "best_label_weight",
    "binary_distillation_loss",
    "mix_targets",
]
